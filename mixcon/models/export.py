"""A trained dual encoder as a folder that `transformers` loads: config.json and model.safetensors."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mixcon.errors import InputError
from mixcon.models import layouts
from mixcon.models.functional import Params, flatten, unflatten
from mixcon.models.weights import ACTIVATIONS

NAMES = {  # ours -> theirs; where several of theirs are the same, the first
    ours: next(theirs for theirs, same in ACTIVATIONS.items() if same == ours) for ours in set(ACTIVATIONS.values())
} | {"gelu_tanh": "gelu_pytorch_tanh"}
AMBIGUOUS = 2  # an `eos_token_id` that means: pool at the largest id (checkpoints older than a fix of theirs have it)
FORMS: dict[str, dict[str, Any]] = {  # what a model must be like to be one of theirs
    "clip": {
        "image/name": "vit",
        "image/pool": "cls",
        "image/positions": "learned",
        "image/pre_norm": True,
        "image/patch_bias": False,
        "image/num_classes": 0,
        "text/name": "text_transformer",
        "text/causal": True,
        "image_projection": "linear",
        "text_projection": "linear",
        "logit_bias": None,
    },
    "siglip": {
        "image/name": "vit",
        "image/pool": "map",
        "image/positions": "learned",
        "image/pre_norm": False,
        "image/patch_bias": True,
        "image/num_classes": 0,
        "text/name": "text_transformer",
        "text/causal": False,
        "text/pool": "last",
        "text/pad_id": None,
        "image_projection": "none",
        "text_projection": "linear_bias",
    },
}


def export_clip(spec: Mapping[str, Any], params: Params, folder: str | Path) -> dict[str, Any]:
    """Writes a dual encoder as a `transformers` CLIPModel, or SiglipModel if its logits have a bias.

    Their CLIP is a ViT with a class token, `pre_norm` and no patch bias, and a causal text transformer that pools at
    its end token, with linear projections; their SigLIP a ViT with attention pooling and a text transformer that sees
    all and pools at the last position. Both compute in float32. `load_clip(folder)` reads it back, to the bit.

    An end token of id 2, which `transformers` takes to mean "pool at the largest id", becomes the last id: the table of
    tokens has one more row then, and `with_end_token` makes the tokenizer follow.

    Args:
        spec: what `build` made the model from, with `vocab_size` and `eos_id`.
        params: its parameters, arrays on the host or a device; stacked over depth or not.
        folder: made if it is not there; `config.json` and `model.safetensors` in it are replaced.

    Returns:
        What is in `config.json`.

    Raises:
        InputError: a model that is neither; what stands in the way is named.

    Example:
        >>> export_clip(spec, params, "exported")  # doctest: +SKIP
        >>> transformers.CLIPModel.from_pretrained("exported")  # doctest: +SKIP

    Reference: the layouts are those of `transformers`' modeling_clip.py and modeling_siglip.py.
    """
    form = "clip" if spec.get("logit_bias") is None else "siglip"
    towers = {name: _settings(spec, name) for name in ("image", "text")}
    _refuse_other_models(form, spec, towers)
    flat = {path: np.asarray(array, np.float32) for path, array in flatten(_unstack(params)).items()}
    if form == "clip" and towers["text"]["eos_id"] == AMBIGUOUS:
        table = flat["text/token_embed"]
        towers["text"]["eos_id"] = len(table)
        flat["text/token_embed"] = np.concatenate([table, table[AMBIGUOUS : AMBIGUOUS + 1]])
    patch = towers["image"]["patch"]
    depth = {name: sum(re.fullmatch(rf"{name}/blocks/\d+/norm1/scale", path) is not None for path in flat)
             for name in towers}  # fmt: skip
    make = layouts.clip if form == "clip" else layouts.siglip
    layout = list(
        make(
            layouts.Tower(depth["image"], towers["image"]["heads"], patch),
            layouts.Tower(depth["text"], towers["text"]["heads"]),
        )
    )
    if left := set(flat) ^ {entry.path for entry in layout}:
        raise InputError(f"the model is not {form}'s: parameters {', '.join(sorted(left)[:8])} do not fit its layout.")
    arrays: dict[str, np.ndarray] = {}
    for path, sources, rule in layout:
        for source, array in zip(sources, rule.write(flat[path]), strict=True):
            arrays[source] = np.concatenate([arrays[source], array]) if source in arrays else array
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: np.array(array, order="C") for name, array in arrays.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = _config(form, spec, towers, flat, depth)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return config


def with_end_token(tokenizer: str, eos_id: int) -> str:
    """The text of a `tokenizer.json` whose token of id 2 has the next free id instead.

    Raises:
        InputError: `eos_id` is not the next free id.
    """
    data = json.loads(tokenizer)
    vocabulary, added = data["model"]["vocab"], data["added_tokens"]
    taken = {*vocabulary.values(), *(token["id"] for token in added)}
    if eos_id != max(taken) + 1:
        raise InputError(f"the model's end token has id {eos_id}, but the next free id of its tokenizer is another.")
    for name, number in list(vocabulary.items()):
        if number == AMBIGUOUS:
            vocabulary[name] = eos_id
            vocabulary["<unused>"] = AMBIGUOUS
    for token in added:
        token["id"] = eos_id if token["id"] == AMBIGUOUS else token["id"]
    return json.dumps(data, indent=2, ensure_ascii=False)


def _settings(spec: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """A tower's settings, defaults included: read from the module that it makes."""
    from flax import nnx

    from mixcon.models.build import build

    whole = dict(spec)
    described = dict(whole[tower])
    module: Any = nnx.eval_shape(lambda: build(whole)(nnx.Rngs(0)))
    made: Any = getattr(module, tower)
    blocks = getattr(made, "block_config", None)
    found: dict[str, Any] = {"name": described["name"]}
    if blocks is not None:
        found |= {k: getattr(blocks, k) for k in ("width", "mlp_dim", "heads", "activation", "norm_eps", "qkv_bias")}
    if described["name"] == "vit":
        c = made.config
        found |= {k: getattr(c, k) for k in ("pool", "positions", "patch", "patch_bias", "pre_norm", "num_classes")}
        found |= {"image_size": c.image_size, "channels": c.channels}
    elif described["name"] == "text_transformer":
        found |= {"pool": made.pool_kind, "causal": made.causal, "eos_id": made.eos_id, "pad_id": made.pad_id}
    return found


def _refuse_other_models(form: str, spec: Mapping[str, Any], towers: Mapping[str, Mapping[str, Any]]) -> None:
    defaults = {"image_projection": "linear", "text_projection": "linear", "logit_bias": None}
    wrong = []
    for path, wanted in FORMS[form].items():
        tower, _, key = path.rpartition("/")
        found = towers[tower].get(key) if tower else spec.get(key, defaults[key])
        if found != wanted:
            wrong.append(f"{path} is {found!r}, not {wanted!r}")
    if form == "clip" and towers["text"].get("pool") not in ("eos", "argmax"):
        wrong.append(f"text/pool is {towers['text'].get('pool')!r}, not 'eos' or 'argmax'")
    if form == "clip" and towers["text"].get("pad_id") is not None and towers["text"].get("eos_id") is None:
        wrong.append("text/pad_id is set, without an eos_id")
    sides = towers["image"].get("image_size", (1, 1))
    if sides[0] != sides[1]:
        wrong.append(f"image/image_size is {sides}, not a square")
    if spec.get("parametrization", "log") != "log":
        wrong.append("parametrization is 'temperature', not 'log'")
    for name, settings in towers.items():
        if not settings.get("qkv_bias", True):
            wrong.append(f"{name}/qkv_bias is False")
    if wrong:
        raise InputError(
            f"this model cannot be written as transformers' {'CLIPModel' if form == 'clip' else 'SiglipModel'}: "
            f"{'; '.join(wrong)}. Train a model of that form, as configs/clip.py:b32 or configs/siglip.py:b16 are."
        )


def _unstack(params: Params) -> Params:
    """Parameters with `scan_layers=True` as those with False; `stack_blocks` is the inverse."""
    flat: dict[str, Any] = {}
    for path, leaf in flatten(params).items():
        stacked = re.fullmatch(r"(.*/blocks)/(?!\d+/)(.*)", path)
        if stacked:
            flat |= {f"{stacked[1]}/{i}/{stacked[2]}": layer for i, layer in enumerate(np.asarray(leaf))}
        else:
            flat[path] = leaf
    return unflatten(flat)


def _config(
    form: str,
    spec: Mapping[str, Any],
    towers: Mapping[str, Mapping[str, Any]],
    flat: Mapping[str, np.ndarray],
    depth: Mapping[str, int],
) -> dict[str, Any]:
    image, text = towers["image"], towers["text"]

    def tower(name: str) -> dict[str, Any]:
        said = towers[name]
        return {
            "hidden_size": said["width"],
            "intermediate_size": said["mlp_dim"],
            "num_hidden_layers": depth[name],
            "num_attention_heads": said["heads"],
            "hidden_act": NAMES[said["activation"]],
            "layer_norm_eps": said["norm_eps"],
            **({"projection_dim": spec["embed_dim"]} if form == "clip" else {}),
        }

    vocab_size, _ = flat["text/token_embed"].shape
    eos_id = AMBIGUOUS if text["eos_id"] is None else text["eos_id"]
    return {
        "architectures": ["CLIPModel" if form == "clip" else "SiglipModel"],
        "model_type": form,
        **({"projection_dim": spec["embed_dim"]} if form == "clip" else {}),
        "text_config": {
            "model_type": f"{form}_text_model",
            "vocab_size": vocab_size,
            "max_position_embeddings": flat["text/pos_embed"].shape[0],
            "bos_token_id": None,
            "eos_token_id": eos_id if form == "clip" else None,
            "pad_token_id": text["pad_id"],
            **({"projection_size": spec["embed_dim"]} if form == "siglip" else {}),
            **tower("text"),
        },
        "vision_config": {
            "model_type": f"{form}_vision_model",
            "image_size": image["image_size"][0],
            "patch_size": image["patch"],
            "num_channels": image["channels"],
            **tower("image"),
        },
    }
