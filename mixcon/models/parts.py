"""A dual encoder of which some parts are loaded and the others are new."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mixcon.errors import InputError
from mixcon.models.build import build
from mixcon.models.functional import functional
from mixcon.models.weights import Pretrained

DESCRIBED = {  # part -> what the description of the whole says about it
    "image": ("image",),
    "text": ("text",),
    "image_projection": ("image_projection", "embed_dim"),
    "text_projection": ("text_projection", "embed_dim"),
    "logit_scale": ("logit_bias", "parametrization"),
}
DEFAULTS = {"image_projection": "linear", "text_projection": "linear", "logit_bias": None, "parametrization": "log"}
OURS = ("dtype", "remat", "dropout", "residual_dropout", "stochastic_depth", "patch_dropout")  # no file has these


def select(found: Pretrained, parts: Sequence[str] = ()) -> Pretrained:
    """Of loaded weights these parts, with what describes them.

    Args:
        found: of `load_towers` or `load_clip`.
        parts: of "image", "text", "image_projection", "text_projection", "logit_scale"; () takes all there are.

    Raises:
        InputError: a part that the weights do not have.

    Example:
        >>> towers = select(load_clip("clip-vit-base-patch32"), ("image", "text"))
    """
    if missing := sorted(set(parts) - set(found.params)):
        raise InputError(
            f"init_parts: the weights have no {', '.join(missing)}; they have {', '.join(sorted(found.params))}"
        )
    taken = parts or tuple(found.params)
    said = {key for part in taken for key in DESCRIBED[part]} | (set() if parts else set(found.spec))
    spec = {key: value for key, value in (DEFAULTS | found.spec).items() if key in said}
    return Pretrained(spec, *({part: tree[part] for part in taken if part in tree} for tree in found[1:]))


def complete(spec: Mapping[str, Any], found: Pretrained, key: jax.Array) -> Pretrained:
    """The whole model: the loaded parts as they are, everything else as `spec` describes it, initialised.

    Args:
        spec: of a dual encoder. Of a loaded tower only the types of the computation, remat and dropout are taken from
            it.
        found: of `select`.
        key: PRNG key of the new parts.

    Example:
        >>> whole = complete(spec | {"embed_dim": 128, "logit_scale": 100.0}, towers, jax.random.key(0))
    """
    whole = dict(spec) | found.spec
    for tower in {"image", "text"} & set(found.params):
        whole[tower] = found.spec[tower] | {name: spec[tower][name] for name in OURS if name in spec[tower]}
    model = functional(build(whole))
    new = [part for part in jax.eval_shape(model.init, key)[0] if part not in found.params]
    if not new:
        return Pretrained(whole, found.params, found.extra)
    trees = jax.jit(lambda key: [{part: tree[part] for part in new if part in tree} for tree in model.init(key)])(key)
    params, extra = jax.device_get(trees)
    return Pretrained(whole, {**params, **found.params}, {**extra, **found.extra})
