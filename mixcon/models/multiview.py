"""A backbone with heads for weak and strong views. Shapes: B batch, V strong views, D of the embedding."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make
from mixcon.models.heads import INITS, LAST_NORMS, MlpHead, l2_normalize
from mixcon.models.layers import choose, float_dtype, split_key

HEADS = ("weak", "strong", "projector", "strong_projector", "predictor")


class MultiviewTower(nnx.Module):
    """One modality's backbone, its embedding heads, and what non-contrastive losses project and predict.

    Make it with `multiview_tower`.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        backbone: Make,
        heads: Mapping[str, Mapping[str, Any]],
        regularize_weak: bool,
        dtype: np.dtype,
    ):
        self.backbone, self.regularize_weak = backbone(rngs), regularize_weak
        width = getattr(self.backbone, "out_features", 0)
        if not width:
            raise InputError(f"a backbone says how wide its output is (out_features); {type(self.backbone)} does not.")
        for name in HEADS:
            if name in heads:
                options = {"hidden": width, **heads[name]}
                inputs = heads["projector"]["out_features"] if name == "predictor" else width
                setattr(self, name, MlpHead(inputs, options.pop("out_features"), **options, dtype=dtype, rngs=rngs))

    def __call__(
        self, weak: Array, strong: Array | None = None, *, train: bool = False, key: Array | None = None
    ) -> dict[str, Array]:
        """Inputs [B,...] and [B,V,...] -> by name, of `weak` [B,D] and, where there is one, of `strong` [B,V,D].

        {weak, strong}: unit embeddings; {projected, strong_projected}: of the projector, any norm; {predicted,
        strong_predicted}: of the predictor on it. Without a predictor or projector their outputs are not there.
        """
        weak_key, strong_key = split_key(key, 2)
        backbone: Any = self.backbone
        features = backbone(weak, train=train and self.regularize_weak, key=weak_key)
        out = self._heads(features, "weak", "projector", "", train=train)
        if strong is None:
            return out
        batch, views = strong.shape[:2]
        flat = strong.reshape(batch * views, *strong.shape[2:])
        features = backbone(flat, train=train, key=strong_key)
        more = self._heads(features, "strong", "strong_projector", "strong_", train=train)
        return out | {name: x.reshape(batch, views, -1) for name, x in more.items()}

    def embed(self, x: Array, *, train: bool = False, key: Array | None = None) -> dict[str, Array]:
        """Inputs [B,...] -> {weak, strong} [B,D]: unit embeddings of the same view by both heads."""
        backbone: Any = self.backbone
        features = backbone(x, train=train, key=key)
        return {name: self._embedding(name, features, train=train) for name in ("weak", "strong")}

    def _embedding(self, name: str, features: Array, *, train: bool) -> Array:
        head: Any = getattr(self, name, None) or getattr(self, "weak", None)
        return l2_normalize(head(features, train=train))

    def _heads(self, features: Array, name: str, projector: str, prefix: str, *, train: bool) -> dict[str, Array]:
        out = {name: self._embedding(name, features, train=train)}
        project: Any = getattr(self, projector, None) or getattr(self, "projector", None)
        if project is not None:
            projected = project(features, train=train)
            out[f"{prefix}projected"] = projected.astype(jnp.float32)
            if predictor := getattr(self, "predictor", None):
                out[f"{prefix}predicted"] = predictor(projected, train=train).astype(jnp.float32)
        return out


def multiview_tower(
    backbone: Make,
    heads: Mapping[str, Mapping[str, Any]],
    *,
    regularize_weak: bool = True,
    dtype: Any = "float32",
) -> Make:
    """A backbone with heads for weak and strong views, as a constructor for `functional`.

    Args:
        backbone: makes a module with `out_features` that gives [B, out_features].
        heads: arguments of `mlp_head` without `in_features`; `hidden` is the backbone's width by default. "weak": the
            embedding of weak views; "strong": of strong ones (the same head when absent); "projector": what is
            decorrelated or predicted; "strong_projector": another one for strong views; "predictor": on top of it.
        regularize_weak: False passes weak views as in evaluation (no dropout; for backbones without batch statistics).
        dtype: compute dtype of the heads; embeddings leave in float32.

    Returns:
        A function of `nnx.Rngs` that builds the `MultiviewTower`; its further method is "embed".

    Raises:
        InputError: an unknown head, no "weak" head, a predictor without a projector, a backbone of unknown width.

    Example:
        >>> heads = {"weak": {"out_features": 64, "depth": 1}, "strong": {"out_features": 64, "depth": 3}}
        >>> model = functional(multiview_tower(relu_mlp((240, 256)), heads))

    Reference: Fini et al., "Improved baselines for vision-language pre-training", 2023, sections 3 and 4.
    """
    for name, options in heads.items():
        choose(name, HEADS, "head")
        choose(options.get("init", "he"), INITS, f"init of the {name} head")
        choose(options.get("last_norm", "learned"), LAST_NORMS, f"last_norm of the {name} head")
        if "out_features" not in options:
            raise InputError(f"the {name} head needs out_features.")
    if "weak" not in heads:
        raise InputError("heads need one that is called 'weak': the embedding that is always there.")
    if "predictor" in heads and "projector" not in heads:
        raise InputError("a predictor sits on a projector: give a head 'projector', too.")
    return functools.partial(
        MultiviewTower,
        backbone=backbone,
        heads={name: dict(options) for name, options in heads.items()},
        regularize_weak=regularize_weak,
        dtype=float_dtype(dtype),
    )
