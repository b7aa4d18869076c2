"""CLIP's residual network: three-convolution stem, average pools instead of strides, attention pooling."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make
from mixcon.models.layers import REMAT_POLICIES, CrossAttention, choose, float_dtype, normal
from mixcon.models.resnet import BatchNorm, check_images, conv, run_stages

SIZES: dict[str, tuple[tuple[int, ...], int, int, int]] = {  # layers, width, image_size, out_features
    "RN50": ((3, 4, 6, 3), 64, 224, 1024),
    "RN101": ((3, 4, 23, 3), 64, 224, 512),
    "RN50x4": ((4, 6, 10, 6), 80, 288, 640),
    "RN50x16": ((6, 8, 18, 8), 96, 384, 768),
    "RN50x64": ((3, 15, 36, 10), 128, 448, 1024),
}


def _halve(x: Array) -> Array:
    """2x2 average pooling; an odd last row or column is dropped."""
    batch, height, width, channels = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


class ModifiedBottleneck(nnx.Module):
    """Bottleneck whose convolutions all have stride 1; a stride of 2 is an average pool after the second one."""

    def __init__(self, width: int, inner: int, *, stride: int, dtype: np.dtype, rngs: nnx.Rngs):
        out, self.stride = 4 * inner, stride
        make = functools.partial(conv, dtype=dtype, rngs=rngs)
        norm = functools.partial(BatchNorm, dtype=dtype, rngs=rngs)
        self.convs = nnx.List([make(width, inner, 1), make(inner, inner, 3), make(inner, out, 1)])
        self.norms = nnx.List([norm(inner), norm(inner), norm(out, zero_init=True)])
        self.has_shortcut = stride > 1 or width != out
        if self.has_shortcut:
            self.shortcut_conv, self.shortcut_norm = make(width, out, 1), norm(out)

    def __call__(self, x: Array, *, train: bool) -> Array:
        y = jax.nn.relu(self.norms[0].normalize(self.convs[0](x), train=train))
        y = jax.nn.relu(self.norms[1].normalize(self.convs[1](y), train=train))
        y = _halve(y) if self.stride > 1 else y
        y = self.norms[2].normalize(self.convs[2](y), train=train)
        if self.has_shortcut:
            x = _halve(x) if self.stride > 1 else x
            x = self.shortcut_norm.normalize(self.shortcut_conv(x), train=train)
        return jax.nn.relu(x + y)


class ModifiedResNet(nnx.Module):
    """CLIP's residual network; make it with `modified_resnet`."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        layers: tuple[int, ...],
        width: int,
        image_size: int,
        out_features: int,
        heads: int,
        dtype: np.dtype,
        remat: bool | str,
    ):
        self.image_size, self.remat, self.out_features = image_size, remat, out_features
        stem = [(3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1)]
        self.stem_convs = nnx.List([conv(a, b, 3, stride=s, dtype=dtype, rngs=rngs) for a, b, s in stem])
        self.stem_norms = nnx.List([BatchNorm(b, dtype=dtype, rngs=rngs) for _, b, _ in stem])
        stages, features = [], width
        for stage, depth in enumerate(layers):
            inner = width * 2**stage
            block = functools.partial(ModifiedBottleneck, inner=inner, dtype=dtype, rngs=rngs)
            first = block(features, stride=2 if stage else 1)
            features = 4 * inner
            stages.append(nnx.List([first, *(block(features, stride=1) for _ in range(depth - 1))]))
        self.stages = nnx.List(stages)
        spots = (image_size // 32) ** 2
        self.pos_embed = nnx.Param(normal(features**-0.5)(rngs.params(), (spots + 1, features)))
        self.pool = CrossAttention(features, heads, out_features=out_features, dtype=dtype, rngs=rngs)

    def __call__(self, images: Array, *, train: bool = False, key: Array | None = None) -> Array:
        """Normalised images [B,H,W,3] -> features [B,out_features], already in the shared space."""
        check_images(images, 3)
        if images.shape[1:3] != (self.image_size, self.image_size):
            raise InputError(f"images must be {self.image_size} x {self.image_size}, got {images.shape}.")
        x = images
        for convolution, norm in zip(self.stem_convs, self.stem_norms, strict=True):
            x = jax.nn.relu(norm.normalize(convolution(x), train=train))
        x = run_stages(self.stages, _halve(x), train=train, policy=self.remat)
        spots = x.reshape(x.shape[0], -1, x.shape[-1])
        tokens = jnp.concatenate([spots.mean(axis=1, keepdims=True), spots], axis=1)
        tokens = tokens + self.pos_embed[...].astype(x.dtype)[None]
        return self.pool(tokens[:, :1], tokens)[:, 0]


def modified_resnet(
    size: str | None = None,
    *,
    layers: tuple[int, ...] | None = None,
    width: int | None = None,
    image_size: int | None = None,
    out_features: int | None = None,
    heads: int | None = None,
    dtype: Any = "float32",
    remat: bool | str = False,
) -> Make:
    """CLIP's residual network, as a constructor for `functional` or `dual_encoder` (with image_projection="none").

    Args:
        size: "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", or None with all of the next four.
        layers: blocks in each of the four stages.
        width: channels after the stem.
        image_size: side in pixels, a multiple of 32.
        out_features: output width of the attention pooling.
        heads: of the attention pooling; default width / 2.
        dtype, remat: as in `resnet`.

    Returns:
        A function of `nnx.Rngs` that builds the `ModifiedResNet`; its running statistics are in `extra`.

    Raises:
        InputError: an unknown size, or numbers that do not fit together.

    Example:
        >>> model = functional(modified_resnet("RN50"))

    Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
        section 2.4.
    """
    named = SIZES[choose(size, SIZES, "size")] if size is not None else (None, None, None, None)
    given = (layers, width, image_size, out_features)
    layers, width, image_size, out_features = (a if a is not None else b for a, b in zip(given, named, strict=True))  # type: ignore[assignment]
    if layers is None or width is None or image_size is None or out_features is None:
        raise InputError(f"Give size= (one of {', '.join(SIZES)}), or layers=, width=, image_size= and out_features=.")
    if len(layers) != 4 or min(layers) < 1 or width < 2 or width % 2:
        raise InputError(f"layers={layers} must be four positive counts and width={width} even.")
    if image_size < 32 or image_size % 32:
        raise InputError(f"image_size={image_size} must be a positive multiple of 32.")
    heads = max(1, width * 32 // 64) if heads is None else heads
    if heads < 1 or (32 * width) % heads:
        raise InputError(f"heads={heads} must divide the pooled width {32 * width}.")
    if remat is not False:
        choose(remat, REMAT_POLICIES, "remat")
    return functools.partial(
        ModifiedResNet,
        layers=tuple(layers),
        width=width,
        image_size=image_size,
        out_features=out_features,
        heads=heads,
        dtype=float_dtype(dtype),
        remat=remat,
    )
