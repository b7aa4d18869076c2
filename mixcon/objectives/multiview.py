"""Images and texts in one weak and several strong views: CLIP over all of them, and what may be added to it.

`multiview_clip` is the improved CLIP recipe. `barlip`, `siamlip` and `swalip` are terms that are added to it, or to
`clip`: feature decorrelation, prediction of the other modality (with a momentum teacher: BYOL-LIP), swapped assignment.

Shapes: B pairs, V strong views, D features, K prototypes.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import LossOrAux, accumulator, batch_mean, l2_normalize, row_dot, same_shape, with_aux
from mixcon.objectives.clip import clip
from mixcon.objectives.redundancy import barlow_twins
from mixcon.ops import Impl, checks


class PairedViews(NamedTuple):
    """What a pair of towers says of a batch: of the weak view, and of V strong ones (none of both: only the weak)."""

    image: Array  # [B, D]
    text: Array  # [B, D]
    image_views: Array | None = None  # [B, V, D]
    text_views: Array | None = None  # [B, V, D]

    def strong(self) -> list[tuple[Array, Array]]:
        """All V·V pairs of an image view with a text view; refuses different numbers of them."""
        a, b = self.image_views, self.text_views
        if a is None and b is None:
            return []
        if a is None or b is None or a.ndim != 3 or a.shape[:2] != b.shape[:2] or len(a) != len(self.image):
            shapes = [None if x is None else x.shape for x in (a, b)]
            raise InputError(
                f"image_views and text_views must both be [B, V, D] with one V, beside {self.image.shape[0]} pairs; "
                f"got {shapes[0]} and {shapes[1]}."
            )
        return [(a[:, u], b[:, v]) for u in range(a.shape[1]) for v in range(b.shape[1])]


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
      Scalar; with `has_aux` also `loss_{weak,strong}_{image_to_text,text_to_image}` (means, whatever `reduction` is)
      and the accuracies of the weak views.

    Raises:
      InputError: numbers of views that differ, or as for `clip`.

    Example:
      >>> views = PairedViews(z_image, z_text, h_images, h_texts)
      >>> loss = multiview_clip(views, logit_scale=1 / 0.07, view_logit_scale=10.0, label_smoothing=0.1)

    Reference: Fini, Astolfi, Romero-Soriano, Verbeek, Drozdzal, "Improved baselines for vision-language pre-training",
      2023, section 4; the average as in its released code.
    """
    pairs = views.strong()
    options: dict[str, Any] = dict(reduction=reduction, normalize=normalize, impl=impl, axis_name=axis_name)
    options |= dict(stop_gradient_gathered=stop_gradient_gathered, has_aux=has_aux)
    weak = clip(views.image, views.text, logit_scale=logit_scale, **options)
    of_views = dict(logit_scale=logit_scale if view_logit_scale is None else view_logit_scale)
    strong = [clip(a, b, **of_views, label_smoothing=label_smoothing, **options) for a, b in pairs]
    count = round(len(pairs) ** 0.5)

    def combined(first: Array, others: list[Array]) -> Array:
        return (first + count * sum(others) / len(others)) / (1 + count) if others else first

    if not has_aux:
        return combined(weak, strong)
    metrics = {name: value for name, value in weak[1].items() if name.startswith("accuracy")}
    for name in ("loss_image_to_text", "loss_text_to_image"):
        metrics[f"weak/{name}"] = weak[1][name]
        if strong:
            metrics[f"strong/{name}"] = sum(aux[name] for _, aux in strong) / len(strong)
    return with_aux(combined(weak[0], [loss for loss, _ in strong]), metrics)


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
    every = [(projections.image, projections.text), *projections.strong()]
    options: dict[str, Any] = dict(off_diagonal_weight=off_diagonal_weight, scale=scale, axis_name=axis_name)
    return _mean([barlow_twins(a, b, standardize=False, **options) for a, b in every])


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
    predicted = [(predictions.image, predictions.text), *predictions.strong()]
    wanted = [(targets.image, targets.text), *targets.strong()]
    if len(predicted) != len(wanted):
        raise InputError(f"predictions have {len(predicted)} pairs of views, targets {len(wanted)}.")
    return _mean(
        [
            negative_cosine(p, v, axis_name=axis_name)
            for ps, vs in zip(predicted, wanted, strict=True)
            for p, v in zip(ps, reversed(vs), strict=True)
        ]
    )


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
    if len(views.strong()) != 4:
        raise InputError(
            f"swalip swaps two strong views of each modality, there are {len(views.strong())} pairs of them."
        )
    checks.positive("logit_scale", logit_scale)
    unit: Callable[[Array], Array] = l2_normalize if normalize else lambda x: x
    image, text = ([unit(x[:, u]) for u in (0, 1)] for x in (views.image_views, views.text_views) if x is not None)
    losses = []
    for anchors, candidates in ((image, text), (text, image)):
        fixed = [lax.stop_gradient(x) for x in candidates] if stop_gradient_gathered else candidates
        for u in (0, 1):
            for v in (0, 1):
                target = ops.sinkhorn_pairs(
                    anchors[1 - u],
                    candidates[1 - v],
                    epsilon=epsilon,
                    num_iters=num_iters,
                    impl=impl,
                    axis_name=axis_name,
                )
                found = ops.contrastive_cross_entropy(
                    anchors[u], fixed[v], scale=logit_scale, positives=target, impl=impl, axis_name=axis_name
                )
                losses.append(batch_mean(found.rows.loss, axis_name))
    return _mean(losses)


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
    return _mean(losses)


def _mean(values: list[Array]) -> Array:
    return sum(values[1:], start=values[0]) / len(values)
