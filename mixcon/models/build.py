"""Models described by plain names and numbers, as a config does."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mixcon.errors import InputError, nearest
from mixcon.models.bert import bert
from mixcon.models.classifier import classifier
from mixcon.models.conv_net import conv_net
from mixcon.models.dual_encoder import dual_encoder
from mixcon.models.efficientnet import efficientnet
from mixcon.models.functional import Make
from mixcon.models.fusion import fusion_encoder
from mixcon.models.heads import mlp_head
from mixcon.models.modified_resnet import modified_resnet
from mixcon.models.projected import projected, relu_mlp
from mixcon.models.regressors import lstnet, mlp
from mixcon.models.resnet import resnet
from mixcon.models.speech import speech_transformer
from mixcon.models.text import text_transformer
from mixcon.models.vit import vit

MODELS: dict[str, Callable[..., Make]] = {
    "vit": vit,
    "resnet": resnet,
    "modified_resnet": modified_resnet,
    "efficientnet": efficientnet,
    "conv_net": conv_net,
    "classifier": classifier,
    "text_transformer": text_transformer,
    "speech_transformer": speech_transformer,
    "bert": bert,
    "mlp_head": mlp_head,
    "dual_encoder": dual_encoder,
    "fusion_encoder": fusion_encoder,
    "projected": projected,
    "relu_mlp": relu_mlp,
    "mlp": mlp,
    "lstnet": lstnet,
}
INHERITED = ("dtype", "remat", "scan_layers")  # said once at the top, these hold for every tower that takes them


def build(spec: Mapping[str, Any]) -> Make:
    """The model that a mapping of plain values describes.

    Args:
        spec: `name` (one of `MODELS`) and that constructor's keyword arguments; a value that is itself a mapping
            describes a part. `dtype`, `remat` and `scan_layers` are handed down to the parts.

    Returns:
        A constructor for `functional`.

    Raises:
        InputError: an unknown name or argument (the nearest valid ones are given), a missing argument.

    Example:
        >>> make = build({
        ...     "name": "dual_encoder", "embed_dim": 128, "dtype": "bfloat16",
        ...     "image": {"name": "vit", "size": "Ti/8", "image_size": 64},
        ...     "text": {"name": "text_transformer", "vocab_size": 1000, "width": 128, "depth": 2, "eos_id": 2},
        ... })
        >>> model = functional(make)
    """
    return _build(spec, "model", {})


def _build(spec: Mapping[str, Any], where: str, inherited: Mapping[str, Any]) -> Make:
    options = dict(spec)
    name = options.pop("name", None)
    if name not in MODELS:
        raise InputError(f"{where}.name={name!r} is no model; {nearest(str(name), MODELS)}")
    accepted = inspect.signature(MODELS[name]).parameters
    handed_down = {key: value for key, value in {**inherited, **options}.items() if key in INHERITED}
    options = {key: value for key, value in handed_down.items() if key in accepted} | options
    has_parts = False
    for key, value in options.items():
        if _is_mapping(value):
            has_parts = True
            options[key] = _build(value, f"{where}.{key}", handed_down)
    unknown = [key for key in options if key not in accepted and not (has_parts and key in INHERITED)]
    if unknown:
        raise InputError(f"{where}.{unknown[0]} is no argument of {name}; {nearest(unknown[0], accepted)}")
    missing = [key for key, p in accepted.items() if p.default is p.empty and key not in options]
    if missing:
        raise InputError(f"{where} ({name}) needs {', '.join(missing)}.")
    return MODELS[name](**{key: value for key, value in options.items() if key in accepted})


def _is_mapping(value: Any) -> bool:
    return hasattr(value, "keys") and hasattr(value, "__getitem__")  # ConfigDict is no registered Mapping
