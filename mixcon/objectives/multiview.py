"""Images and texts in one weak and several strong views: CLIP over all of them, and what may be added to it.

`multiview_clip` is the improved CLIP recipe. `barlip`, `siamlip` and `swalip` are terms that are added to it, or to
`clip`: feature decorrelation, prediction of the other modality (with a momentum teacher: BYOL-LIP), swapped assignment.

Pairs of views are taken one after the other (`lax.map`): one program and the memory of one.

Shapes: B pairs, V strong views, D features, K prototypes.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import (
    LossOrAux,
    Metrics,
    accumulator,
    batch_mean,
    l2_normalize,
    row_dot,
    same_shape,
    with_aux,
)
from mixcon.objectives.clip import both_ways, checked_pairs, clip
from mixcon.objectives.redundancy import barlow_twins
from mixcon.ops import Impl, checks


class PairedViews(NamedTuple):
    """What a pair of towers says of a batch: of the weak view, and of V strong ones (none of both: only the weak)."""

    image: Array  # [B, D]
    text: Array  # [B, D]
    image_views: Array | None = None  # [B, V, D]
    text_views: Array | None = None  # [B, V, D]

    def strong(self) -> tuple[Array, Array] | None:
        """All V·V pairs of an image view with a text view, [V·V, B, D] each; refuses different numbers of them."""
        a, b = self.image_views, self.text_views
        if a is None and b is None:
            return None
        if a is None or b is None or a.ndim != 3 or a.shape[:2] != b.shape[:2] or len(a) != len(self.image):
            shapes = [None if x is None else x.shape for x in (a, b)]
            raise InputError(
                f"image_views and text_views must both be [B, V, D] with one V, beside {self.image.shape[0]} pairs; "
                f"got {shapes[0]} and {shapes[1]}."
            )
        count = a.shape[1]
        a, b = jnp.swapaxes(a, 0, 1), jnp.swapaxes(b, 0, 1)
        return (jnp.repeat(a, count, axis=0), jnp.tile(b, (count, 1, 1))) if count else None

    def every(self) -> tuple[Array, Array]:
        """The weak pair and all of `strong`, [1 + V·V, B, D] each."""
        strong = self.strong()
        if strong is None:
            return self.image[None], self.text[None]
        return jnp.concatenate([self.image[None], strong[0]]), jnp.concatenate([self.text[None], strong[1]])


def multiview_clip(
    views: PairedViews,
    *,
    logit_scale: ArrayLike,
    view_logit_scale: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
    normalize: bool = False,
    stop_gradient_gathered: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
    has_aux: bool = False,
) -> LossOrAux:
    """CLIP of the weak views and of every pair of strong ones: the improved recipe (CL2L).

    `[clip(x, y; s, 0) + V · mean_uv clip(x_u, y_v; s', ε)] / (1 + V)`; without strong views this is `clip`.

    Args:
      views: unit rows; row i of all belongs to one pair. Strong views may have another number of features.
      logit_scale, view_logit_scale: s and s', multipliers of the cosines of weak and strong views; s' defaults to s.
      label_smoothing: ε of the strong views. The weak ones are not smoothed.
      reduction: over the two directions, see `clip`.
      normalize, impl, axis_name: as for `clip`.
      stop_gradient_gathered: candidates are constants, as in the paper's distributed runs, see `clip`.
      has_aux: return (loss, metrics) too.

    Returns:
      Scalar; with `has_aux` also `{weak,strong}/loss_{image_to_text,text_to_image}`, and what else `clip` says of the
      weak views.

    Raises:
      InputError: numbers of views that differ, or as for `clip`.

    Example:
      >>> views = PairedViews(z_image, z_text, h_images, h_texts)
      >>> loss = multiview_clip(views, logit_scale=1 / 0.07, view_logit_scale=10.0, label_smoothing=0.1)

    Reference: Fini, Astolfi, Romero-Soriano, Verbeek, Drozdzal, "Improved baselines for vision-language pre-training",
      2023, section 4; the average as in its released code.
    """
    strong = views.strong()
    shared: dict[str, Any] = dict(stop_gradient_gathered=stop_gradient_gathered, impl=impl, axis_name=axis_name)
    weak = dict(logit_scale=logit_scale, reduction=reduction, normalize=normalize, has_aux=has_aux, **shared)
    found = clip(views.image, views.text, **weak)
    loss, metrics = found if has_aux else (found, {})
    metrics = {f"weak/{name}" if name.startswith("loss") else name: value for name, value in metrics.items()}
    if strong is not None:
        dtype = accumulator(views.image)
        scale = jnp.asarray(logit_scale if view_logit_scale is None else view_logit_scale, dtype)
        smoothed = dict(label_smoothing=label_smoothing, **shared)

        def of_pair(pair: tuple[Array, Array]) -> Metrics:
            return both_ways(*checked_pairs(*pair, normalize), scale, jnp.zeros((), dtype), **smoothed)

        found = {name: value.mean() for name, value in lax.map(of_pair, strong).items()}
        more = sum(found.values()) / (2 if reduction == "mean" else 1)
        count = round(len(strong[0]) ** 0.5)
        loss = (loss + count * more) / (1 + count)
        metrics |= {f"strong/{name}": value for name, value in found.items()}
    return with_aux(loss, metrics) if has_aux else loss


def barlip(
    projections: PairedViews,
    *,
    off_diagonal_weight: ArrayLike = 5e-3,
    scale: ArrayLike = 0.025,
    axis_name: str | None = None,
) -> Array:
    """Barlow Twins between an image and its text, the mean over the weak pair and all pairs of strong views.

    `C = vᵀw / B`; `κ [Σ_k (1 - C_kk)² + λ Σ_{k≠l} C_kl²]`.

    Args:
      projections: outputs of projectors that end in a batch normalisation: nothing is standardised here.
      off_diagonal_weight: λ. scale: κ. axis_name: C is of the whole batch.

    Returns:
      Scalar, to be added to `multiview_clip`.

    Raises:
      InputError: shapes that differ.

    Example:
      >>> loss = multiview_clip(views, logit_scale=s) + barlip(projections)

    Reference: Fini et al. 2023, section 3.
    """
    options: dict[str, Any] = dict(off_diagonal_weight=off_diagonal_weight, scale=scale, axis_name=axis_name)
    return lax.map(lambda pair: barlow_twins(*pair, standardize=False, **options), projections.every()).mean()


def negative_cosine(prediction: Array, target: Array, *, axis_name: str | None = None) -> Array:
    """`2 - 2 mean_i cos(p_i, v_i)`, in which v is a constant: the loss of BYOL and SimSiam.

    Args:
      prediction, target: [B, D], of any norm; a zero row has cosine 0. axis_name: the mean is of the whole batch.

    Returns:
      Scalar in [0, 4].

    Raises:
      InputError: shapes that differ.

    Example:
      >>> loss = (negative_cosine(p[0], v[1]) + negative_cosine(p[1], v[0])) / 2

    Reference: Grill et al., "Bootstrap Your Own Latent", 2020, eq. 2; Chen, He, "Exploring Simple Siamese
      Representation Learning", 2021, eq. 1 (up to a constant and a factor).
    """
    same_shape("prediction", prediction, "target", target)
    target = lax.stop_gradient(target)
    dtype = accumulator(prediction)
    cosine = row_dot(l2_normalize(prediction.astype(dtype)), l2_normalize(target.astype(dtype)))
    return 2 - 2 * batch_mean(cosine, axis_name)


def siamlip(predictions: PairedViews, targets: PairedViews, *, axis_name: str | None = None) -> Array:
    """Each modality predicts the other: the mean `negative_cosine` over the weak pair and all pairs of strong views.

    `(1 / (2 + 2V²)) Σ_pairs [ncs(p_image, v_text) + ncs(p_text, v_image)]`. With targets of a momentum copy of the
    model on the same inputs (`train.gradients.ema_teacher`) it is BYOL-LIP.

    Args:
      predictions: of the predictors. targets: of the projectors (SiamLIP) or of the copy's (BYOL-LIP); constants.
      axis_name: means are of the whole batch.

    Returns:
      Scalar, to be added to `multiview_clip`.

    Raises:
      InputError: shapes that differ.

    Example:
      >>> loss = multiview_clip(views, logit_scale=s) + siamlip(predictions, projections)

    Reference: Fini et al. 2023, section 3.
    """
    predicted, wanted = predictions.every(), targets.every()
    if len(predicted[0]) != len(wanted[0]):
        raise InputError(f"predictions have {len(predicted[0])} pairs of views, targets {len(wanted[0])}.")

    def of_pair(pairs: tuple[tuple[Array, Array], tuple[Array, Array]]) -> Array:
        (p_image, p_text), (v_image, v_text) = pairs
        return negative_cosine(p_image, v_text, axis_name=axis_name) + negative_cosine(
            p_text, v_image, axis_name=axis_name
        )

    return lax.map(of_pair, (predicted, wanted)).mean() / 2


def swalip(
    views: PairedViews,
    *,
    logit_scale: ArrayLike,
    epsilon: float = 0.05,
    num_iters: int = 3,
    normalize: bool = False,
    stop_gradient_gathered: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Array:
    """Swapped assignment without prototypes: the other modality's batch takes their place.

    With `Q(x, y)` the even assignment of the rows of x to those of y (`sinkhorn_pairs`), and views u, v in {0, 1}:
    `(1/8) Σ_uv [H(Q(x_{1-u}, y_{1-v}), s x_u·y_v) + H(Q(y_{1-u}, x_{1-v}), s y_u·x_v)]`, H the mean cross-entropy.
    Targets are rebuilt tile by tile, so that no batch × batch matrix exists.

    Args:
      views: unit rows, two strong views of each modality. Beside it label smoothing makes no sense: the targets of
        this loss are soft already.
      logit_scale: s, that of the strong views. epsilon, num_iters: of the assignment.
      normalize, stop_gradient_gathered, impl, axis_name: as for `clip`.

    Returns:
      Scalar, to be added to `multiview_clip`; the paper weighs it by 0.2.

    Raises:
      InputError: another number of views than two.

    Example:
      >>> loss = multiview_clip(views, logit_scale=s, view_logit_scale=t) + 0.2 * swalip(views, logit_scale=t)

    Reference: Fini et al. 2023, section 3; without prototypes as in its released code.
    """
    strong = views.strong()
    if strong is None or len(strong[0]) != 4:
        raise InputError("swalip swaps two strong views of each modality, image_views and text_views [B, 2, D].")
    checks.positive("logit_scale", logit_scale)
    image, text = (l2_normalize(x) for x in strong) if normalize else strong
    scale = jnp.asarray(logit_scale, accumulator(image))
    shared: dict[str, Any] = dict(impl=impl, axis_name=axis_name)

    def of_pair(pair: tuple[Array, Array, Array, Array]) -> Array:
        anchors, candidates, *opposite = pair
        target = ops.sinkhorn_pairs(*opposite, epsilon=epsilon, num_iters=num_iters, **shared)
        fixed = lax.stop_gradient(candidates) if stop_gradient_gathered else candidates
        found = ops.contrastive_cross_entropy(anchors, fixed, scale=scale, positives=target, **shared)
        return batch_mean(found.rows.loss, axis_name)

    # Pairs come as 00, 01, 10, 11: backwards, each is beside its opposite. Both modalities are anchors in turn.
    first, second = jnp.concatenate([image, text]), jnp.concatenate([text, image])
    opposite = (jnp.concatenate([x[::-1], y[::-1]]) for x, y in ((image, text), (text, image)))
    return lax.map(of_pair, (first, second, *opposite)).mean()


def swapped_assignment(
    image_scores: Array,
    text_scores: Array,
    *,
    logit_scale: ArrayLike = 10.0,
    targets: tuple[Array, Array] | None = None,
    epsilon: float = 0.05,
    num_iters: int = 3,
    axis_name: str | None = None,
) -> Array:
    """Each view predicts the other's even assignment to prototypes (SwAV; between image and text SwALIP's first form).

    `½ [H(Q(p_text), s p_image) + H(Q(p_image), s p_text)]`, Q = `sinkhorn_knopp`, H the mean cross-entropy.

    Args:
      image_scores, text_scores: [B, K] cosines with the prototypes. logit_scale: s = 1/temperature.
      targets: scores that the assignments are made of, such as a momentum copy's; those that predict by default.
      epsilon, num_iters: of the assignment. axis_name: columns and means are of the whole batch.

    Returns:
      Scalar.

    Raises:
      InputError: shapes that differ, a scale not above zero.

    Example:
      >>> loss = swapped_assignment(prototypes(image), prototypes(text))

    Reference: Caron et al. 2020, eq. 2; Fini et al. 2023, section 3.
    """
    same_shape("image_scores", image_scores, "text_scores", text_scores)
    checks.positive("logit_scale", logit_scale)
    dtype = accumulator(image_scores)
    made_of = (image_scores, text_scores) if targets is None else targets
    assigned = [ops.sinkhorn_knopp(t, epsilon=epsilon, num_iters=num_iters, axis_name=axis_name) for t in made_of]
    losses = []
    for scores, target in zip((image_scores, text_scores), reversed(assigned), strict=True):
        same_shape("scores", scores, "targets", target)
        log_probability = jax.nn.log_softmax(jnp.asarray(logit_scale, dtype) * scores.astype(dtype), axis=1)
        losses.append(-batch_mean((target * log_probability).sum(1), axis_name))
    return (losses[0] + losses[1]) / 2
