"""Pretrained weights from safetensors: CLIP and SigLIP in Hugging Face's layout, CLIP in OpenAI's, BERT."""

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


def load_clip(
    path: str | Path,
    *,
    activation: str | None = None,
    eos_id: int | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
    scan_layers: bool = False,
) -> Pretrained:
    """Loads a CLIP or SigLIP model from safetensors.

    Args:
        path: a folder with `config.json` and `*.safetensors` (Hugging Face), or a `.safetensors` file (OpenAI or
            open_clip state dict; Hugging Face if a `config.json` lies beside it).
        activation: overrides the file's; OpenAI files carry none and get "quick_gelu" (open_clip models without
            "-quickgelu" in their name need "gelu").
        eos_id: overrides the end token. OpenAI files carry none and pool at the largest id, unless a `config.json`
            beside them names one (`text_config.eos_token_id`). SigLIP pools at the last position, whatever is there.
        image_heads, text_heads: override the number of heads; OpenAI files carry none and get width / 64.
        scan_layers: stack the blocks of each transformer over depth.

    Returns:
        `Pretrained(spec, params, extra)`.

    Raises:
        InputError: no such file, not safetensors, an unknown layout, or missing, unexpected or wrongly shaped arrays
            (all of them are listed).

    Example:
        >>> spec, params, extra = load_clip("clip-vit-base-patch32")
        >>> model = functional(build(spec | {"dtype": "bfloat16"}))
        >>> unit_rows, _ = model.apply(params, extra, images, method="encode_image")

    Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
    """
    arrays, config = _read(Path(path))
    is_huggingface = any(name.startswith("vision_model.") for name in arrays)
    image_options: dict[str, Any] = {"activation": "quick_gelu"}
    text_options: dict[str, Any] = {"activation": "quick_gelu"}
    if config is not None and (is_huggingface or "text_config" in config):
        image_options, text_options = _options(config, "vision_config"), _options(config, "text_config")
        token = config["text_config"].get("eos_token_id", 49407) if "text_config" in config else 49407
        eos_id = (None if token == 2 else token) if eos_id is None else eos_id  # 2: the configs of before the fix
    for options, heads in ((image_options, image_heads), (text_options, text_heads)):
        options |= {} if activation is None else {"activation": activation}
        options |= {} if heads is None else {"heads": heads}
    layout = _layout(arrays, config, image_options, text_options)
    _check_names(arrays, layout)
    spec = _spec(arrays, layout, image_options, text_options, eos_id)
    params, extra = _convert(arrays, layout, spec)
    if scan_layers:
        spec["scan_layers"], params = True, stack_blocks(params)
    return Pretrained(spec, params, extra)


def with_new_projections(found: Pretrained, key: jax.Array, *, embed_dim: int, logit_scale: float) -> Pretrained:
    """Loaded towers whose projections into the shared space are initialised anew, as for fine-tuning at another width.

    Args:
        found: of `load_clip`; both towers have linear projections.
        key: PRNG key.
        embed_dim: D of the new space.
        logit_scale: its multiplier of the similarities.

    Raises:
        InputError: a tower without a projection of its own (a ResNet's pooling is one).

    Example:
        >>> found = with_new_projections(load_clip("clip-vit-base-patch32"), key, embed_dim=128, logit_scale=100.0)
    """
    new = ("image_projection", "text_projection", "logit_scale")
    if missing := set(new) - set(found.params):
        raise InputError(f"the loaded model has no {', '.join(sorted(missing))} that could be replaced.")
    spec = found.spec | {"embed_dim": embed_dim, "logit_scale": logit_scale}
    model = functional(build(spec))
    fresh = jax.device_get(jax.jit(lambda key: {name: model.init(key)[0][name] for name in new})(key))
    return Pretrained(spec, {**found.params, **fresh}, found.extra)


def load_bert(path: str | Path, *, pool: str = "cls", scan_layers: bool = False) -> Pretrained:
    """Loads a BERT encoder from safetensors: a text tower, whose `params` a dual encoder has under "text".

    A pooler and heads of the pretraining tasks are left out. The vocabulary is `vocab.txt` of the same folder:
    `data.tokenizer.load(folder / "vocab.txt")`.

    Args:
        path: a folder with `config.json` (`model_type` "bert") and `*.safetensors`.
        pool: "cls" or "mean", see `bert`.
        scan_layers: stack the blocks over depth.

    Returns:
        `Pretrained(spec, params, {})`.

    Raises:
        InputError: as `load_clip`; a model of another type.

    Example:
        >>> spec, params, _ = load_bert("bert-base-uncased")
        >>> states, _ = functional(build(spec)).apply(params, {}, ids, method="tokens")

    Reference: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2019.
    """
    arrays, config = _read(Path(path))
    if config is None or config.get("model_type") != "bert":
        raise InputError(f"{path} needs a config.json of model_type 'bert', not {(config or {}).get('model_type')!r}.")
    bare = {re.sub(r"^bert\.", "", name): array for name, array in arrays.items() if not name.startswith("cls.")}
    old = {"gamma": "weight", "beta": "bias"}  # what TensorFlow's norms were called
    bare = {re.sub(r"(gamma|beta)$", lambda m: old[m[0]], name): array for name, array in bare.items()}
    bare = {name: array for name, array in bare.items() if not name.startswith(("pooler.", "classifier."))}
    options = _options({"": config}, "")
    layout = list(layouts.bert(layouts.Tower(_depth(bare, "encoder.layer"), options["heads"])))
    _check_names(bare, layout)
    shape = {entry.path: bare[entry.sources[0]].shape for entry in layout}
    spec = {
        "name": "bert",
        "size": None,
        "vocab_size": shape["token_embed"][0],
        "context_length": shape["pos_embed"][0],
        "segments": shape["segment_embed"][0],
        "pad_id": config.get("pad_token_id", 0),
        "pool": pool,
        **_transformer_spec(shape, "", shape["token_embed"][1], options),
    }
    params, _ = _convert(bare, layout, spec)
    if scan_layers:
        spec["scan_layers"], params = True, stack_blocks(params)
    return Pretrained(spec, params, {})


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


def _read(path: Path) -> tuple[Arrays, dict[str, Any] | None]:
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


def _options(config: Mapping[str, Any], part: str) -> dict[str, Any]:
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


def _layout(
    arrays: Arrays, config: Any, image_options: Mapping[str, Any], text_options: Mapping[str, Any]
) -> list[layouts.Entry]:
    def tower(prefix: str, width_source: str, options: Mapping[str, Any]) -> layouts.Tower:
        width = arrays[width_source].shape[-1] if width_source in arrays else 64
        return layouts.Tower(_depth(arrays, prefix), options.get("heads") or max(1, width // 64))

    text_width = "text_model.final_layer_norm.weight"
    if any(name.startswith("vision_model.") for name in arrays):
        if config is None:
            raise InputError(
                "This is the Hugging Face layout, which needs its config.json beside the safetensors file."
            )
        make = layouts.siglip if "text_model.head.weight" in arrays else layouts.clip
        image = tower("vision_model.encoder.layers", "vision_model.post_layernorm.weight", image_options)
        return list(make(image, tower("text_model.encoder.layers", text_width, text_options)))
    if not any(name.startswith("visual.") for name in arrays):
        raise InputError(
            f"Neither the Hugging Face nor the OpenAI CLIP layout: the arrays are {', '.join(sorted(arrays)[:6])}, ..."
        )
    text = tower("transformer.resblocks", "ln_final.weight", text_options)
    if any(name.startswith("visual.layer1.") for name in arrays):
        visual = layouts.openai_resnet(tuple(_depth(arrays, f"visual.layer{stage}") for stage in range(1, 5)))
    else:
        visual = layouts.openai_vit(tower("visual.transformer.resblocks", "visual.class_embedding", image_options))
    return [*visual, *layouts.openai_text(text)]


def _depth(arrays: Arrays, prefix: str) -> int:
    found = (re.match(re.escape(prefix) + r"\.(\d+)\.", name) for name in arrays)
    return max((int(match[1]) + 1 for match in found if match), default=1)


def _check_names(arrays: Arrays, layout: list[layouts.Entry]) -> None:
    wanted = {source for entry in layout for source in entry.sources}
    missing = sorted(wanted - set(arrays))
    unexpected = sorted(name for name in set(arrays) - wanted if not IGNORED.fullmatch(name))
    if missing or unexpected:
        raise InputError(
            f"The checkpoint is not a whole model. Missing: {', '.join(missing) or 'nothing'}. "
            f"Unexpected: {', '.join(unexpected) or 'nothing'}."
        )


def _spec(
    arrays: Arrays,
    layout: list[layouts.Entry],
    image_options: dict[str, Any],
    text_options: dict[str, Any],
    eos_id: int | None,
) -> dict[str, Any]:
    """What the shapes and options say the model is."""
    shape = {entry.path: arrays[entry.sources[0]].shape for entry in layout}
    is_siglip = "image/pool/probe" in shape
    try:
        spots = shape["image/pos_embed"][0] - (not is_siglip)
        if "image/stem_convs/0/kernel" in shape:
            image: dict[str, Any] = {
                "name": "modified_resnet",
                "layers": tuple(_count(shape, rf"image/stages/{stage}/(\d+)/convs/0/kernel") for stage in range(4)),
                "width": shape["image/stem_convs/2/kernel"][0],
                "image_size": 32 * round(spots**0.5),
                "out_features": shape["image/pool/out/kernel"][0],
                **({"heads": image_options["heads"]} if "heads" in image_options else {}),
            }
        else:
            width, channels, patch, _ = shape["image/patch_embed/kernel"]
            image = {
                "name": "vit",
                "image_size": patch * round(spots**0.5),
                "patch": patch,
                "channels": channels,
                "pool": "map" if is_siglip else "cls",
                "pre_norm": not is_siglip,
                "patch_bias": is_siglip,
                **_transformer_spec(shape, "image", width, image_options),
            }
        vocab_size, width = shape["text/token_embed"]
        text = {
            "name": "text_transformer",
            "vocab_size": vocab_size,
            "context_length": shape["text/pos_embed"][0],
            "causal": not is_siglip,
            "pool": "last" if is_siglip else "argmax" if eos_id is None else "eos",
            "eos_id": None if is_siglip else eos_id,
            **_transformer_spec(shape, "text", width, text_options),
        }
        projection = next(entry for entry in layout if entry.path == "text_projection/kernel")
        embed_dim = projection.rule.read(arrays[projection.sources[0]]).shape[1]
    except (ValueError, IndexError) as error:
        raise InputError("The checkpoint's embedding or projection arrays have the wrong number of axes.") from error
    return {
        "name": "dual_encoder",
        "embed_dim": embed_dim,
        "image_projection": "none" if is_siglip or image["name"] != "vit" else "linear",
        **({"text_projection": "linear_bias", "logit_bias": -10.0} if is_siglip else {}),
        "image": image,
        "text": text,
    }


def _transformer_spec(shape: Mapping[str, Any], tower: str, width: int, options: dict[str, Any]) -> dict[str, Any]:
    blocks = f"{tower}/blocks".lstrip("/")
    return {
        "width": width,
        "depth": _count(shape, rf"{blocks}/(\d+)/mlp/fc1/bias"),
        "mlp_dim": shape[f"{blocks}/0/mlp/fc1/bias"][0],
        "norm_eps": 1e-5,
        **options,
    }


def _count(names: Mapping[str, Any], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in names)


def _convert(arrays: Arrays, layout: list[layouts.Entry], spec: dict[str, Any]) -> tuple[Params, Extra]:
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
