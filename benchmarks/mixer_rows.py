"""What `benchmarks.mixers` times: image policies as functions of (key, data), and training steps to put them in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mixcon import mixers as m
from mixcon.models import functional, resnet, vit

CLASSES, SIZE = 1000, 224
Data = dict[str, Array]
Policy = Callable[[Array, Array], m.Plan]
CHEAP: dict[str, Policy] = {
    "mixup": m.mixup,
    "cutmix": m.cutmix,
    "smoothmix": m.smoothmix,
    "gridmix": m.gridmix,
    "resizemix": m.resizemix,
    "fmix": m.fmix,
    "mixup_or_cutmix": m.mixup_or_cutmix,
}
OTHERS: dict[str, Callable[[Array, Data], m.Plan]] = {
    "token_cutmix": lambda key, d: m.token_cutmix(key, d["x"]),
    "tokenmix": lambda key, d: m.tokenmix(key, d["x"]),
    "maskmix": lambda key, d: m.maskmix(key, d["x"]),
    "smmix": lambda key, d: m.smmix(key, d["x"], attention=d["attention"]),
    "mergemix, attention given": lambda key, d: m.mergemix(key, d["x"], attention=d["attention"]),
    "attentivemix, features given": lambda key, d: m.attentivemix(key, d["x"], features=d["features"]),
    "snapmix, maps given": lambda key, d: m.snapmix(key, d["x"], percent=d["percent"], labels=d["y"]),
    "saliencymix, detector included": lambda key, d: m.saliencymix(
        key, d["x"], saliency=m.fine_grained_saliency(d["image"]).astype(jnp.float32)
    ),
    "guidedmixup, saliency given": lambda key, d: m.guidedmixup(key, d["x"], saliency=d["percent"]),
    "guidedmixup, spectral residual included": lambda key, d: m.guidedmixup(
        key, d["x"], saliency=m.spectral_residual_saliency(d["x"])
    ),
    "puzzlemix, saliency given": lambda key, d: m.puzzlemix(
        key, d["x"], saliency=d["percent"], block_nums=(2, 4, 8), t_size=-1
    ),
}


def mixed(plan: m.Plan, d: Data) -> tuple[Array, Array]:
    """Images and soft labels: what a peer's call gives."""
    return m.mix(plan, d["x"]), m.mix_targets(plan, d["y"], num_classes=CLASSES)


def cheap(name: str, **options: Any) -> Callable[[Array, Data], tuple[Array, Array]]:
    """A policy that needs only the images' shape, applied."""
    policy = partial(CHEAP[name], **options)
    return lambda key, d: mixed(policy(key, d["x"]), d)


def looking() -> dict[str, Callable[[Array, Data], tuple[Array, Array]]]:
    """`OTHERS`, applied."""

    def by(policy: Callable[[Array, Data], m.Plan], key: Array, d: Data) -> tuple[Array, Array]:
        return mixed(policy(key, d), d)

    return {name: partial(by, policy) for name, policy in OTHERS.items()}


def learned() -> dict[str, Callable[[Array, Data], tuple[Array, Array]]]:
    """Learned masks on features [B, 14, 14, 256] of a ResNet-18's third stage, and AlignMix on its last map."""
    blocks = {v: m.MixBlock(256, 16, variant=v, rngs=nnx.Rngs(0)) for v in ("automix", "samix")}
    for block in blocks.values():
        block.eval()  # running statistics: nothing is written while the call is traced
    net = m.AdaptiveMask(256, 16, rngs=nnx.Rngs(0))

    def automix(block: m.MixBlock, key: Array, d: Data) -> tuple[Array, Array]:
        partner = m.choose_partner(key, d["x"].shape[0])
        return mixed(m.automix(block, d["stage3"], partner, m.sample_weight(key, 1, alpha=2.0)[0]), d)

    def adautomix(key: Array, d: Data) -> tuple[Array, Array]:
        plan = m.simplex_mixup(key, d["x"])
        return mixed(m.adautomix(net, d["stage3"], plan.partner, plan.weight[0]), d)

    def alignmix(key: Array, d: Data) -> tuple[Array, Array]:
        plan = m.alignmix(key, d["features"])
        return m.mix(plan, d["features"]), m.mix_targets(plan, d["y"], num_classes=CLASSES)

    return {
        "alignmix, of the last map": alignmix,
        "automix, stage-3 features given": partial(automix, blocks["automix"]),
        "samix, stage-3 features given": partial(automix, blocks["samix"]),
        "adautomix, stage-3 features given": adautomix,
        "augmix": lambda key, d: (m.augmix(key, d["image"]), d["y"]),
    }


def data(batch: int, size: int = SIZE) -> Data:
    """Smooth random pictures and what policies look at."""
    keys = jax.random.split(jax.random.key(0), 4)
    coarse = jax.random.uniform(keys[0], (batch, 28, 28, 3))
    x = jax.image.resize(coarse, (batch, size, size, 3), "linear")
    grey = jnp.abs(x - 0.5).mean(axis=-1)
    return {
        "x": x,
        "image": (255 * x).astype(jnp.uint8),
        "y": jax.random.randint(keys[1], (batch,), 0, CLASSES),
        "percent": grey / grey.sum(axis=(1, 2), keepdims=True),
        "attention": jax.image.resize(grey, (batch, 14, 14), "linear").reshape(batch, -1),
        "features": jax.nn.relu(jax.random.normal(keys[2], (batch, 7, 7, 512))),
        "stage3": jax.nn.relu(jax.random.normal(keys[3], (batch, 14, 14, 256))),
    }


class Network(NamedTuple):
    params: Any
    extra: Any
    step: Callable[..., Any]  # (params, extra, key, data, which) → params, extra, loss
    forward: Callable[..., Any]  # (params, extra, data) → logits


def network(name: str, policies: list[Policy]) -> Network:
    """A training step that mixes by one of the policies (`which`, a traced index; 0 mixes nothing) in one program."""
    make = resnet(18, num_classes=CLASSES) if name == "ResNet-18" else vit("Ti/16", num_classes=CLASSES)
    model = functional(make)
    params, extra = model.init(jax.random.key(0))

    def plain(key: Array, x: Array, y: Array) -> tuple[Array, Array]:
        return x, jax.nn.one_hot(y, CLASSES)

    def by(policy: Policy, key: Array, x: Array, y: Array) -> tuple[Array, Array]:
        return mixed(policy(key, x), {"x": x, "y": y})

    branches = [plain, *(partial(by, p) for p in policies)]

    def step(params: Any, extra: Any, key: Array, d: Data, which: Array) -> Any:
        x, y = jax.lax.switch(which, branches, key, d["x"], d["y"])

        def loss(params: Any) -> Any:
            logits, new = model.apply(params, extra, x, train=True)
            return m.soft_cross_entropy(logits, y), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 1e-4 * g, params, grads), new, value

    def forward(params: Any, extra: Any, d: Data) -> Array:
        return model.apply(params, extra, d["x"])[0]

    return Network(params, extra, jax.jit(step), jax.jit(forward))
