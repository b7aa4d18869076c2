"""A backbone with one or several linear heads on its pooled features. Images are [B,H,W,C], K classes."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make
from mixcon.models.layers import Hook, float_dtype, unchanged


class Classifier(nnx.Module):
    """Backbone and heads; make it with `classifier`."""

    def __init__(self, rngs: nnx.Rngs, *, backbone: Make, num_classes: int, heads: tuple[str, ...], dtype: np.dtype):
        tower: Any = backbone(rngs)
        self.backbone = tower
        small = nnx.initializers.normal(0.01)
        self.heads = nnx.Dict(
            {
                name: nnx.Linear(tower.out_features, num_classes, kernel_init=small, dtype=dtype, rngs=rngs)
                for name in heads
            }
        )

    def __call__(
        self, images: Array, *, train: bool = False, key: Array | None = None, hook: Hook = unchanged
    ) -> dict[str, Array]:
        """Normalised images [B,H,W,C] -> the logits [B,K] of each head by its name."""
        pooled = self.backbone(images, train=train, key=key, hook=hook)
        return {name: head(pooled) for name, head in self.heads.items()}

    def with_map(
        self, images: Array, *, at: str, train: bool = False, key: Array | None = None
    ) -> tuple[dict[str, Array], Array]:
        """As calling it, and the feature map [B,h,w,D] at a place of the backbone, such as "stage3" or "block6"."""
        seen: dict[str, Array] = {}

        def look(place: str, x: Array) -> Array:
            seen[place] = x
            return x

        logits = self(images, train=train, key=key, hook=look)
        if at not in seen:
            raise InputError(f"the backbone has no place {at!r}; it has {', '.join(seen)}.")
        return logits, tokens_to_map(seen[at]) if seen[at].ndim == 3 else seen[at]


def tokens_to_map(tokens: Array) -> Array:
    """Tokens [B,T,D] of square images -> [B,h,h,D]; what comes before the patches (the class token) is left out."""
    batch, count, width = tokens.shape
    side = math.isqrt(count)
    return tokens[:, count - side * side :].reshape(batch, side, side, width)


def classifier(backbone: Make, *, num_classes: int, heads: Sequence[str] = ("one",), dtype: Any = "float32") -> Make:
    """A backbone with linear heads that share its features, as a constructor for `functional`.

    Args:
        backbone: of a module with `out_features` that takes a `hook`: `resnet`, `conv_net` or `vit` without classes.
        num_classes: K of every head.
        heads: their names, e.g. ("one", "mix") for heads of clean and of mixed images.
        dtype: compute dtype of the heads.

    Returns:
        A function of `nnx.Rngs` that builds the `Classifier`.

    Raises:
        InputError: no class, no head, or a head named twice.

    Example:
        >>> model = functional(classifier(resnet(18, stem="cifar"), num_classes=100, heads=("one", "mix")))
    """
    heads = tuple(heads)
    if num_classes < 1 or not heads or len(set(heads)) < len(heads):
        raise InputError(f"a classifier needs classes and heads of different names; got {num_classes} and {heads}.")
    return functools.partial(
        Classifier, backbone=backbone, num_classes=num_classes, heads=heads, dtype=float_dtype(dtype)
    )
