"""Several modalities of one example, classified together and each on its own. B batch, K classes."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make
from mixcon.models.heads import mlp_head
from mixcon.models.layers import split_key


class MultimodalClassifier(nnx.Module):
    """An encoder for each modality, a head over all embeddings, and one over each; see `multimodal_classifier`."""

    def __init__(self, encoders: Mapping[str, Make], rngs: nnx.Rngs, *, unimodal: bool, head: Mapping[str, Any]):
        towers: dict[str, Any] = {name: make(rngs) for name, make in encoders.items()}
        self.names = tuple(towers)
        self.encoders = nnx.Dict(towers)
        widths = {name: tower.out_features for name, tower in towers.items()}
        if unimodal:
            self.heads = nnx.Dict({name: mlp_head(width, **head)(rngs) for name, width in widths.items()})
        self.fusion = mlp_head(sum(widths.values()), **head)(rngs)
        self.unimodal = unimodal

    def __call__(
        self, inputs: Mapping[str, Array], *, train: bool = False, key: Array | None = None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Inputs by modality -> (embeddings [B,D] by modality, logits [B,K] of "fusion" and of each modality)."""
        embeddings = self.encode(inputs, train=train, key=key)
        return embeddings, self.classify(embeddings, train=train)

    def encode(self, inputs: Mapping[str, Array], *, train: bool = False, key: Array | None = None) -> dict[str, Array]:
        """Inputs by modality -> embeddings [B,D], float32 and of any length; those of other names are not read."""
        if missing := [name for name in self.names if name not in inputs]:
            raise InputError(
                f"modality {missing[0]!r} is missing: the classifier needs {', '.join(self.names)} of every example, "
                f"and was given {', '.join(inputs) or 'nothing'}."
            )
        keys = dict(zip(self.names, split_key(key, len(self.names)), strict=True))
        encoders = dict(self.encoders)
        return {
            name: encoders[name](inputs[name], train=train, key=keys[name]).astype(jnp.float32) for name in self.names
        }

    def classify(
        self, embeddings: Mapping[str, Array], *, train: bool = False, key: Array | None = None
    ) -> dict[str, Array]:
        """Embeddings of all modalities -> logits [B,K], float32: "fusion", and one entry for each unimodal head."""
        together = jnp.concatenate([embeddings[name] for name in self.names], axis=-1)
        logits = {"fusion": self.fusion(together, train=train).astype(jnp.float32)}
        if self.unimodal:
            logits |= {
                name: head(embeddings[name], train=train).astype(jnp.float32) for name, head in self.heads.items()
            }
        return logits


def multimodal_classifier(
    encoders: Mapping[str, Make],
    *,
    num_classes: int,
    hidden: int,
    head_depth: int = 2,
    unimodal: bool = True,
    init: str = "xavier",
    dtype: Any = "float32",
) -> Make:
    """Encoders and heads of several modalities, as a constructor for `functional`.

    The fusion head sees the embeddings of all modalities beside each other. Unimodal heads are for training: they make
    each encoder good on its own; at inference "fusion" counts.

    Args:
        encoders: constructors of modules with `out_features`, by modality: `mlp_head`, `vit`, `text_transformer`, ...
        num_classes: K.
        hidden: width of the heads' hidden layers. head_depth: linear layers of each.
        unimodal: have a head on each modality, too.
        init: of the heads, see `mlp_head`.
        dtype: compute dtype of the heads.

    Returns:
        A function of `nnx.Rngs` that builds the `MultimodalClassifier`. Its methods for `apply(method=...)` are
        "encode" and "classify".

    Raises:
        InputError: no encoder, fewer than two classes, a modality called "fusion", an unknown name.

    Example:
        >>> tower = mlp_head(200, 64, hidden=64, init="xavier")
        >>> model = functional(multimodal_classifier({"rna": tower, "dna": tower}, num_classes=2, hidden=64))

    Reference: Kumar et al., "Harnessing Shared Relations via Multimodal Mixup Contrastive Learning for Multimodal
        Classification", 2025.
    """
    if not encoders or "fusion" in encoders or num_classes < 2:
        raise InputError(
            f"want one encoder or more, none called 'fusion', and two classes or more; got {list(encoders)} and "
            f"num_classes={num_classes}."
        )
    head = {"out_features": num_classes, "hidden": hidden, "depth": head_depth, "init": init, "dtype": dtype}
    mlp_head(1, **head)  # refuses what no head can be built of
    return functools.partial(MultimodalClassifier, dict(encoders), unimodal=unimodal, head=head)
