"""EfficientNets. Images are [B,H,W,C]; statistics of the batch are over the whole (global) batch under jit."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make, remat, scan_stack, stack
from mixcon.models.layers import (
    REMAT_POLICIES,
    Hook,
    by_example,
    choose,
    drop_path,
    dropout,
    float_dtype,
    normal,
    split_key,
    unchanged,
)
from mixcon.models.resnet import BatchNorm, check_images

SIZES = {  # name: factor of all widths, factor of all depths, dropout before the classifier
    "B0": (1.0, 1.0, 0.2),
    "B1": (1.0, 1.1, 0.2),
    "B2": (1.1, 1.2, 0.3),
    "B3": (1.2, 1.4, 0.3),
    "B4": (1.4, 1.8, 0.4),
    "B5": (1.6, 2.2, 0.4),
    "B6": (1.8, 2.6, 0.5),
    "B7": (2.0, 3.1, 0.5),
    "L2": (4.3, 5.3, 0.5),
}
STAGES = (  # of B0: blocks, kernel, stride, factor of the inner width, width
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, TOP = 32, 1280  # widths of the first and the last convolution of B0


def round_width(width: int, factor: float) -> int:
    """`width * factor` as the nearest multiple of 8 that is not below nine tenths of it."""
    scaled = width * factor
    nearest = max(8, int(scaled + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * scaled else nearest


def pointwise(width: int, out: int, *, dtype: np.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A 1x1 convolution without bias: a matrix product over channels."""
    return nnx.Linear(width, out, use_bias=False, kernel_init=normal((2 / out) ** 0.5), dtype=dtype, rngs=rngs)


class Depthwise(nnx.Module):
    """A convolution of each channel by itself, without bias."""

    def __init__(self, width: int, side: int, stride: int, *, form: str, dtype: np.dtype, rngs: nnx.Rngs):
        self.stride, self.form, self.dtype = stride, form, dtype
        self.kernel = nnx.Param(normal((2 / side**2) ** 0.5)(rngs.params(), (side, side, 1, width)))

    def __call__(self, x: Array) -> Array:
        """[B,H,W,D] -> [B,h,w,D]."""
        return DEPTHWISE[self.form](x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride)


def depthwise_conv(x: Array, kernel: Array, stride: int) -> Array:
    """x [B,H,W,D] with kernel [s,s,1,D]; padding that does not come out even is below and to the right."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=x.shape[-1]
    )


def depthwise_sum(x: Array, kernel: Array, stride: int) -> Array:
    """The same as a sum of shifted products: on CPUs, whose grouped convolutions have slow gradients."""
    side = kernel.shape[0]
    sizes = [-(-extent // stride) for extent in x.shape[1:3]]
    pads = [max((size - 1) * stride + side - extent, 0) for size, extent in zip(sizes, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)))
    high, wide = ((size - 1) * stride + 1 for size in sizes)
    products = [
        x[:, i : i + high : stride, j : j + wide : stride] * kernel[i, j][None, None]
        for i in range(side)
        for j in range(side)
    ]
    return functools.reduce(jnp.add, products)


DEPTHWISE = {"conv": depthwise_conv, "sum": depthwise_sum}


class MBConv(nnx.Module):
    """Inverted bottleneck: widen, convolve each channel, scale channels by what is in all of the image, narrow."""

    def __init__(
        self,
        width: int,
        out: int,
        *,
        side: int,
        stride: int,
        expansion: int,
        form: str,
        momentum: float,
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        norm = functools.partial(BatchNorm, momentum=momentum, eps=1e-3, dtype=dtype, rngs=rngs)
        inner, squeezed = width * expansion, max(1, width // 4)
        self.is_residual = stride == 1 and width == out
        self.widens = expansion != 1
        if self.widens:
            self.expand_conv = pointwise(width, inner, dtype=dtype, rngs=rngs)
            self.expand_norm = norm(inner)
        self.depthwise_conv = Depthwise(inner, side, stride, form=form, dtype=dtype, rngs=rngs)
        self.depthwise_norm = norm(inner)
        linear = functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
        self.squeeze = linear(inner, squeezed, kernel_init=normal((2 / squeezed) ** 0.5))
        self.excite = linear(squeezed, inner, kernel_init=normal((2 / inner) ** 0.5))
        self.project_conv = pointwise(inner, out, dtype=dtype, rngs=rngs)
        self.project_norm = norm(out)

    def __call__(
        self, x: Array, *, train: bool, key: Array | None = None, drop_rate: Array | float | None = None
    ) -> Array:
        y = x
        if self.widens:
            y = jax.nn.silu(self.expand_norm.normalize(self.expand_conv(y), train=train))
        y = jax.nn.silu(self.depthwise_norm.normalize(self.depthwise_conv(y), train=train))
        gate = self.excite(jax.nn.silu(self.squeeze(y.mean(axis=(1, 2), keepdims=True))))
        y = self.project_norm.normalize(self.project_conv(y * jax.nn.sigmoid(gate)), train=train)
        if not self.is_residual:
            return y
        return x + (y if not train or drop_rate is None else drop_path(y, drop_rate, key=key))


class EfficientNet(nnx.Module):
    """EfficientNet; make it with `efficientnet`."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        width_factor: float,
        depth_factor: float,
        stem_stride: int,
        channels: int,
        top: bool,
        num_classes: int,
        dropout_rate: float,
        stochastic_depth: float,
        form: str,
        momentum: float,
        dtype: np.dtype,
        policy: bool | str,
        scan_layers: bool,
    ):
        self.channels, self.policy, self.scan_layers = channels, policy, scan_layers
        self.blocks: list[int] = []  # of each stage
        self.dropout_rate, self.stochastic_depth, self.num_classes = dropout_rate, stochastic_depth, num_classes
        norm = functools.partial(BatchNorm, momentum=momentum, eps=1e-3, dtype=dtype, rngs=rngs)
        width = round_width(STEM, width_factor)
        self.stem_conv = nnx.Conv(
            channels,
            width,
            (3, 3),
            strides=(stem_stride, stem_stride),
            padding="SAME",
            use_bias=False,
            kernel_init=normal((2 / (9 * width)) ** 0.5),
            dtype=dtype,
            rngs=rngs,
        )
        self.stem_norm = norm(width)
        stages = []
        for blocks, side, stride, expansion, out_of_b0 in STAGES:
            out = round_width(out_of_b0, width_factor)
            make = functools.partial(MBConv, side=side, expansion=expansion, form=form, momentum=momentum, dtype=dtype)
            first = make(width, out, stride=stride, rngs=rngs)
            rest = math.ceil(blocks * depth_factor) - 1
            self.blocks.append(rest + 1)
            if scan_layers and rest:
                stages.append(nnx.List([first, stack(functools.partial(_same_width, make, out), rest, rngs)]))
            else:
                stages.append(nnx.List([first, *(make(out, out, stride=1, rngs=rngs) for _ in range(rest))]))
            width = out
        self.stages = nnx.List(stages)
        self.has_top = top
        if top:
            narrow, width = width, round_width(TOP, width_factor)
            self.top_conv = pointwise(narrow, width, dtype=dtype, rngs=rngs)
            self.top_norm = norm(width)
        self.out_features = num_classes or width
        if num_classes:
            init = nnx.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
            self.head = nnx.Linear(width, num_classes, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Array, *, train: bool = False, key: Array | None = None, hook: Hook = unchanged
    ) -> Array:
        """Normalised images [B,H,W,C] -> pooled features [B,D], or logits [B,num_classes].

        `hook("stage1", x)` sees (and may replace) what comes out of each stage, [B,h,w,D].
        """
        map_key, dropout_key = split_key(key, 2)
        pooled = self.feature_map(images, train=train, key=map_key, hook=hook).mean(axis=(1, 2))
        if not self.num_classes:
            return pooled
        return self.head(dropout(pooled, self.dropout_rate, key=dropout_key, train=train))

    def feature_map(
        self, images: Array, *, train: bool = False, key: Array | None = None, hook: Hook = unchanged
    ) -> Array:
        """Normalised images [B,H,W,C] -> the last convolution's features [B,h,w,D]."""
        check_images(images, self.channels)
        x = jax.nn.silu(self.stem_norm.normalize(self.stem_conv(images), train=train))
        rates = iter(np.linspace(0.0, self.stochastic_depth, sum(self.blocks), endpoint=False, dtype=np.float32))
        keys = iter(split_key(key, sum(self.blocks)))

        def step(block: Any, x: Array, key: Array | None, rate: Array) -> Array:
            return by_example(block(x, train=train, key=key, drop_rate=rate if self.stochastic_depth else None))

        if self.policy:
            step = remat(step, REMAT_POLICIES[self.policy])
        for number, (stage, count) in enumerate(zip(self.stages, self.blocks, strict=True), start=1):
            x = step(stage[0], x, next(keys), next(rates))
            if self.scan_layers and count > 1:
                stage_keys, stage_rates = (list(itertools.islice(each, count - 1)) for each in (keys, rates))
                each_key = None if key is None else jnp.stack(stage_keys)
                x = scan_stack(stage[1], step, x, each_key, jnp.asarray(stage_rates))
            else:
                for block in stage[1:]:
                    x = step(block, x, next(keys), next(rates))
            x = hook(f"stage{number}", x)
        return jax.nn.silu(self.top_norm.normalize(self.top_conv(x), train=train)) if self.has_top else x


def _same_width(make: Callable[..., MBConv], width: int, rngs: nnx.Rngs) -> MBConv:
    return make(width, width, stride=1, rngs=rngs)


def efficientnet(
    size: str | None = "B0",
    *,
    width_factor: float | None = None,
    depth_factor: float | None = None,
    stem_stride: int = 2,
    channels: int = 3,
    top: bool = True,
    num_classes: int = 0,
    dropout: float | None = None,
    stochastic_depth: float = 0.2,
    depthwise: str = "conv",
    norm_momentum: float = 0.99,
    dtype: Any = "float32",
    remat: bool | str = False,
    scan_layers: bool = False,
) -> Make:
    """An EfficientNet, as a constructor for `functional` or `dual_encoder`.

    Width of a layer `round8(width_factor · w)`, blocks of a stage `ceil(depth_factor · n)`, for w and n of B0.

    Args:
        size: "B0" to "B7" or "L2", or None with both factors.
        width_factor, depth_factor: instead of the named size's.
        stem_stride: of the first convolution; 1 for small images (the map is then a 16th of the image, not a 32nd).
        channels: of the image.
        top: the last 1x1 convolution, to 1280 · width_factor channels. ALIGN leaves it out.
        num_classes: adds a linear classifier when positive.
        dropout: before the classifier; None takes the named size's.
        stochastic_depth: rate that residual branches approach linearly from 0 at the first block.
        depthwise: how channels are convolved one by one: "conv", or "sum" of shifted products, several times faster on
            CPUs. The results are the same.
        norm_momentum: of the running statistics; a run of a few hundred steps needs less than 0.99, at which they
            still lag a hundred steps behind.
        dtype: compute dtype; parameters and statistics stay float32.
        remat: recompute each block in the backward pass: False, True, or "dots".
        scan_layers: stack the blocks of a stage after its first: one compiled block instead of up to 21.

    Returns:
        A function of `nnx.Rngs` that builds the `EfficientNet`; its running statistics are in `extra`.

    Raises:
        InputError: an unknown size or dtype, numbers out of range.

    Example:
        >>> model = functional(efficientnet("B0", num_classes=10))

    Reference: Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019, table 1 and
        section 5; L2: Xie et al., "Self-training with Noisy Student improves ImageNet classification", 2020, table 7.
    """
    named: tuple[float | None, float | None, float] = (None, None, 0.0)
    if size is not None:
        named = SIZES[choose(size, SIZES, "size")]
    width_factor = named[0] if width_factor is None else width_factor
    depth_factor = named[1] if depth_factor is None else depth_factor
    rate = named[2] if dropout is None else dropout
    if width_factor is None or depth_factor is None:
        raise InputError(f"Give size= (one of {', '.join(SIZES)}), or width_factor= and depth_factor=.")
    if not (width_factor > 0 and depth_factor > 0):
        raise InputError(f"width_factor={width_factor} and depth_factor={depth_factor} must be positive.")
    if min(channels, stem_stride) < 1 or num_classes < 0:
        raise InputError("channels and stem_stride must be at least 1, num_classes at least 0.")
    for name, value in (("dropout", rate), ("stochastic_depth", stochastic_depth), ("norm_momentum", norm_momentum)):
        if not 0.0 <= value < 1.0:
            raise InputError(f"{name}={value} must be in [0, 1).")
    choose(depthwise, DEPTHWISE, "depthwise")
    if remat is not False:
        choose(remat, REMAT_POLICIES, "remat")
    return functools.partial(
        EfficientNet,
        width_factor=width_factor,
        depth_factor=depth_factor,
        stem_stride=stem_stride,
        channels=channels,
        top=top,
        num_classes=num_classes,
        dropout_rate=rate,
        stochastic_depth=stochastic_depth,
        form=depthwise,
        momentum=norm_momentum,
        dtype=float_dtype(dtype),
        policy=remat,
        scan_layers=scan_layers,
    )
