"""Any policy by name on a classifier: what it reads from the network, where it mixes, which labels result.

    draw = drawing("puzzlemix", alpha=1.0)                # checked here, before anything is traced
    draft = draw(key, Sight(images, labels, network))     # images, labels and what to do inside the network
    logits, attention = forward(draft.images, draft.hook)
    classes, shares = draft.targets(logits, attention)    # [N, k] each

Shapes: B batch, N rows of the draft (B, or R·B for policies that mix the batch R times), k sources, H×W pixels,
C classes, T tokens (class token first), P patches.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.config import check_arguments, nearest
from mixcon.errors import InputError
from mixcon.mixers.align import alignmix
from mixcon.mixers.augmix import augmix
from mixcon.mixers.compose import gate
from mixcon.mixers.draw import Per
from mixcon.mixers.linear import manifold_mixup, mixup, multi_mixup, regmixup
from mixcon.mixers.names import LEARNED, MIXERS
from mixcon.mixers.partner import How
from mixcon.mixers.plan import Plan, mix, sources
from mixcon.mixers.relabel import align_labels, mixpro_relabel, transmix_relabel
from mixcon.mixers.saliency import (
    fine_grained_saliency,
    input_gradient_saliency,
    semantic_percent_map,
    spectral_residual_saliency,
)
from mixcon.models.layers import Hook, unchanged

Align = Literal["random", "partner", "own"]
SpanMode = Literal["span", "token"]
Targets = tuple[Array, Array]  # classes int [N, k] and their shares [N, k]


class Network(NamedTuple):
    """What a policy may ask of the network that is trained: pure functions of images in [0, 1], in evaluation mode.

    The parameters are closed over as constants (`jax.lax.stop_gradient`): policies look, they are not trained.
    """

    logits: Callable[[Array], Array]  # [B, C]
    feature_map: Callable[[Array], Array] | None = None  # last map [B, h, w, D]
    head: tuple[Array, Array] | None = None  # kernel [D, C] and bias [C] of the classifier on its mean
    attention: Callable[[Array], Array] | None = None  # every block's, [layers, B, heads, T, T]
    places: tuple[str, ...] = ()  # hidden layers that a hook is called at, from the first to the last
    grid: tuple[int, int] | None = None  # patches per column and row of a transformer


class Sight(NamedTuple):
    """What a policy sees of a step."""

    images: Array  # float [B, H, W, K] in [0, 1]
    labels: Array  # int [B]
    network: Network


@dataclasses.dataclass(frozen=True)
class Draft:
    """A mixed batch on its way through the network."""

    images: Array  # [N, H, W, K]
    classes: Array  # int [N, k], class of each source
    shares: Array  # [N, k]
    hook: Hook = unchanged  # mixes inside the network
    relabel: Callable[[Array, Array | None], Targets] | None = None  # from logits and attention of the mixed batch

    def targets(self, logits: Array, attention: Array | None) -> Targets:
        """Classes and shares, after the forward pass."""
        return (self.classes, self.shares) if self.relabel is None else self.relabel(logits, attention)


Draw = Callable[[Array, Sight], Draft]


def drawing(name: str, arguments: Mapping[str, Any] | None = None) -> Draw:
    """The policy of a name, ready to draw.

    Args:
        name: "none", one of `MIXERS`, or a policy with the label law that goes with it: "transmix" (CutMix),
            "mixpro" (MaskMix), "tl_align" (token CutMix).
        arguments: of the policy, `{"alpha": 0.2}`; what it reads (saliency, attention, features, labels) comes from
            the network, and so does the patch grid of token policies.
    Returns:
        `draw(key, sight) -> Draft`.
    Raises:
        InputError: an unknown name, or one that is learned; an argument that the policy does not take.
    Example:
        >>> sight = Sight(jnp.zeros((4, 8, 8, 3)), jnp.arange(4), Network(logits=lambda x: jnp.zeros((4, 4))))
        >>> drawing("cutmix", {"alpha": 0.2})(jax.random.key(0), sight).images.shape
        (4, 8, 8, 3)

    Reference:
        Li et al., "OpenMixup: Open Mixup Toolbox and Benchmark for Visual Representation Learning", 2022.
    """
    arguments = dict(arguments or {})
    if name in LEARNED:
        raise InputError(f"{name!r} is learned: its mask has parameters and a loss of its own, which no draw can hold.")
    if name in TEXT:
        raise InputError(f"{name!r} mixes texts, not images.")
    if name not in NAMES:
        raise InputError(f"unknown mixer {name!r}; {nearest(name, NAMES)}")
    base, relabel = RELABELLED.get(name, (name, None))
    if base in SPECIAL:
        special = SPECIAL[base]
        check_arguments(special, f"mixer {name!r}", arguments)
        return partial(special, **arguments)
    policy, reads = MIXERS[base], READS.get(base, {})
    check_arguments(policy, f"mixer {name!r}", arguments)

    def draw(key: Array, sight: Sight) -> Draft:
        read = {argument: see(sight) for argument, see in reads.items() if argument not in arguments}
        plan = policy(key, sight.images, **read, **arguments)
        law = None if relabel is None else partial(relabel, plan, sight.labels)
        return Draft(mix(plan, sight.images), *_targets(plan, sight.labels), relabel=law)

    return draw


def _targets(plan: Plan, labels: Array) -> Targets:
    index, weight = sources(plan)
    return labels[index], weight


# ---- policies that are more than one plan of the images


def _none(key: Array, sight: Sight) -> Draft:
    return Draft(sight.images, sight.labels[:, None], jnp.ones((sight.labels.shape[0], 1)))


def _augmix(
    key: Array, sight: Sight, *, width: int = 3, depth: int = 3, alpha: float = 1.0, severity: float = 3.0
) -> Draft:
    mixed = augmix(key, sight.images, width=width, depth=depth, alpha=alpha, severity=severity)
    return dataclasses.replace(_none(key, sight), images=mixed)


def _regmixup(key: Array, sight: Sight, *, alpha: float = 10.0, per: Per = "batch") -> Draft:
    """The clean batch and its mix, both in one pass; the mean over rows is half the sum of the two losses."""
    plan = regmixup(key, sight.images, alpha=alpha, per=per)
    parts = (_targets(plan._replace(weight=jnp.ones_like(plan.weight)), sight.labels), _targets(plan, sight.labels))
    classes, shares = (jnp.concatenate(both) for both in zip(*parts, strict=True))
    return Draft(jnp.concatenate([sight.images, mix(plan, sight.images)]), classes, shares)


def _multi_mixup(key: Array, sight: Sight, *, num_mixes: int = 3, alpha: float = 2.0, per: Per = "batch") -> Draft:
    plans = multi_mixup(key, sight.images, num_mixes=num_mixes, alpha=alpha, per=per)
    mixed = jax.vmap(mix, (0, None))(plans, sight.images)
    both = (mixed, *jax.vmap(_targets, (0, None))(plans, sight.labels))
    images, classes, shares = (v.reshape(-1, *v.shape[2:]) for v in both)
    return Draft(images, classes, shares)


def _manifold_mixup(
    key: Array,
    sight: Sight,
    *,
    alpha: float = 2.0,
    layers: int = 3,
    per: Per = "batch",
    partner: How | Array = "permutation",
) -> Draft:
    """Layer 0 is the input, layer l the l-th place of the network: every place mixes, but only the drawn one moves."""
    plan, layer = manifold_mixup(key, sight.images, alpha=alpha, layers=layers, per=per, partner=partner)
    places = ("input", *sight.network.places)
    if layers > len(places):
        raise InputError(f"layers={layers}, but this network can be mixed at {len(places)} places: {places}.")

    def hook(place: str, value: Array) -> Array:
        return mix(gate(plan, layer == places.index(place)), value) if place in places[:layers] else value

    return Draft(hook("input", sight.images), *_targets(plan, sight.labels), hook)


def _alignmix(
    key: Array,
    sight: Sight,
    *,
    alpha: float = 2.0,
    align: Align = "random",
    eps: float = 0.1,
    partner: How | Array = "permutation",
) -> Draft:
    """Aligned and mixed at the last place of the network, where the plan sees the features.

    The published configs take turns with manifold mixup; this is the aligned half alone.
    """
    if sight.network.feature_map is None:
        raise InputError("alignmix aligns feature maps; this network has none (use a residual network).")
    key_plan, key_align = jax.random.split(key)
    plan = mixup(key_plan, sight.images, alpha=alpha, partner=partner)

    def hook(place: str, value: Array) -> Array:
        if place != sight.network.places[-1]:
            return value
        how = alignmix(key_align, value, align=align, eps=eps, weight=plan.weight[0], partner=plan.partner)
        return mix(how, value)

    return Draft(sight.images, *_targets(plan, sight.labels), hook)


def _spanmix(
    key: Array,
    sight: Sight,
    *,
    alpha: float = 1.0,
    mode: SpanMode = "span",
    per: Per = "example",
    partner: How | Array = "permutation",
) -> Draft:
    """A span of the embedded patches, in reading order; the class token, equal in all images, stays."""
    rows, columns = _grid(sight)
    patches = jnp.zeros((sight.images.shape[0], rows * columns, 1))
    plan = MIXERS["spanmix"](key, patches, alpha=alpha, mode=mode, per=per, partner=partner)
    assert plan.mask is not None
    inside = plan._replace(mask=jnp.pad(plan.mask, ((0, 0), (1, 0), (0, 0)), constant_values=1.0))

    def hook(place: str, value: Array) -> Array:
        return mix(inside, value) if place == "block0" else value

    return Draft(sight.images, *_targets(plan, sight.labels), hook)


SPECIAL: dict[str, Callable[..., Draft]] = {
    "none": _none,
    "augmix": _augmix,
    "regmixup": _regmixup,
    "multi_mixup": _multi_mixup,
    "manifold_mixup": _manifold_mixup,
    "alignmix": _alignmix,
    "spanmix": _spanmix,
}


# ---- what the others read


def _grid(sight: Sight) -> tuple[int, int]:
    if sight.network.grid is None:
        raise InputError("this policy mixes tokens: use a vision transformer.")
    return sight.network.grid


def _side(sight: Sight) -> int:
    rows, columns = _grid(sight)
    if rows != columns:
        raise InputError(f"this policy needs a square grid of patches, not {rows}×{columns}.")
    return rows


def class_attention(maps: Array) -> Array:
    """What the class token attends to in the last block: [layers, B, heads, T, T] → [B, heads, P]."""
    return maps[-1, :, :, 0, 1:]


def _attention(sight: Sight) -> Array:
    if sight.network.attention is None:
        raise InputError("this policy reads attention: use a vision transformer with a class token (pool='cls').")
    return class_attention(sight.network.attention(sight.images))


def _features(sight: Sight) -> Array:
    if sight.network.feature_map is None:
        raise InputError("this policy reads feature maps: use a residual network.")
    return sight.network.feature_map(sight.images)


def _percent(sight: Sight) -> Array:
    if sight.network.head is None:
        raise InputError("this policy reads class activations: use a residual network with a linear classifier.")
    height, width = sight.images.shape[1:3]
    return semantic_percent_map(_features(sight), *sight.network.head, sight.labels, (height, width))


def _gradient_saliency(sight: Sight) -> Array:
    def loss(images: Array) -> Array:
        log_p = jax.nn.log_softmax(sight.network.logits(images), axis=-1)
        return -jnp.take_along_axis(log_p, sight.labels[:, None], axis=1).mean()

    return input_gradient_saliency(loss, sight.images)


def _detected(sight: Sight) -> Array:
    if sight.images.shape[-1] != 3:
        raise InputError(f"saliencymix's detector reads RGB images; these have {sight.images.shape[-1]} channels.")
    return fine_grained_saliency(jnp.round(sight.images * 255.0).astype(jnp.uint8), bgr=True)


def _one_hot(sight: Sight) -> Array:
    return jax.nn.one_hot(sight.labels, sight.network.logits(sight.images).shape[-1])


READS: dict[str, dict[str, Callable[[Sight], Any]]] = {
    "saliencymix": {"saliency": _detected},
    "guidedmixup": {"saliency": lambda sight: spectral_residual_saliency(sight.images)},
    "puzzlemix": {"saliency": _gradient_saliency},
    "attentivemix": {"features": _features},
    "snapmix": {"percent": _percent, "labels": lambda sight: sight.labels},
    "cmixup": {"labels": _one_hot},
    "token_cutmix": {"patch": lambda sight: sight.images.shape[1] // _side(sight)},
    "tokenmix": {"attention": _attention, "side": _side, "minimum": _side},
    "smmix": {"attention": _attention},
    "mergemix": {"attention": _attention},  # of a transformer that merges no tokens
}


# ---- label laws that read the mixed batch


def _transmix(plan: Plan, labels: Array, logits: Array, attention: Array | None) -> Targets:
    return _targets(transmix_relabel(plan, class_attention(_seen(attention))), labels)


def _mixpro(plan: Plan, labels: Array, logits: Array, attention: Array | None) -> Targets:
    return _targets(mixpro_relabel(plan, class_attention(_seen(attention)), logits, labels), labels)


def _tl_align(plan: Plan, labels: Array, logits: Array, attention: Array | None) -> Targets:
    """The aligned label is dense: every class is a source."""
    batch, classes = logits.shape
    shares = align_labels(plan, labels, _seen(attention), num_classes=classes)
    return jnp.broadcast_to(jnp.arange(classes, dtype=jnp.int32)[None], (batch, classes)), shares


def _seen(attention: Array | None) -> Array:
    if attention is None:
        raise InputError("this label law reads attention: use a vision transformer with a class token (pool='cls').")
    return attention


RELABELLED: dict[str, tuple[str, Callable[..., Targets]]] = {
    "transmix": ("cutmix", _transmix),
    "mixpro": ("maskmix", _mixpro),
    "tl_align": ("token_cutmix", _tl_align),
}
TEXT = ("ssmix",)  # selects tokens of texts
NAMES = ("none", *(name for name in MIXERS if name not in TEXT), *RELABELLED)
