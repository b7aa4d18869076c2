"""What all loaders of pretrained weights share: arrays of a file, their names and shapes, and what a config says."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from mixcon.errors import InputError
from mixcon.models import layouts
from mixcon.models.build import build
from mixcon.models.functional import Extra, Params, flatten, functional, unflatten

Arrays = dict[str, np.ndarray]
IGNORED = re.compile(  # buffers without information
    r".*(position_ids|num_batches_tracked|attn_mask)|input_resolution|context_length|vocab_size"
)
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class Pretrained(NamedTuple):
    """A loaded model.

    Attributes:
        spec: what `build` makes the model from; add `dtype` or `remat` to it as you like.
        params: nested dict of float32 numpy arrays, as `functional(build(spec)).init` would give.
        extra: likewise (running statistics of a ResNet; empty for a ViT).
    """

    spec: dict[str, Any]
    params: Params
    extra: Extra


def read_arrays(path: Path) -> tuple[Arrays, dict[str, Any] | None]:
    """The arrays of a folder or file as float32, and the `config.json` beside them."""
    folder = path if path.is_dir() else path.parent
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise InputError(
            f"No safetensors at {path}: give a folder with config.json and model.safetensors, or a .safetensors file "
            "(a .bin or .pt file has to be converted first)."
        )
    arrays: Arrays = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as reader:
                arrays |= {name: np.asarray(reader.get_tensor(name), np.float32) for name in reader.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is not a readable safetensors file ({error}); fetch it again.") from error
    config_file = folder / "config.json"
    if not config_file.is_file():
        return arrays, None
    try:
        return arrays, json.loads(config_file.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{config_file} is not JSON ({error}).") from error


def said_options(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Of the Hugging Face config, what the arrays' shapes cannot tell; absent values have that library's defaults."""
    said, is_siglip, is_bert = config.get(part, {}), config.get("model_type") == "siglip", not part
    activation = said.get("hidden_act", "gelu" if is_bert else "gelu_pytorch_tanh" if is_siglip else "quick_gelu")
    if activation not in ACTIVATIONS:
        raise InputError(f"{part} hidden_act={activation!r} is not supported; known: {', '.join(ACTIVATIONS)}.")
    return {
        "activation": ACTIVATIONS[activation],
        "norm_eps": said.get("layer_norm_eps", 1e-12 if is_bert else 1e-6 if is_siglip else 1e-5),
        "heads": said.get("num_attention_heads", 8 if part == "text_config" and not is_siglip else 12),
    }


def depth_of(arrays: Arrays, prefix: str) -> int:
    """How many blocks there are, `<prefix>.0.` to `<prefix>.<n-1>.`."""
    found = (re.match(re.escape(prefix) + r"\.(\d+)\.", name) for name in arrays)
    return max((int(match[1]) + 1 for match in found if match), default=1)


def check_names(arrays: Arrays, layout: list[layouts.Entry]) -> None:
    """Refuses arrays that are missing or are not of the model."""
    wanted = {source for entry in layout for source in entry.sources}
    missing = sorted(wanted - set(arrays))
    unexpected = sorted(name for name in set(arrays) - wanted if not IGNORED.fullmatch(name))
    if missing or unexpected:
        raise InputError(
            f"The checkpoint is not a whole model. Missing: {', '.join(missing) or 'nothing'}. "
            f"Unexpected: {', '.join(unexpected) or 'nothing'}."
        )


def transformer_spec(shape: Mapping[str, Any], tower: str, width: int, options: dict[str, Any]) -> dict[str, Any]:
    """Settings of a tower\'s blocks, by the shapes of its parameters and what the config says."""
    blocks = f"{tower}/blocks".lstrip("/")
    return {
        "width": width,
        "depth": count_names(shape, rf"{blocks}/(\d+)/mlp/fc1/bias"),
        "mlp_dim": shape[f"{blocks}/0/mlp/fc1/bias"][0],
        "norm_eps": 1e-5,
        **options,
    }


def count_names(names: Mapping[str, Any], pattern: str) -> int:
    """Number of the names that match."""
    return sum(re.fullmatch(pattern, name) is not None for name in names)


def convert(arrays: Arrays, layout: list[layouts.Entry], spec: dict[str, Any]) -> tuple[Params, Extra]:
    """Parameters and statistics of the model that `spec` describes."""
    params, extra = jax.eval_shape(functional(build(spec)).init, jax.random.key(0))
    wanted = [flatten(params), flatten(extra)]
    results: list[dict[str, np.ndarray]] = [{}, {}]
    wrong = []
    for path, sources, rule in layout:
        which = 0 if path in wanted[0] else 1
        expected = wanted[which][path].shape
        array = _try(rule.read, *(arrays[source] for source in sources))
        if array is None or array.shape != expected:
            shapes = ", ".join(f"{source} {arrays[source].shape}" for source in sources)
            wrong.append(f"{shapes} does not give {path} {expected}")
        else:
            results[which][path] = np.array(array, order="C")
    if wrong:
        raise InputError(f"Wrong shapes in the checkpoint (or other heads than its own): {'; '.join(wrong)}.")
    return unflatten(results[0]), unflatten(results[1])


def _try(convert: Callable[..., np.ndarray], *inputs: np.ndarray) -> np.ndarray | None:
    try:
        return convert(*inputs)
    except ValueError:
        return None


def stack_blocks(params: Mapping[str, Any]) -> Params:
    """Parameters of a model made with `scan_layers=False` as those of the same model with `scan_layers=True`."""
    stacked: dict[str, dict[int, Any]] = {}
    flat = {}
    for path, leaf in flatten(params).items():
        block = re.fullmatch(r"(.*/|)blocks/(\d+)/(.*)", path)
        if block:
            stacked.setdefault(f"{block[1]}blocks/{block[3]}", {})[int(block[2])] = leaf
        else:
            flat[path] = leaf
    return unflatten(flat | {path: np.stack([rows[i] for i in sorted(rows)]) for path, rows in stacked.items()})
