"""A plain convolutional network for small images: as many 3x3 convolutions as it has widths. Images are [B,H,W,C]."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make
from mixcon.models.layers import Hook, float_dtype, unchanged
from mixcon.models.resnet import BatchNorm, check_images, conv


class ConvNet(nnx.Module):
    """`relu(norm(conv(x)))` once per width, then the mean over places; make it with `conv_net`."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        widths: tuple[int, ...],
        strides: tuple[int, ...],
        channels: int,
        num_classes: int,
        dtype: np.dtype,
    ):
        self.channels, self.num_classes, self.out_features = channels, num_classes, num_classes or widths[-1]
        pairs = list(zip((channels, *widths[:-1]), widths, strides, strict=True))
        self.convs = nnx.List([conv(a, b, 3, stride=s, dtype=dtype, rngs=rngs) for a, b, s in pairs])
        self.norms = nnx.List([BatchNorm(b, dtype=dtype, rngs=rngs) for _, b, _ in pairs])
        if num_classes:
            small = nnx.initializers.normal(0.01)
            self.head = nnx.Linear(widths[-1], num_classes, kernel_init=small, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Array, *, train: bool = False, key: Array | None = None, hook: Hook = unchanged
    ) -> Array:
        """Normalised images [B,H,W,C] -> pooled features [B,D], or logits [B,num_classes].

        `hook("stage1", x)` sees (and may replace) what comes out of each convolution, [B,h,w,D].
        """
        check_images(images, self.channels)
        x = images
        for number, (convolution, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            x = hook(f"stage{number}", jax.nn.relu(norm.normalize(convolution(x), train=train)))
        pooled = x.mean(axis=(1, 2))
        return self.head(pooled) if self.num_classes else pooled


def conv_net(
    widths: Sequence[int] = (16, 32, 32),
    *,
    strides: Sequence[int] | None = None,
    channels: int = 3,
    num_classes: int = 0,
    dtype: Any = "float32",
) -> Make:
    """A few 3x3 convolutions with batch norm, as a constructor for `functional` or `classifier`.

    Args:
        widths: output channels of each convolution.
        strides: of each convolution; 1 by default.
        channels: of the image.
        num_classes: adds a linear classifier when positive.
        dtype: compute dtype; parameters and statistics stay float32.

    Returns:
        A function of `nnx.Rngs` that builds the `ConvNet`.

    Raises:
        InputError: no widths, or not as many strides.

    Example:
        >>> model = functional(conv_net((16, 32, 32), strides=(1, 2, 1), channels=1, num_classes=10))
    """
    widths, strides = tuple(widths), tuple(strides or (1,) * len(widths))
    if not widths or len(strides) != len(widths) or min(*widths, *strides, channels) < 1 or num_classes < 0:
        raise InputError(f"conv_net needs positive widths and as many strides; got {widths} and {strides}.")
    return functools.partial(
        ConvNet, widths=widths, strides=strides, channels=channels, num_classes=num_classes, dtype=float_dtype(dtype)
    )
