"""Contrast with learned class proxies instead of other samples: [B, C] similarities, linear in the batch."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import accumulator, all_devices, batch_logsumexp, batch_mean, unit_rows
from mixcon.objectives.metric import log1p_exp
from mixcon.objectives.supervised import class_labels
from mixcon.ops import checks


def proxy_nca(
    features: Array,
    labels: ArrayLike,
    proxies: Array,
    *,
    scale: ArrayLike = 1.0,
    include_positive: bool = False,
    normalize: bool = False,
    axis_name: str | None = None,
) -> Array:
    """Each sample nearer to the proxy of its class than to the others.

    `loss = mean_i -log[ exp(-s d²(x_i, p_{y_i})) / Σ_{c≠y_i} exp(-s d²(x_i, p_c)) ]`, d² between unit rows; with
    `include_positive` the sum runs over all classes (a normalised softmax).

    Args:
      features: [B, D] unit rows. labels: [B] classes in [0, C). proxies: [C, D] unit rows, trained with the model.
      scale: s > 0. normalize: divide rows of both by their norm first.
      axis_name: features and labels are this device's, proxies the same everywhere.

    Returns:
      Scalar, unbounded below unless `include_positive`.

    Raises:
      InputError: labels of the wrong length or outside the classes, one class only, rows not of unit length (outside
        jit).

    Example:
      >>> loss = proxy_nca(features, labels, params["proxies"], normalize=True)

    Reference: Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", 2017, eq. 4; Teh, DeVries,
      Taylor, "ProxyNCA++", 2020, for the normalised form.
    """
    logits, own = _logits(features, labels, proxies, normalize, scale)
    others = logits if include_positive else jnp.where(own, -jnp.inf, logits)
    positive = jnp.sum(jnp.where(own, logits, 0), axis=1)
    # On the unit sphere -d² = 2 S - 2, and the constant cancels.
    return batch_mean(jax.nn.logsumexp(2 * others, axis=1) - 2 * positive, axis_name)


def proxy_anchor(
    features: Array,
    labels: ArrayLike,
    proxies: Array,
    *,
    scale: ArrayLike = 32.0,
    margin: ArrayLike = 0.1,
    normalize: bool = False,
    axis_name: str | None = None,
) -> Array:
    """Each proxy an anchor: pulls the samples of its class, the hardest most, and pushes the others.

    `loss = (1/|P⁺|) Σ_{p∈P⁺} log[1 + Σ_{x∈X_p⁺} exp(-α(S_xp - δ))] + (1/|P|) Σ_p log[1 + Σ_{x∈X_p⁻} exp(α(S_xp + δ))]`,
    P⁺ the proxies whose class is in the batch.

    Args:
      features: [B, D] unit rows. labels: [B] classes in [0, C). proxies: [C, D] unit rows, trained with the model.
      scale: α > 0. margin: δ. normalize: divide rows of both by their norm first.
      axis_name: features and labels are this device's, proxies the same everywhere.

    Returns:
      Scalar.

    Raises:
      InputError: as for `proxy_nca`.

    Example:
      >>> loss = proxy_anchor(features, labels, params["proxies"], normalize=True)

    Reference: Kim, Kim, Cho, Kwak, "Proxy Anchor Loss for Deep Metric Learning", 2020, eq. 4.
    """
    similarity, own = _logits(features, labels, proxies, normalize, 1.0)
    alpha, delta = (jnp.asarray(value, similarity.dtype) for value in (scale, margin))
    checks.positive("scale", scale)
    pull = batch_logsumexp(jnp.where(own, -alpha * (similarity - delta), -jnp.inf), axis_name)
    push = batch_logsumexp(jnp.where(own, -jnp.inf, alpha * (similarity + delta)), axis_name)
    present = all_devices(own.sum(0), axis_name) > 0
    pulled = jnp.sum(log1p_exp(pull)) / jnp.maximum(present.sum(dtype=pull.dtype), 1)
    return pulled + jnp.mean(log1p_exp(push))


def _logits(
    features: Array, labels: ArrayLike, proxies: Array, normalize: bool, scale: ArrayLike
) -> tuple[Array, Array]:
    """Scaled similarities and class membership [B, C]."""
    labels = class_labels(labels, features.shape[0])
    features, proxies = unit_rows("features", features, normalize), unit_rows("proxies", proxies, normalize)
    checks.features(features, proxies)
    checks.positive("scale", scale)
    count = proxies.shape[0]
    if count < 2:
        raise InputError("proxies hold one class: there is nothing to tell apart.")
    known = checks.concrete(labels)
    if known is not None and (known.min() < 0 or known.max() >= count):
        raise InputError(f"labels must be in [0, {count}), one proxy each; got {known.min()} .. {known.max()}.")
    own = labels[:, None] == jnp.arange(count, dtype=labels.dtype)[None, :]
    return ops.similarity(features, proxies) * jnp.asarray(scale, accumulator(features)), own
