"""Where published CLIP checkpoints keep each of our parameters, and how its array is turned into ours.

PyTorch keeps Linear weights as [out, in] and convolutions as [out, in, height, width].
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy import ndarray


class Entry(NamedTuple):
    """Our parameter `path` is `convert(*arrays of these source names)`."""

    path: str
    sources: tuple[str, ...]
    convert: Callable[..., ndarray]


class Tower(NamedTuple):
    """What the tables need to know about one transformer tower."""

    depth: int
    heads: int


def _same(x: ndarray) -> ndarray:
    return x


def _linear(weight: ndarray) -> ndarray:
    return weight.T


def _conv(weight: ndarray) -> ndarray:
    return weight.transpose(2, 3, 1, 0)


def _patches(weight: ndarray) -> ndarray:
    """A patch convolution [D,C,p,p] as our matrix [p * p * C, D]."""
    return _conv(weight).reshape(-1, weight.shape[0])


def _qkv(heads: int) -> Callable[..., ndarray]:
    """Stacked or separate q, k, v of shape [D] or [D,in] -> our columns, ordered (head, q|k|v, K)."""

    def convert(*parts: ndarray) -> ndarray:
        stacked = np.concatenate(parts)
        by_head = stacked.reshape(3, heads, stacked.shape[0] // (3 * heads), *stacked.shape[1:]).swapaxes(0, 1)
        return by_head.reshape(stacked.shape).T

    return convert


def _norm(path: str, source: str) -> Iterator[Entry]:
    yield Entry(f"{path}/scale", (f"{source}.weight",), _same)
    yield Entry(f"{path}/bias", (f"{source}.bias",), _same)


def _dense(path: str, source: str) -> Iterator[Entry]:
    yield Entry(f"{path}/kernel", (f"{source}.weight",), _linear)
    yield Entry(f"{path}/bias", (f"{source}.bias",), _same)


def _transformer(path: str, source: str, tower: Tower, *, openai: bool) -> Iterator[Entry]:
    names = ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj", "attn.out_proj")
    if not openai:
        names = ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", "self_attn.out_proj")
    for i in range(tower.depth):
        ours, theirs = f"{path}/blocks/{i}", f"{source}.{i}"
        yield from _norm(f"{ours}/norm1", f"{theirs}.{names[0]}")
        yield from _norm(f"{ours}/norm2", f"{theirs}.{names[1]}")
        yield from _dense(f"{ours}/mlp/fc1", f"{theirs}.{names[2]}")
        yield from _dense(f"{ours}/mlp/fc2", f"{theirs}.{names[3]}")
        yield from _dense(f"{ours}/attn/out", f"{theirs}.{names[4]}")
        for kind, ending in (("kernel", "weight"), ("bias", "bias")):
            sources = tuple(f"{theirs}.self_attn.{x}_proj.{ending}" for x in "qkv")
            sources = (f"{theirs}.attn.in_proj_{ending}",) if openai else sources
            yield Entry(f"{ours}/attn/qkv/{kind}", sources, _qkv(tower.heads))


def huggingface(image: Tower, text: Tower) -> Iterator[Entry]:
    """Names of `transformers`' CLIPModel."""
    vision, embeddings = "vision_model.embeddings", "text_model.embeddings"
    yield Entry("image/cls_token", (f"{vision}.class_embedding",), _same)
    yield Entry("image/pos_embed", (f"{vision}.position_embedding.weight",), _same)
    yield Entry("image/patch_embed/kernel", (f"{vision}.patch_embedding.weight",), _patches)
    yield from _norm("image/norm_pre", "vision_model.pre_layrnorm")  # so spelt there
    yield from _norm("image/norm", "vision_model.post_layernorm")
    yield from _transformer("image", "vision_model.encoder.layers", image, openai=False)
    yield Entry("text/token_embed", (f"{embeddings}.token_embedding.weight",), _same)
    yield Entry("text/pos_embed", (f"{embeddings}.position_embedding.weight",), _same)
    yield from _norm("text/norm", "text_model.final_layer_norm")
    yield from _transformer("text", "text_model.encoder.layers", text, openai=False)
    yield Entry("image_projection/kernel", ("visual_projection.weight",), _linear)
    yield Entry("text_projection/kernel", ("text_projection.weight",), _linear)
    yield Entry("logit_scale/log", ("logit_scale",), _same)


def openai_text(text: Tower) -> Iterator[Entry]:
    """Names of the text tower and the logit scale in openai/CLIP and open_clip state dicts."""
    yield Entry("text/token_embed", ("token_embedding.weight",), _same)
    yield Entry("text/pos_embed", ("positional_embedding",), _same)
    yield from _norm("text/norm", "ln_final")
    yield from _transformer("text", "transformer.resblocks", text, openai=True)
    yield Entry("text_projection/kernel", ("text_projection",), _same)  # kept as [in, out] there
    yield Entry("logit_scale/log", ("logit_scale",), _same)


def openai_vit(image: Tower) -> Iterator[Entry]:
    """Names of the vision transformer in openai/CLIP and open_clip state dicts."""
    yield Entry("image/cls_token", ("visual.class_embedding",), _same)
    yield Entry("image/pos_embed", ("visual.positional_embedding",), _same)
    yield Entry("image/patch_embed/kernel", ("visual.conv1.weight",), _patches)
    yield from _norm("image/norm_pre", "visual.ln_pre")
    yield from _norm("image/norm", "visual.ln_post")
    yield from _transformer("image", "visual.transformer.resblocks", image, openai=True)
    yield Entry("image_projection/kernel", ("visual.proj",), _same)


def openai_resnet(layers: tuple[int, ...]) -> Iterator[Entry]:
    """Names of the ModifiedResNet in openai/CLIP and open_clip state dicts; running statistics included."""
    for i in range(3):
        yield from _conv_norm("image/stem_convs", "image/stem_norms", i, "visual.conv", "visual.bn")
    for stage, depth in enumerate(layers):
        for block in range(depth):
            ours, theirs = f"image/stages/{stage}/{block}", f"visual.layer{stage + 1}.{block}"
            for i in range(3):
                yield from _conv_norm(f"{ours}/convs", f"{ours}/norms", i, f"{theirs}.conv", f"{theirs}.bn")
            if block == 0:  # every stage widens, so every first block has a shortcut of its own
                yield Entry(f"{ours}/shortcut_conv/kernel", (f"{theirs}.downsample.0.weight",), _conv)
                yield from _batch_norm(f"{ours}/shortcut_norm", f"{theirs}.downsample.1")
    yield Entry("image/pos_embed", ("visual.attnpool.positional_embedding",), _same)
    for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "c_proj")):
        yield from _dense(f"image/pool/{ours}", f"visual.attnpool.{theirs}")


def _conv_norm(convs: str, norms: str, i: int, conv_source: str, norm_source: str) -> Iterator[Entry]:
    yield Entry(f"{convs}/{i}/kernel", (f"{conv_source}{i + 1}.weight",), _conv)
    yield from _batch_norm(f"{norms}/{i}", f"{norm_source}{i + 1}")


def _batch_norm(path: str, source: str) -> Iterator[Entry]:
    yield from _norm(path, source)
    yield Entry(f"{path}/mean", (f"{source}.running_mean",), _same)
    yield Entry(f"{path}/var", (f"{source}.running_var",), _same)
