"""Two towers, one space. Shapes: B batch, D embed_dim."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make
from mixcon.models.heads import PROJECTIONS, LogitScale, MlpHead, l2_normalize, projection
from mixcon.models.layers import choose, float_dtype, split_key


class DualEncoder(nnx.Module):
    """Image and text towers with projections and a learned logit scale; make it with `dual_encoder`."""

    def __init__(
        self,
        image: Make,
        text: Make,
        rngs: nnx.Rngs,
        *,
        embed_dim: int,
        image_projection: str,
        text_projection: str,
        logit_scale: float,
        logit_bias: float | None,
        parametrization: str,
        locked: tuple[str, ...],
        dtype: np.dtype,
    ):
        self.image, self.text, self.locked = image(rngs), text(rngs), locked
        for name, kind in (("image", image_projection), ("text", text_projection)):
            tower: Any = getattr(self, name)
            head = projection(kind, tower.out_features, embed_dim, dtype=dtype, rngs=rngs)
            if head is not None:
                setattr(self, f"{name}_projection", head)
        self.logit_scale = LogitScale(logit_scale, bias=logit_bias, parametrization=parametrization)

    def __call__(
        self,
        images: Array,
        ids: Array,
        mask: Array | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> dict[str, Array | None]:
        """Images [B,H,W,C] and token ids [B,T] -> {image [B,D], text [B,D], logit_scale [], logit_bias [] or None}.

        The embeddings are unit rows in float32; `logit_scale` is the multiplier itself, not its logarithm.
        """
        image_key, text_key = split_key(key, 2)
        scale, bias = self.logit_scale()
        return {
            "image": self.encode_image(images, train=train, key=image_key),
            "text": self.encode_text(ids, mask, train=train, key=text_key),
            "logit_scale": scale,
            "logit_bias": bias,
        }

    def encode_image(self, images: Array, *, train: bool = False, key: Array | None = None) -> Array:
        """Normalised images [B,H,W,C] -> unit embeddings [B,D], float32."""
        features = self.image(images, train=train and "image" not in self.locked, key=key)
        return self._project("image", features, train=train)

    def encode_text(
        self, ids: Array, mask: Array | None = None, *, train: bool = False, key: Array | None = None
    ) -> Array:
        """Token ids [B,T] (and mask) -> unit embeddings [B,D], float32."""
        features = self.text(ids, mask, train=train and "text" not in self.locked, key=key)
        return self._project("text", features, train=train)

    def _project(self, tower: str, features: Array, *, train: bool) -> Array:
        features = jax.lax.stop_gradient(features) if tower in self.locked else features
        head = getattr(self, f"{tower}_projection", None)
        if isinstance(head, MlpHead):
            features = head(features, train=train)
        elif head is not None:
            features = head(features)
        return l2_normalize(features)


def dual_encoder(
    image: Make,
    text: Make,
    embed_dim: int,
    *,
    image_projection: str = "linear",
    text_projection: str = "linear",
    logit_scale: float = 1 / 0.07,
    logit_bias: float | None = None,
    parametrization: str = "log",
    locked: Sequence[str] = (),
    dtype: Any = "float32",
) -> Make:
    """A dual encoder, as a constructor for `functional`.

    Args:
        image, text: tower constructors (`vit`, `resnet`, `modified_resnet`, `text_transformer`).
        embed_dim: width of the shared space.
        image_projection, text_projection: "linear" (no bias), "linear_bias", "mlp", or "none".
        logit_scale: initial multiplier of the similarities (CLIP 1/0.07, SigLIP 10).
        logit_bias: initial additive bias, None for none (SigLIP -10).
        parametrization: "log" (the logarithm is the parameter) or "temperature" (ALIGN).
        locked: towers, "image" or "text", that run as in inference and get no gradient (LiT); projections still train.
            Freeze them in the optimiser, too (`overrides=((r"^image/", {"freeze": True}),)`): no state is then kept.
        dtype: compute dtype of the projections; embeddings leave in float32.

    Returns:
        A function of `nnx.Rngs` that builds the `DualEncoder`. Its methods for `apply(method=...)` are
        "encode_image" and "encode_text".

    Raises:
        InputError: an unknown name, or numbers that do not fit together.

    Example:
        >>> model = functional(dual_encoder(
        ...     vit("Ti/8", image_size=64), text_transformer(1000, width=128, depth=2, eos_id=2), embed_dim=128))
        >>> params, extra = model.init(jax.random.key(0))
        >>> out, extra = model.apply(params, extra, images, ids, train=True, key=jax.random.key(1))
        >>> loss = clip(out["image"], out["text"], logit_scale=out["logit_scale"])
    """
    choose(image_projection, PROJECTIONS, "image_projection")
    choose(text_projection, PROJECTIONS, "text_projection")
    for tower in locked:
        choose(tower, ("image", "text"), "locked")
    if embed_dim < 1:
        raise InputError(f"embed_dim={embed_dim} must be at least 1.")
    return functools.partial(
        DualEncoder,
        image,
        text,
        embed_dim=embed_dim,
        image_projection=image_projection,
        text_projection=text_projection,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        parametrization=parametrization,
        locked=tuple(locked),
        dtype=float_dtype(dtype),
    )
