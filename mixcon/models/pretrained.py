"""CLIP and SigLIP from safetensors, in Hugging Face's layout or, CLIP, in OpenAI's; what a dual encoder starts from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixcon.errors import InputError
from mixcon.models import layouts
from mixcon.models.pretrained_towers import is_vit, vit_of
from mixcon.models.weights import (
    Arrays,
    Pretrained,
    check_names,
    convert,
    count_names,
    depth_of,
    read_arrays,
    said_options,
    stack_blocks,
    transformer_spec,
)


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
    arrays, config = read_arrays(Path(path))
    return _clip_of(arrays, config, activation, eos_id, image_heads, text_heads, scan_layers)


def load_towers(
    path: str | Path,
    *,
    activation: str | None = None,
    eos_id: int | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
    scan_layers: bool = False,
) -> Pretrained:
    """Loads what a dual encoder may start from: a CLIP or SigLIP whole, or a plain ViT as its `image` alone.

    Args:
        path: as for `load_clip` or `load_vit`; which of them it is, the names of the arrays tell.
        activation, eos_id, image_heads, text_heads, scan_layers: as for `load_clip`.

    Returns:
        `Pretrained` whose `spec` and `params` have the parts that are there; see `select` and `complete`.

    Raises:
        InputError: as `load_clip`.

    Example:
        >>> found = load_towers("vit-large-patch16-224-in21k")
        >>> list(found.params)
        ['image']
    """
    arrays, config = read_arrays(Path(path))
    if not is_vit(arrays):
        return _clip_of(arrays, config, activation, eos_id, image_heads, text_heads, scan_layers)
    spec, params, _ = vit_of(arrays, config, activation=activation, heads=image_heads, scan_layers=scan_layers)
    return Pretrained({"image": spec}, {"image": params}, {})


def _clip_of(
    arrays: Arrays,
    config: dict[str, Any] | None,
    activation: str | None,
    eos_id: int | None,
    image_heads: int | None,
    text_heads: int | None,
    scan_layers: bool,
) -> Pretrained:
    is_huggingface = any(name.startswith("vision_model.") for name in arrays)
    image_options: dict[str, Any] = {"activation": "quick_gelu"}
    text_options: dict[str, Any] = {"activation": "quick_gelu"}
    if config is not None and (is_huggingface or "text_config" in config):
        image_options, text_options = said_options(config, "vision_config"), said_options(config, "text_config")
        token = config["text_config"].get("eos_token_id", 49407) if "text_config" in config else 49407
        eos_id = (None if token == 2 else token) if eos_id is None else eos_id  # 2: the configs of before the fix
    for options, heads in ((image_options, image_heads), (text_options, text_heads)):
        options |= {} if activation is None else {"activation": activation}
        options |= {} if heads is None else {"heads": heads}
    layout = _layout(arrays, config, image_options, text_options)
    check_names(arrays, layout)
    spec = _spec(arrays, layout, image_options, text_options, eos_id)
    params, extra = convert(arrays, layout, spec)
    if scan_layers:
        spec["scan_layers"], params = True, stack_blocks(params)
    return Pretrained(spec, params, extra)


def _layout(
    arrays: Arrays, config: Any, image_options: Mapping[str, Any], text_options: Mapping[str, Any]
) -> list[layouts.Entry]:
    def tower(prefix: str, width_source: str, options: Mapping[str, Any]) -> layouts.Tower:
        width = arrays[width_source].shape[-1] if width_source in arrays else 64
        return layouts.Tower(depth_of(arrays, prefix), options.get("heads") or max(1, width // 64))

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
        visual = layouts.openai_resnet(tuple(depth_of(arrays, f"visual.layer{stage}") for stage in range(1, 5)))
    else:
        visual = layouts.openai_vit(tower("visual.transformer.resblocks", "visual.class_embedding", image_options))
    return [*visual, *layouts.openai_text(text)]


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
                "layers": tuple(count_names(shape, rf"image/stages/{n}/(\d+)/convs/0/kernel") for n in range(4)),
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
                **transformer_spec(shape, "image", width, image_options),
            }
        vocab_size, width = shape["text/token_embed"]
        text = {
            "name": "text_transformer",
            "vocab_size": vocab_size,
            "context_length": shape["text/pos_embed"][0],
            "causal": not is_siglip,
            "pool": "last" if is_siglip else "argmax" if eos_id is None else "eos",
            "eos_id": None if is_siglip else eos_id,
            **transformer_spec(shape, "text", width, text_options),
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
