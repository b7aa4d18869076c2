"""A backbone and a projection head: what self-supervised methods train. Shapes: B batch, D embed_dim."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make
from mixcon.models.heads import INITS, MlpHead, dense
from mixcon.models.layers import choose, float_dtype
from mixcon.models.resnet import BatchNorm


class Projected(nnx.Module):
    """`head(backbone(x))`, with what lies between them; make it with `projected`."""

    def __init__(
        self, rngs: nnx.Rngs, *, backbone: Make, embed_dim: int, hidden: int, depth: int, init: str, dtype: np.dtype
    ):
        self.backbone = backbone(rngs)
        width = getattr(self.backbone, "out_features", 0)
        if not width:
            raise InputError(f"a backbone says how wide its output is (out_features); {type(self.backbone)} does not.")
        self.head = MlpHead(width, embed_dim, hidden=hidden or width, depth=depth, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, *, train: bool = False, key: Array | None = None) -> dict[str, Array]:
        """{features: of the backbone [B, width], for probes; embedding: of the head [B, D], for the loss, any norm}."""
        backbone: Any = self.backbone
        features = backbone(x, train=train, key=key)
        return {"features": features, "embedding": self.head(features, train=train)}


def projected(
    backbone: Make, *, embed_dim: int, hidden: int = 0, depth: int = 2, init: str = "he", dtype: Any = "float32"
) -> Make:
    """A backbone with an MLP head on top, as a constructor for `functional`.

    Args:
        backbone: makes a module with `out_features` that gives [B, out_features].
        embed_dim: D. hidden: width inside the head; 0 takes the backbone's. depth: linear layers of the head.
        init: of the head, see `mlp_head`. dtype: compute dtype of the head.

    Example:
        >>> model = functional(projected(resnet(50), embed_dim=128))  # the encoder of MoCo v2

    Reference: Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning", 2020, section 3.
    """
    if min(embed_dim, depth) < 1 or hidden < 0:
        raise InputError(f"embed_dim={embed_dim}, depth={depth} must be at least 1 and hidden={hidden} not negative.")
    choose(init, INITS, "init")
    sizes: dict[str, Any] = {"embed_dim": embed_dim, "hidden": hidden, "depth": depth}
    return functools.partial(Projected, backbone=backbone, **sizes, init=init, dtype=float_dtype(dtype))


class ReluMlp(nnx.Module):
    """`relu(linear(x))` for each width, batch-normalised if asked; make it with `relu_mlp`."""

    def __init__(self, rngs: nnx.Rngs, *, widths: tuple[int, ...], batch_norm: bool, init: str, dtype: np.dtype):
        self.in_features, self.out_features = widths[0], widths[-1]
        self.layers = nnx.List(
            [
                dense(a, b, init=init, use_bias=not batch_norm, dtype=dtype, rngs=rngs)
                for a, b in itertools.pairwise(widths)
            ]
        )
        if batch_norm:
            self.norms = nnx.List([BatchNorm(width, dtype=dtype, rngs=rngs) for width in widths[1:]])

    def __call__(self, x: Array, *, train: bool = False, key: Array | None = None) -> Array:
        """[B, ...] -> [B, out_features]; everything of an example is one vector."""
        x = x.reshape(x.shape[0], -1)
        if x.shape[1] != self.in_features:
            raise InputError(f"an example has {x.shape[1]} numbers; the first of widths says {self.in_features}.")
        for layer, norm in itertools.zip_longest(self.layers, getattr(self, "norms", ())):
            x = layer(x)
            x = jax.nn.relu(x if norm is None else norm.normalize(x, train=train))
        return x


def relu_mlp(widths: Sequence[int], *, batch_norm: bool = False, init: str = "he", dtype: Any = "float32") -> Make:
    """Linear layers, each with ReLU, on flattened inputs: a backbone for small pictures.

    Args:
        widths: numbers of an example, then of each layer's output. batch_norm: between a layer and its ReLU.
        init: see `mlp_head`. dtype: compute dtype.

    Example:
        >>> model = functional(projected(relu_mlp((64, 256, 128)), embed_dim=64))
    """
    if len(widths) < 2 or min(widths) < 1:
        raise InputError(f"widths={tuple(widths)} must name the inputs and at least one layer.")
    choose(init, INITS, "init")
    return functools.partial(
        ReluMlp, widths=tuple(widths), batch_norm=batch_norm, init=init, dtype=float_dtype(dtype)
    )  # fmt: skip
