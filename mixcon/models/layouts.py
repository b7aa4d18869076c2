"""Where published CLIP, SigLIP, BERT and ViT weights keep each of our parameters, and how the one becomes the other.

PyTorch keeps Linear weights as [out, in] and convolutions as [out, in, height, width].
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy import ndarray


class Rule(NamedTuple):
    """Their arrays to ours, and back."""

    read: Callable[..., ndarray]
    write: Callable[[ndarray], tuple[ndarray, ...]]


class Entry(NamedTuple):
    """Our parameter `path` is `rule.read(*arrays of these source names)`."""

    path: str
    sources: tuple[str, ...]
    rule: Rule


class Tower(NamedTuple):
    """What the tables need to know about one transformer tower; the patch only where images are written."""

    depth: int
    heads: int
    patch: int = 0


SAME = Rule(lambda x: x, lambda x: (x,))
LINEAR = Rule(lambda weight: weight.T, lambda kernel: (kernel.T,))
CONV = Rule(lambda weight: weight.transpose(2, 3, 1, 0), lambda kernel: (kernel.transpose(3, 2, 0, 1),))
SCALAR = Rule(lambda x: x.reshape(()), lambda x: (x.reshape(1),))  # theirs is [1]


def _patches(side: int) -> Rule:
    """A patch convolution [D,C,p,p] as our matrix [p * p * C, D]."""

    def write(kernel: ndarray) -> tuple[ndarray, ...]:
        return CONV.write(kernel.reshape(side, side, -1, kernel.shape[1]))

    return Rule(lambda weight: CONV.read(weight).reshape(-1, weight.shape[0]), write)


def _qkv(heads: int, *, parts: int) -> Rule:
    """Stacked (1 part) or separate (3) q, k, v of shape [D] or [D,in] <-> our columns, ordered (head, q|k|v, K)."""

    def read(*given: ndarray) -> ndarray:
        stacked = np.concatenate(given)
        by_head = stacked.reshape(3, heads, stacked.shape[0] // (3 * heads), *stacked.shape[1:]).swapaxes(0, 1)
        return by_head.reshape(stacked.shape).T

    def write(ours: ndarray) -> tuple[ndarray, ...]:
        rows = ours.T
        by_part = rows.reshape(heads, 3, rows.shape[0] // (3 * heads), *rows.shape[1:]).swapaxes(0, 1)
        return tuple(np.split(by_part.reshape(rows.shape), parts))

    return Rule(read, write)


def _third(part: int) -> Rule:
    """One of the q, k, v that are stacked; what three entries write to one source is joined in their order."""
    return Rule(lambda stacked: np.split(stacked, 3)[part].T, lambda ours: (ours.T,))


def _norm(path: str, source: str) -> Iterator[Entry]:
    yield Entry(f"{path}/scale", (f"{source}.weight",), SAME)
    yield Entry(f"{path}/bias", (f"{source}.bias",), SAME)


def _dense(path: str, source: str) -> Iterator[Entry]:
    yield Entry(f"{path}/kernel", (f"{source}.weight",), LINEAR)
    yield Entry(f"{path}/bias", (f"{source}.bias",), SAME)


# norms, first and second linear layer of the MLP, output of the attention, its q, k and v ("" where they are stacked)
OPENAI = ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj", "attn.out_proj", "attn.in_proj_", ())
HUGGINGFACE = (
    *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", "self_attn.out_proj", "self_attn."),
    ("q_proj.", "k_proj.", "v_proj."),
)
BERT = (
    *("attention.output.LayerNorm", "output.LayerNorm", "intermediate.dense", "output.dense", "attention.output.dense"),
    *("attention.self.", ("query.", "key.", "value.")),
)


VIT = (
    *("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense", "attention.output.dense"),
    *("attention.attention.", ("query.", "key.", "value.")),
)
TIMM = ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.proj", "attn.qkv.", ())


def _transformer(path: str, source: str, tower: Tower, names: tuple) -> Iterator[Entry]:
    norm1, norm2, fc1, fc2, out, attention, separate = names
    for i in range(tower.depth):
        ours, theirs = f"{path}/blocks/{i}".lstrip("/"), f"{source}.{i}"
        yield from _norm(f"{ours}/norm1", f"{theirs}.{norm1}")
        yield from _norm(f"{ours}/norm2", f"{theirs}.{norm2}")
        yield from _dense(f"{ours}/mlp/fc1", f"{theirs}.{fc1}")
        yield from _dense(f"{ours}/mlp/fc2", f"{theirs}.{fc2}")
        yield from _dense(f"{ours}/attn/out", f"{theirs}.{out}")
        for kind, ending in (("kernel", "weight"), ("bias", "bias")):
            sources = tuple(f"{theirs}.{attention}{part}{ending}" for part in separate or ("",))
            yield Entry(f"{ours}/attn/qkv/{kind}", sources, _qkv(tower.heads, parts=len(sources)))


def clip(image: Tower, text: Tower) -> Iterator[Entry]:
    """Names of `transformers`' CLIPModel."""
    yield Entry("image/cls_token", ("vision_model.embeddings.class_embedding",), SAME)
    yield from _norm("image/norm_pre", "vision_model.pre_layrnorm")  # so spelt there
    yield Entry("image_projection/kernel", ("visual_projection.weight",), LINEAR)
    yield Entry("text_projection/kernel", ("text_projection.weight",), LINEAR)
    yield Entry("logit_scale/log", ("logit_scale",), SAME)
    yield from _huggingface(image, text)


def siglip(image: Tower, text: Tower) -> Iterator[Entry]:
    """Names of `transformers`' SiglipModel."""
    head = "vision_model.head"
    yield Entry("image/patch_embed/bias", ("vision_model.embeddings.patch_embedding.bias",), SAME)
    yield Entry("image/pool/probe", (f"{head}.probe",), SAME)
    for kind, ending in (("kernel", "weight"), ("bias", "bias")):
        for number, part in enumerate("qkv"):
            yield Entry(f"image/pool/attn/{part}/{kind}", (f"{head}.attention.in_proj_{ending}",), _third(number))
    yield from _dense("image/pool/attn/out", f"{head}.attention.out_proj")
    yield from _norm("image/pool/norm", f"{head}.layernorm")
    yield from _dense("image/pool/mlp/fc1", f"{head}.mlp.fc1")
    yield from _dense("image/pool/mlp/fc2", f"{head}.mlp.fc2")
    yield from _dense("text_projection", "text_model.head")
    yield Entry("logit_scale/log", ("logit_scale",), SCALAR)
    yield Entry("logit_scale/bias", ("logit_bias",), SCALAR)
    yield from _huggingface(image, text)


def _huggingface(image: Tower, text: Tower) -> Iterator[Entry]:
    """What CLIPModel and SiglipModel share."""
    vision, embeddings = "vision_model.embeddings", "text_model.embeddings"
    yield Entry("image/pos_embed", (f"{vision}.position_embedding.weight",), SAME)
    yield Entry("image/patch_embed/kernel", (f"{vision}.patch_embedding.weight",), _patches(image.patch))
    yield from _norm("image/norm", "vision_model.post_layernorm")
    yield from _transformer("image", "vision_model.encoder.layers", image, HUGGINGFACE)
    yield Entry("text/token_embed", (f"{embeddings}.token_embedding.weight",), SAME)
    yield Entry("text/pos_embed", (f"{embeddings}.position_embedding.weight",), SAME)
    yield from _norm("text/norm", "text_model.final_layer_norm")
    yield from _transformer("text", "text_model.encoder.layers", text, HUGGINGFACE)


def bert(text: Tower) -> Iterator[Entry]:
    """Names of `transformers`' BertModel, without what comes before them in a BertForSomething."""
    for ours, theirs in (("token", "word"), ("pos", "position"), ("segment", "token_type")):
        yield Entry(f"{ours}_embed", (f"embeddings.{theirs}_embeddings.weight",), SAME)
    yield from _norm("norm", "embeddings.LayerNorm")
    yield from _transformer("", "encoder.layer", text, BERT)


def vit(image: Tower) -> Iterator[Entry]:
    """Names of `transformers`' ViTModel, without what comes before them in a ViTForSomething."""
    names = ("embeddings.cls_token", "embeddings.position_embeddings", "embeddings.patch_embeddings.projection")
    yield from _plain_vit(image, *names, "layernorm", "encoder.layer", VIT)


def timm_vit(image: Tower) -> Iterator[Entry]:
    """Names of timm's VisionTransformer with a class token."""
    yield from _plain_vit(image, "cls_token", "pos_embed", "patch_embed.proj", "norm", "blocks", TIMM)


def _plain_vit(
    image: Tower, token: str, positions: str, patches: str, norm: str, blocks: str, names: tuple
) -> Iterator[Entry]:
    yield Entry("cls_token", (token,), Rule(lambda x: x.reshape(x.shape[-1:]), lambda x: (x[None, None],)))
    yield Entry("pos_embed", (positions,), Rule(lambda x: x.reshape(x.shape[-2:]), lambda x: (x[None],)))
    yield Entry("patch_embed/kernel", (f"{patches}.weight",), _patches(image.patch))
    yield Entry("patch_embed/bias", (f"{patches}.bias",), SAME)
    yield from _norm("norm", norm)
    yield from _transformer("", blocks, image, names)


def openai_text(text: Tower) -> Iterator[Entry]:
    """Names of the text tower and the logit scale in openai/CLIP and open_clip state dicts."""
    yield Entry("text/token_embed", ("token_embedding.weight",), SAME)
    yield Entry("text/pos_embed", ("positional_embedding",), SAME)
    yield from _norm("text/norm", "ln_final")
    yield from _transformer("text", "transformer.resblocks", text, OPENAI)
    yield Entry("text_projection/kernel", ("text_projection",), SAME)  # kept as [in, out] there
    yield Entry("logit_scale/log", ("logit_scale",), SAME)


def openai_vit(image: Tower) -> Iterator[Entry]:
    """Names of the vision transformer in openai/CLIP and open_clip state dicts."""
    yield Entry("image/cls_token", ("visual.class_embedding",), SAME)
    yield Entry("image/pos_embed", ("visual.positional_embedding",), SAME)
    yield Entry("image/patch_embed/kernel", ("visual.conv1.weight",), _patches(image.patch))
    yield from _norm("image/norm_pre", "visual.ln_pre")
    yield from _norm("image/norm", "visual.ln_post")
    yield from _transformer("image", "visual.transformer.resblocks", image, OPENAI)
    yield Entry("image_projection/kernel", ("visual.proj",), SAME)


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
                yield Entry(f"{ours}/shortcut_conv/kernel", (f"{theirs}.downsample.0.weight",), CONV)
                yield from _batch_norm(f"{ours}/shortcut_norm", f"{theirs}.downsample.1")
    yield Entry("image/pos_embed", ("visual.attnpool.positional_embedding",), SAME)
    for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "c_proj")):
        yield from _dense(f"image/pool/{ours}", f"visual.attnpool.{theirs}")


def _conv_norm(convs: str, norms: str, i: int, conv_source: str, norm_source: str) -> Iterator[Entry]:
    yield Entry(f"{convs}/{i}/kernel", (f"{conv_source}{i + 1}.weight",), CONV)
    yield from _batch_norm(f"{norms}/{i}", f"{norm_source}{i + 1}")


def _batch_norm(path: str, source: str) -> Iterator[Entry]:
    yield from _norm(path, source)
    yield Entry(f"{path}/mean", (f"{source}.running_mean",), SAME)
    yield Entry(f"{path}/var", (f"{source}.running_var",), SAME)
