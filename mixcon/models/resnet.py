"""Residual networks. Images are [B,H,W,C]; statistics of the batch are over the whole (global) batch under jit."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make, remat
from mixcon.models.layers import REMAT_POLICIES, Hook, by_example, choose, float_dtype, unchanged

DEPTHS = {  # depth: blocks per stage, whether they are bottlenecks
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    8: ((1, 1, 1), False),  # 8 and 20: the paper's networks for CIFAR (section 4.2), here with projection shortcuts
    20: ((3, 3, 3), False),
}
STEMS = ("imagenet", "cifar")


class BatchNorm(nnx.BatchNorm):
    """Batch norm in float32, returned in the compute dtype.

    Running statistics move by `1 - momentum` of the difference per step and use the biased variance.
    """

    def __init__(
        self,
        width: int,
        *,
        dtype: np.dtype,
        rngs: nnx.Rngs,
        zero_init: bool = False,
        momentum: float = 0.9,
        eps: float = 1e-5,
    ):
        scale = nnx.initializers.zeros if zero_init else nnx.initializers.ones
        super().__init__(width, momentum=momentum, epsilon=eps, dtype=jnp.float32, scale_init=scale, rngs=rngs)
        self.out_dtype = dtype

    def normalize(self, x: Array, *, train: bool) -> Array:
        """[..., width], with the statistics of the batch (and their running average updated) when training."""
        return self(x.astype(jnp.float32), use_running_average=not train).astype(self.out_dtype)


def conv(
    width: int, out: int, side: int, *, stride: int = 1, groups: int = 1, dtype: np.dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    """A convolution without bias, padded by side // 2 on every edge whatever the stride."""
    init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    pad = ((side // 2, side // 2),) * 2
    return nnx.Conv(
        width,
        out,
        (side, side),
        strides=(stride, stride),
        padding=pad,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=init,
        dtype=dtype,
        rngs=rngs,
    )


class ResidualBlock(nnx.Module):
    """`relu(shortcut(x) + branch(x))`: two 3x3 convolutions, or a 1x1-3x3-1x1 bottleneck with the stride in its 3x3."""

    def __init__(
        self,
        width: int,
        out: int,
        *,
        stride: int,
        bottleneck: bool,
        groups: int,
        inner_share: float,
        zero_init: bool,
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        inner = round(out * inner_share) if bottleneck else out
        shapes = [(width, inner, 1, 1, 1), (inner, inner, 3, stride, groups), (inner, out, 1, 1, 1)]
        if not bottleneck:
            shapes = [(width, inner, 3, stride, 1), (inner, out, 3, 1, 1)]
        make = functools.partial(conv, dtype=dtype, rngs=rngs)
        self.convs = nnx.List([make(a, b, side, stride=s, groups=g) for a, b, side, s, g in shapes])
        last = len(shapes) - 1
        self.norms = nnx.List(
            [
                BatchNorm(b, zero_init=zero_init and i == last, dtype=dtype, rngs=rngs)
                for i, (_, b, *_) in enumerate(shapes)
            ]
        )
        self.has_shortcut = stride != 1 or width != out
        if self.has_shortcut:
            self.shortcut_conv = conv(width, out, 1, stride=stride, dtype=dtype, rngs=rngs)
            self.shortcut_norm = BatchNorm(out, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = x
        for i, (convolution, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm.normalize(convolution(jax.nn.relu(y) if i else y), train=train)
        if self.has_shortcut:
            x = self.shortcut_norm.normalize(self.shortcut_conv(x), train=train)
        return jax.nn.relu(x + y)


class ResNet(nnx.Module):
    """Residual network; make it with `resnet`."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        depth: int,
        stem: str,
        width: int,
        channels: int,
        groups: int,
        group_width: int,
        zero_init: bool,
        num_classes: int,
        dtype: np.dtype,
        remat: bool | str,
    ):
        blocks, bottleneck = DEPTHS[depth]
        self.stem_kind, self.remat, self.channels = stem, remat, channels
        side, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.stem_conv = conv(channels, width, side, stride=stride, dtype=dtype, rngs=rngs)
        self.stem_norm = BatchNorm(width, dtype=dtype, rngs=rngs)
        stages, features = [], width
        for stage, count in enumerate(blocks):
            out = width * 2**stage * (4 if bottleneck else 1)
            block = functools.partial(
                ResidualBlock,
                bottleneck=bottleneck,
                groups=groups,
                inner_share=groups * group_width / 64 / 4,
                zero_init=zero_init,
                dtype=dtype,
                rngs=rngs,
            )
            first = block(features, out, stride=2 if stage else 1)
            stages.append(nnx.List([first, *(block(out, out, stride=1) for _ in range(count - 1))]))
            features = out
        self.stages = nnx.List(stages)
        self.num_classes = num_classes
        self.out_features = num_classes or features
        if num_classes:
            self.head = nnx.Linear(
                features, num_classes, kernel_init=nnx.initializers.normal(0.01), dtype=dtype, rngs=rngs
            )

    def __call__(
        self, images: Array, *, train: bool = False, key: Array | None = None, hook: Hook = unchanged
    ) -> Array:
        """Normalised images [B,H,W,C] -> pooled features [B,D], or logits [B,num_classes].

        `hook("stage1", x)` sees (and may replace) what comes out of each stage, [B,h,w,D].
        """
        pooled = self.feature_map(images, train=train, key=key, hook=hook).mean(axis=(1, 2))
        return self.head(pooled) if self.num_classes else pooled

    def feature_map(
        self, images: Array, *, train: bool = False, key: Array | None = None, hook: Hook = unchanged
    ) -> Array:
        """Normalised images [B,H,W,C] -> the last stage's features [B,h,w,D]."""
        check_images(images, self.channels)
        x = jax.nn.relu(self.stem_norm.normalize(self.stem_conv(images), train=train))
        if self.stem_kind == "imagenet":
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return run_stages(self.stages, x, train=train, policy=self.remat, hook=hook)


def check_images(images: Array, channels: int) -> None:
    """Refuses what is not a batch of normalised images."""
    if images.ndim != 4 or images.shape[-1] != channels:
        raise InputError(f"images must be [batch, height, width, {channels}], got {images.shape}.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(f"images must be normalised floats, got {images.dtype}; augment or normalise them first.")


def run_stages(stages: Any, x: Array, *, train: bool, policy: bool | str, hook: Hook = unchanged) -> Array:
    """x through all blocks of all stages, each rematerialised in the backward pass when `policy` is not False."""

    def step(block: Any, x: Array) -> Array:
        return by_example(block(x, train=train))

    if policy:
        step = remat(step, REMAT_POLICIES[policy])
    for number, stage in enumerate(stages, start=1):
        for block in stage:
            x = step(block, x)
        x = hook(f"stage{number}", x)
    return x


def resnet(
    depth: int = 50,
    *,
    stem: str = "imagenet",
    width: int = 64,
    channels: int = 3,
    groups: int = 1,
    group_width: int = 64,
    zero_init: bool = True,
    num_classes: int = 0,
    dtype: Any = "float32",
    remat: bool | str = False,
) -> Make:
    """A residual network, as a constructor for `functional` or `dual_encoder`.

    Args:
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks, stride in the 3x3 convolution); 8 or 20: three
            stages, made for small images (with stem="cifar" and width=16 as published).
        stem: "imagenet" (7x7 stride 2, then 3x3 max pooling stride 2) or "cifar" (3x3 stride 1, no pooling).
        width: channels of the stem; everything scales with it.
        channels: of the image.
        groups, group_width: of the 3x3 convolutions of bottlenecks; ResNeXt-50 is depth 50 with groups=32,
            group_width=4. The width of a group is that of the first stage at width=64.
        zero_init: the last batch norm of each block starts at zero, so that each block starts as the identity.
        num_classes: adds a linear classifier when positive.
        dtype: compute dtype; parameters and statistics stay float32.
        remat: recompute each block in the backward pass: False, True, or "dots".

    Returns:
        A function of `nnx.Rngs` that builds the `ResNet`; its running statistics are in `extra`.

    Raises:
        InputError: an unknown depth, stem or dtype.

    Example:
        >>> model = functional(resnet(18, stem="cifar", num_classes=10))

    Reference: He et al., "Deep Residual Learning for Image Recognition", 2016, table 1; zero initialisation: Goyal et
        al., "Accurate, Large Minibatch SGD", 2017, section 5.1; groups: Xie et al., "Aggregated Residual
        Transformations for Deep Neural Networks", 2017, table 1.
    """
    choose(depth, DEPTHS, "depth")
    choose(stem, STEMS, "stem")
    if remat is not False:
        choose(remat, REMAT_POLICIES, "remat")
    if min(width, channels, groups, group_width) < 1 or num_classes < 0:
        raise InputError("width, channels, groups and group_width must be at least 1, num_classes at least 0.")
    if (groups, group_width) != (1, 64) and not DEPTHS[depth][1]:
        raise InputError(f"groups need bottlenecks: depth 50, 101 or 152, not {depth}.")
    if width * groups * group_width % (64 * groups):
        raise InputError(f"width={width} is too narrow for {groups} groups of width {group_width}.")
    return functools.partial(
        ResNet,
        depth=depth,
        stem=stem,
        width=width,
        channels=channels,
        groups=groups,
        group_width=group_width,
        zero_init=zero_init,
        num_classes=num_classes,
        dtype=float_dtype(dtype),
        remat=remat,
    )
