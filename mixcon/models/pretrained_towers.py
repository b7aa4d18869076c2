"""Single towers from safetensors: a BERT, and a plain ViT in Hugging Face's or timm's layout."""

import re
from pathlib import Path
from typing import Any

from mixcon.errors import InputError
from mixcon.models import layouts
from mixcon.models.weights import (
    Arrays,
    Pretrained,
    check_names,
    convert,
    depth_of,
    read_arrays,
    said_options,
    stack_blocks,
    transformer_spec,
)


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
    arrays, config = read_arrays(Path(path))
    if config is None or config.get("model_type") != "bert":
        raise InputError(f"{path} needs a config.json of model_type 'bert', not {(config or {}).get('model_type')!r}.")
    bare = {re.sub(r"^bert\.", "", name): array for name, array in arrays.items() if not name.startswith("cls.")}
    old = {"gamma": "weight", "beta": "bias"}  # what TensorFlow's norms were called
    bare = {re.sub(r"(gamma|beta)$", lambda m: old[m[0]], name): array for name, array in bare.items()}
    bare = {name: array for name, array in bare.items() if not name.startswith(("pooler.", "classifier."))}
    options = said_options({"": config}, "")
    layout = list(layouts.bert(layouts.Tower(depth_of(bare, "encoder.layer"), options["heads"])))
    check_names(bare, layout)
    shape = {entry.path: bare[entry.sources[0]].shape for entry in layout}
    spec = {
        "name": "bert",
        "size": None,
        "vocab_size": shape["token_embed"][0],
        "context_length": shape["pos_embed"][0],
        "segments": shape["segment_embed"][0],
        "pad_id": config.get("pad_token_id", 0),
        "pool": pool,
        **transformer_spec(shape, "", shape["token_embed"][1], options),
    }
    params, _ = convert(bare, layout, spec)
    if scan_layers:
        spec["scan_layers"], params = True, stack_blocks(params)
    return Pretrained(spec, params, {})


def load_vit(
    path: str | Path, *, activation: str | None = None, heads: int | None = None, scan_layers: bool = False
) -> Pretrained:
    """Loads a plain ViT, trained on labels or by itself: an image tower that pools at its class token.

    Classifier and pooler are left out.

    Args:
        path: a folder with `config.json` and `*.safetensors` (`model_type` "vit", Hugging Face), or a folder or file in
            timm's layout.
        activation: overrides the file's; timm's carry none and get "gelu".
        heads: overrides their number; timm's carry none and get width / 64.
        scan_layers: stack the blocks over depth.

    Returns:
        `Pretrained(spec, params, {})`.

    Raises:
        InputError: as `load_clip`; what is more than a plain ViT (layer scale, registers, no class token) is named.

    Example:
        >>> spec, params, _ = load_vit("vit-large-patch16-224-in21k")
        >>> features, _ = functional(build(spec)).apply(params, {}, images)

    Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021.
    """
    arrays, config = read_arrays(Path(path))
    if not is_vit(arrays):
        raise InputError(f"{path} is not a plain ViT: the arrays are {', '.join(sorted(arrays)[:6])}, ...")
    return vit_of(arrays, config, activation=activation, heads=heads, scan_layers=scan_layers)


def is_vit(arrays: Arrays) -> bool:
    """Whether these are a ViT's alone, in either layout."""
    return any(re.fullmatch(r"((vit\.)?embeddings\.)?cls_token", name) for name in arrays)


def vit_of(
    arrays: Arrays, config: dict[str, Any] | None, *, activation: str | None, heads: int | None, scan_layers: bool
) -> Pretrained:
    """What `load_vit` returns, from the arrays."""
    bare = {re.sub(r"^vit\.", "", name): array for name, array in arrays.items()}
    bare = {name: x for name, x in bare.items() if not name.startswith(("pooler.", "classifier.", "head."))}
    if "cls_token" in bare:  # timm's
        heads = heads or max(1, bare["cls_token"].size // 64)
        options: dict[str, Any] = {"activation": "gelu", "norm_eps": 1e-6}
        make, blocks = layouts.timm_vit, "blocks"
    elif config is None:
        raise InputError("This is the Hugging Face layout, which needs its config.json beside the safetensors file.")
    else:
        options, make, blocks = said_options({"": config}, ""), layouts.vit, "encoder.layer"
    options |= {} if activation is None else {"activation": activation}
    options |= {} if heads is None else {"heads": heads}
    layout = list(make(layouts.Tower(depth_of(bare, blocks), options["heads"])))
    check_names(bare, layout)
    shape = {entry.path: bare[entry.sources[0]].shape for entry in layout}
    try:
        width, channels, patch, _ = shape["patch_embed/kernel"]
        _, tokens, _ = shape["pos_embed"]
    except ValueError as error:
        raise InputError("The checkpoint's embedding arrays have the wrong number of axes.") from error
    spec = {
        "name": "vit",
        "image_size": patch * round((tokens - 1) ** 0.5),
        "patch": patch,
        "channels": channels,
        "pool": "cls",
        **transformer_spec(shape, "", width, options),
    }
    params, _ = convert(bare, layout, spec)
    if scan_layers:
        spec["scan_layers"], params = True, stack_blocks(params)
    return Pretrained(spec, params, {})
