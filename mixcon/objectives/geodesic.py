"""Contrast with mixtures on the sphere: across the modalities, within them, and all together (m2-Mix, m3-Mix).

Shapes: B pairs, D features. Partners are places in the whole batch; the default is the batch in reverse.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError, nearest
from mixcon.mixers.embedding import slerp
from mixcon.objectives.batch import (
    LossOrAux,
    Metrics,
    accumulator,
    batch_mean,
    batch_sum,
    gather,
    global_size,
    row_dot,
    same_shape,
    unit_rows,
    with_aux,
)
from mixcon.objectives.clip import clip
from mixcon.ops import Impl, checks, pairs

TERMS = ("m2", "image", "text", "both")


def m2mix(
    image: Array,
    text: Array,
    lam: ArrayLike,
    *,
    logit_scale: ArrayLike,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """Pairs against negatives from between the modalities: every pair mixed along its geodesic.

    `n_j = geodesic(x_j, y_j; λ)`; `ℓ(q, p)_i = -log( e^{s q_i·p_i} / (e^{s q_i·p_i} + Σ_{j≠i} e^{s q_i·n_j}) )`;
    `loss = mean_i ℓ(x, y)_i + mean_i ℓ(y, x)_i`, a sum of both directions. The gradient goes through the mixtures.

    Args:
      image, text: x, y [B, D] unit rows, B ≥ 2.
      lam: λ in [0, 1], share of the image, scalar or [B]; 1 takes images as negatives, 0 texts.
      logit_scale: s, the multiplier itself (1/temperature), a scalar.
      normalize: divide rows by their norm first. impl, axis_name: see `mixcon.ops.pair_reduce`.
      has_aux: return (loss, metrics) too.

    Returns:
      Scalar; with `has_aux` also `negative_cosine` (mean cosine of images and texts with the mixtures of other pairs)
      and `unmixed_negative_cosine` (of images with other texts): what the mixing adds in hardness.

    Raises:
      InputError: other shapes, fewer than two pairs, λ outside [0, 1], a scale not above zero, rows not of unit length.

    Example:
      >>> loss = clip(x, y, logit_scale=100.0) + 0.01 * m2mix(x, y, 0.5, logit_scale=1 / 0.07)

    Reference: Oh et al., "Geodesic Multi-Modal Mixup for Robust Fine-Tuning", 2023, eq. 4 and 5.
    """
    image, text = _paired(image, text, normalize, axis_name)
    checks.positive("logit_scale", logit_scale)
    scale = jnp.asarray(logit_scale, accumulator(image))
    mixed = slerp(image, text, _share(lam, image))
    own = scale * row_dot(image, text)

    def against_mixed(queries: Array) -> Array:
        others, _ = ops.pair_statistics(
            queries, mixed, scale=scale, denominator=pairs.not_self(), impl=impl, axis_name=axis_name
        )
        return batch_mean(jnp.logaddexp(others.log_denominator, own) - own, axis_name)

    loss = against_mixed(image) + against_mixed(text)
    if not has_aux:
        return loss
    both = (_other_cosine(image, mixed, axis_name) + _other_cosine(text, mixed, axis_name)) / 2
    hardness = {"negative_cosine": both, "unmixed_negative_cosine": _other_cosine(image, text, axis_name)}
    return with_aux(loss, hardness)


def vlmix(
    image: Array,
    text: Array,
    lam: ArrayLike,
    *,
    logit_scale: ArrayLike,
    mixed: str = "both",
    partner: ArrayLike | None = None,
    original_negatives: bool = False,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """Pairs mixed with other pairs: in the images (V-Mix), in the texts (L-Mix), or in both alike (VL-Mix).

    `x̃_i = geodesic(x_i, x_σ(i); λ)`, `L = s x̃ yᵀ`, `T_ii = λ`, `T_iσ(i) += 1-λ` for "image";
    "text" is the same of texts, with images for y; for "both" `L = s x̃ ỹᵀ`, `T_ii = 1`, `T_iσ(i) += 1`: the equally
    mixed pair and its partner's are both positives, and rows of targets sum to 2, whatever λ is;
    `loss = ½ [mean_i -Σ_j T_ij log softmax_j(L_ij) + mean_j -Σ_i T_ij log softmax_i(L_ij)]`.

    Args:
      image, text: [B, D] unit rows, B ≥ 2. lam: λ in [0, 1], scalar or [B].
      logit_scale: s, the multiplier itself. mixed: see above.
      partner: σ [B], a permutation; the batch in reverse by default.
      original_negatives: where the target is zero, the logit is that of the pair as it was.
      normalize: divide rows by their norm first. impl, axis_name: see `mixcon.ops.pair_reduce`; σ is of the whole batch
        there, too, and the features of all devices are gathered once.

    Returns:
      Scalar.

    Raises:
      InputError: as for `m2mix`; a partner that is no permutation, an unknown `mixed`.

    Example:
      >>> loss = vlmix(x, y, 0.3, logit_scale=1 / 0.07, mixed="image")

    Reference: Oh et al., 2023, section 3.3.
    """
    if mixed not in ("image", "text", "both"):
        raise InputError(f"mixed must be 'image', 'text' or 'both', got {mixed!r}.")
    image, text = _paired(image, text, normalize, axis_name)
    checks.positive("logit_scale", logit_scale)
    scale, share = jnp.asarray(logit_scale, accumulator(image)), _share(lam, image)
    position, other = _partners(partner, len(image), axis_name)
    first, second = (text, image) if mixed == "text" else (image, text)  # the loss is the same transposed
    x = slerp(first, gather(first, axis_name)[other], share)
    y = slerp(second, gather(second, axis_name)[other], share) if mixed == "both" else second
    own, rest = (jnp.ones_like(share), jnp.ones_like(share)) if mixed == "both" else (share, 1 - share)
    placement: dict[str, Any] = {"symmetric": True, "scale": scale, "impl": impl, "axis_name": axis_name}
    if not original_negatives:
        target = pairs.slots(jnp.stack([position, other], 1), jnp.stack([own, rest], 1))
        rows, cols = ops.contrastive_cross_entropy(x, y, positives=target, normalize_targets=False, **placement)
        assert cols is not None  # symmetric
        return (batch_mean(rows.loss, axis_name) + batch_mean(cols.loss, axis_name)) / 2

    # Only pairs with a target are mixed: two logits of each row, beside a softmax over the rest as it was.
    targeted = pairs.identity() | pairs.same_label(other, position)
    row, col = ops.pair_statistics(first, second, denominator=~targeted, **placement)
    assert col is not None  # symmetric
    straight = scale * row_dot(x, y)
    cross = scale * row_dot(x, gather(y, axis_name)[other])  # L_iσ(i)
    back = jnp.argsort(gather(other, axis_name))[position]  # whose partner j is: that row holds the logit of column j
    # A pair that is its own partner has one logit, and both shares of the target.
    counted = jnp.where(other == position, -jnp.inf, cross)
    of_rows = (counted, rest, rest * cross)
    ways = ((row, of_rows), (col, tuple(gather(values, axis_name)[back] for values in of_rows)))
    losses = [
        (own + weight) * jnp.logaddexp(jnp.logaddexp(side.log_denominator, straight), crossing) - own * straight - pull
        for side, (crossing, weight, pull) in ways
    ]
    return (batch_mean(losses[0], axis_name) + batch_mean(losses[1], axis_name)) / 2


def m3mix(
    image: Array,
    text: Array,
    lams: Mapping[str, ArrayLike],
    *,
    weights: Mapping[str, float],
    logit_scale: ArrayLike,
    m2_logit_scale: ArrayLike | None = None,
    factor: ArrayLike = 1.0,
    partner: ArrayLike | None = None,
    original_negatives: bool = False,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """CLIP and any of the geodesic mixtures: `L_clip + c Σ_k w_k L_k` over "m2", "image" (V), "text" (L), "both" (VL).

    Args:
      image, text: [B, D] unit rows, B ≥ 2.
      lams: λ of each term that has a weight, see `sample_lams`. weights: w by term; at 0 it is left out.
      logit_scale: s. m2_logit_scale: of m2-Mix alone; the same by default.
      factor: c, such as 1/(epoch + 1).
      partner, original_negatives: of the terms within a modality, see `vlmix`.
      normalize, impl, axis_name, has_aux: as for `m2mix`.

    Returns:
      Scalar; with `has_aux` also `clip_loss`, `mix_loss` (Σ w L, without c), `<term>_loss`, and m2-Mix's own metrics.

    Raises:
      InputError: as for the terms; an unknown term, a weight below zero, a term with a weight and no λ.

    Example:
      >>> lams = sample_lams(key, {"m2": 0.5})
      >>> loss = m3mix(x, y, lams, weights={"m2": 0.01}, logit_scale=100.0, m2_logit_scale=1 / 0.07)

    Reference: Oh et al., 2023, section 3.3.
    """
    for name in (*weights, *lams):
        if name not in TERMS:
            raise InputError(f"there is no mixture {name!r}; {nearest(name, TERMS)}")
    used = {name: float(weight) for name, weight in weights.items() if weight}
    if bad := [name for name, weight in used.items() if weight < 0 or name not in lams]:
        raise InputError(
            f"weights: {bad[0]!r} needs a weight that is not negative and a λ; got {dict(weights)}, {lams}."
        )
    image, text = unit_rows("image", image, normalize), unit_rows("text", text, normalize)
    placement: dict[str, Any] = {"impl": impl, "axis_name": axis_name}
    within: dict[str, Any] = {"logit_scale": logit_scale, "partner": partner, "original_negatives": original_negatives}
    loss = clip(image, text, logit_scale=logit_scale, **placement)
    mix = jnp.zeros_like(loss)
    metrics: Metrics = {"clip_loss": loss}
    for name, weight in used.items():
        if name == "m2":
            scale = logit_scale if m2_logit_scale is None else m2_logit_scale
            term, hardness = m2mix(image, text, lams[name], logit_scale=scale, has_aux=True, **placement)
            metrics |= hardness
        else:
            term = vlmix(image, text, lams[name], mixed=name, **within, **placement)
        metrics[f"{name}_loss"] = term
        mix = mix + weight * term
    loss = loss + jnp.asarray(factor, loss.dtype) * mix
    return with_aux(loss, metrics | {"mix_loss": mix}) if has_aux else loss


def geodesic_mixup(
    image: Array,
    text: Array,
    *,
    key: Array,
    logit_scale: ArrayLike,
    weights: Mapping[str, float],
    concentration: Mapping[str, float],
    m2_logit_scale: ArrayLike | None = None,
    epoch: ArrayLike = 0,
    fading: bool = True,
    logit_bias: ArrayLike | None = None,
    original_negatives: bool = False,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """`m3mix` as it is trained with: one λ a step and term, drawn here, and mixtures that fade, `c = 1/(epoch + 1)`.

    Args:
      key: of this step. concentration: α of `λ ~ Beta(α, α)` by term.
      epoch: counts from 0. fading: False keeps c = 1.
      logit_bias: the softmaxes are invariant to it. For the others see `m3mix`.

    Example:
      >>> loss = geodesic_mixup(x, y, key=key, logit_scale=100.0, weights={"m2": 0.01}, concentration={"m2": 0.5})

    Reference: Oh et al., 2023.
    """
    missing = [name for name, weight in weights.items() if weight and name not in concentration]
    if missing:
        raise InputError(f"concentration: {missing[0]!r} has a weight and no α; got {dict(concentration)}.")
    lams = sample_lams(key, {name: concentration[name] for name, weight in weights.items() if weight})
    dtype = accumulator(image)
    return m3mix(
        image,
        text,
        lams,
        weights=weights,
        logit_scale=logit_scale,
        m2_logit_scale=m2_logit_scale,
        factor=1 / (jnp.asarray(epoch, dtype) + 1) if fading else 1.0,
        original_negatives=original_negatives,
        normalize=normalize,
        impl=impl,
        axis_name=axis_name,
        has_aux=has_aux,
    )


def sample_lams(key: Array, concentration: Mapping[str, float]) -> dict[str, Array]:
    """One `λ ~ Beta(α, α)` for each term, independent of each other; which other terms there are does not matter.

    Example:
      >>> sorted(sample_lams(jax.random.key(0), {"m2": 0.5, "both": 0.5}))
      ['both', 'm2']
    """
    for name, alpha in concentration.items():
        if name not in TERMS:
            raise InputError(f"there is no mixture {name!r}; {nearest(name, TERMS)}")
        checks.positive(f"concentration of {name!r}", alpha)
    # All terms in one draw: the sampler is a program of its own size, and would be compiled for each.
    alphas = jnp.asarray([concentration.get(name, 1.0) for name in TERMS], jnp.float32)
    draws = jax.vmap(lambda key, a: jax.random.beta(key, a, a))(jax.random.split(key, len(TERMS)), alphas)
    draws = jnp.clip(draws, 0.0, 1.0)  # of small α they may leave the interval by a rounding
    return {name: draws[TERMS.index(name)] for name in concentration}


def _partners(partner: ArrayLike | None, size: int, axis_name: str | None) -> tuple[Array, Array]:
    """Places in the whole batch of this device's pairs and of their partners, int32 [B]."""
    position = jnp.arange(size, dtype=jnp.int32)
    if axis_name is not None:
        position = position + (lax.axis_index(axis_name) * size).astype(jnp.int32)
    if partner is None:
        return position, global_size(size, axis_name) - 1 - position
    other = jnp.asarray(partner)
    if other.shape != (size,):
        raise InputError(f"partner must be [{size}], one for each pair, got shape {other.shape}.")
    if axis_name is None:
        checks.permutation("partner", other)
    return position, other.astype(jnp.int32)


def _paired(image: Array, text: Array, normalize: bool, axis_name: str | None) -> tuple[Array, Array]:
    same_shape("image", image, "text", text)
    image, text = unit_rows("image", image, normalize), unit_rows("text", text, normalize)
    if global_size(len(image), axis_name) < 2:
        raise InputError("mixtures need another pair: the batch must hold at least two.")
    return image, text


def _share(lam: ArrayLike, rows: Array) -> Array:
    """λ for every row [B]."""
    checks.unit_interval("lam", lam)
    share = jnp.asarray(lam, accumulator(rows))
    if share.ndim > 1 or (share.ndim and len(share) != len(rows)):
        raise InputError(f"lam must be a scalar or one for each of {len(rows)} pairs, got shape {share.shape}.")
    return jnp.broadcast_to(share, rows.shape[:1])


def _other_cosine(queries: Array, keys: Array, axis_name: str | None) -> Array:
    """Mean cosine of a query with the keys of others: from sums, without a pair."""
    queries, keys = queries.astype(accumulator(queries)), keys.astype(accumulator(keys))
    count = global_size(len(queries), axis_name)
    everything = jnp.dot(batch_sum(queries, axis_name), batch_sum(keys, axis_name))
    return (everything - batch_sum(row_dot(queries, keys), axis_name)) / (count * (count - 1))
