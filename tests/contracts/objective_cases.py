"""The list of all objectives for the battery. A new one joins by one `Case` here and one loop in the references."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import caption_cases
import geometry_cases
import jax
import jax.numpy as jnp
import memory_references as banks
import multiview_cases
import numpy as np
import objective_references as loops

from mixcon import objectives as o
from mixcon.mixers.embedding import HardDraws
from mixcon.ops import pairs

SIZE, DIM, CLASSES, BANK = 16, 3, 4, 5

Tree = dict[str, Any]


class Case(NamedTuple):
    """One objective in one setting.

    `loss(features, data, shared, **placement)`: features [B, ...] and shared values are differentiated, features and
    data belong to the samples, and `placement` is `impl` and `axis_name`.
    """

    name: str
    loss: Callable[..., Any]
    reference: Callable[..., float]
    features: str = "ab"
    data: tuple[str, ...] = ()
    shared: tuple[str, ...] = ("temperature",)
    engine: bool = True  # takes impl, and claims linear memory through it
    unit: bool = True  # unit rows, or rows of any norm


VALUES = {"temperature": 0.35, "scale": 4.0, "bias": -1.5, "hardness": 0.7, "weight": 0.02, "t": 2.0, "margin": 1.1}
VALUES |= {"alpha": 2.0, "beta": 6.0, "base": 0.3, "small_margin": 0.15}


def _supcon_in(f: Tree, d: Tree, s: Tree, **placement: Any) -> Any:
    views = jnp.stack([f["a"], f["b"]], axis=1)
    return o.supcon(views, d["labels"], temperature=s["temperature"], form="in", **placement)


def _memory(f: Tree, d: Tree, s: Tree, axis_name: str | None = None, **placement: Any) -> Any:
    slots = len(f["a"]) * (1 if axis_name is None else jax.lax.axis_size(axis_name)) + 3
    memory = o.cross_batch_memory(
        slots, DIM, temperature=s["temperature"], dtype=f["a"].dtype, axis_name=axis_name, **placement
    )
    queue = o.push(memory.init(), f["b"], d["labels"], axis_name=axis_name)
    return memory.apply(queue, f["a"], d["labels"])[0]


def _moco(f: Tree, d: Tree, s: Tree, axis_name: str | None = None, **placement: Any) -> Any:
    slots = len(f["a"]) * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    moco = o.momentum_contrast(slots, DIM, axis_name=axis_name, **s, **placement)
    queue = o.push(o.empty_queue(slots, DIM, f["a"].dtype), f["b"], ids=d["labels"], axis_name=axis_name)
    return moco.apply(queue, f["a"], f["b"], ids=d["labels"])[0]


def _mochi(f: Tree, d: Tree, s: Tree, **placement: Any) -> Any:
    """Ranks and shares follow from the labels, so that they move with the batch."""
    rank = (d["labels"][:, None] + np.arange(3, dtype=np.int32)[None]) % 4
    share = (rank.astype(f["a"].dtype) + 1) / 9
    queue = jnp.asarray(loops.QUEUE, f["a"].dtype)
    apart = ~pairs.same_label(d["labels"], jnp.arange(len(queue), dtype=jnp.int32) % CLASSES)
    draws = HardDraws(rank, (rank + 1) % 4, 2 * share, rank, share)
    return o.mochi(f["a"], f["b"], queue, num_hard=4, draws=draws, negatives=apart, **s, **placement)


def _bank(f: Tree, d: Tree, s: Tree, axis_name: str | None = None, **placement: Any) -> Any:
    """A memory of the batch and three more, of whose rows the nearest 40 % are kept."""
    count = len(f["a"]) * (1 if axis_name is None else jax.lax.axis_size(axis_name)) + 3
    contrast = functools.partial(o.hard_info_nce, alpha=0.4, **s)
    bank = o.feature_bank(count, DIM, contrast=contrast, axis_name=axis_name, **placement)
    state = o.FeatureBank(jnp.asarray(banks.slots_of(count), f["a"].dtype))
    return bank.apply(state, f["a"], index=d["index"])[0]


def _adaptive(f: Tree, d: Tree, s: Tree, **placement: Any) -> Any:
    hidden, hidden_bias, output, output_bias = (jnp.asarray(v, f["a"].dtype) for v in loops.PAIR_MLP)
    network = o.PairMlp(hidden * s["scale"], hidden_bias, output, output_bias)
    return o.adaptive_weighted_info_nce(f["a"], f["b"], network, temperature=s["temperature"], **placement)


def _mixed(f: Tree, d: Tree, s: Tree, **placement: Any) -> Any:
    target = pairs.mixed(d["partner"], d["weight"].astype(f["a"].dtype))
    return o.multi_positive(f["a"], f["b"], target, temperature=s["temperature"], symmetric=True, **placement)


def _of_all_examples(make: Any, *, all_seen: bool = False, **options: Any) -> Callable[..., Any]:
    """A loss that remembers every example: a third of them new, unless `all_seen`; their weights are constant."""

    def loss(f: Tree, d: Tree, s: Tree, axis_name: str | None = None, **placement: Any) -> Any:
        count = len(f["a"]) * (1 if axis_name is None else jax.lax.axis_size(axis_name)) + 3
        dtype = f["a"].dtype
        objective = make(count, axis_name=axis_name, dtype=dtype, **options, **placement)
        id = jnp.arange(count, dtype=dtype)
        seen = jnp.where((id % 3 > 0) | all_seen, jnp.log(0.5 + (id % 7) / 7), -jnp.inf)

        def known(memory: Any) -> Any:
            own = () if isinstance(memory.temperature, tuple) else 0.2 + (id % 5) / 20
            return memory._replace(log_average=seen, temperature=own)

        state = objective.init()
        state = {k: known(m) for k, m in state.items()} if isinstance(state, dict) else known(state)
        scale = {"logit_scale": s["t"]} if s else {}
        return objective.apply(state, f["a"], f["b"], index=d["index"], epoch=1, **scale)[0]

    return loss


CASES = [
    Case(
        "clip",
        lambda f, d, s, **p: o.clip(f["a"], f["b"], logit_scale=s["scale"], logit_bias=s["bias"], **p),
        loops.clip,
        shared=("scale", "bias"),
    ),
    Case(
        "clip: ALIGN",
        lambda f, d, s, **p: o.clip(f["a"], f["b"], logit_scale=s["scale"], label_smoothing=0.1, reduction="sum", **p),
        loops.align,
        shared=("scale",),
    ),
    Case(
        "clip: candidates without gradient",
        lambda f, d, s, **p: o.clip(f["a"], f["b"], logit_scale=s["scale"], stop_gradient_gathered=True, **p),
        loops.clip_one_sided,
        shared=("scale",),
    ),
    Case(
        "siglip",
        lambda f, d, s, **p: o.siglip(f["a"], f["b"], logit_scale=s["scale"], logit_bias=s["bias"], **p),
        loops.siglip,
        shared=("scale", "bias"),
    ),
    Case(
        "info_nce: with a bank",
        lambda f, d, s, **p: o.info_nce(f["a"], f["b"], temperature=s["temperature"], bank=s["bank"], **p),
        loops.info_nce,
        shared=("temperature", "bank"),
    ),
    Case(
        "info_nce: symmetric",
        lambda f, d, s, **p: o.info_nce(f["a"], f["b"], temperature=s["temperature"], symmetric=True, **p),
        loops.info_nce_symmetric,
    ),
    Case(
        "info_nce: over a memory",
        lambda f, d, s, **p: o.info_nce(
            f["a"], s["bank"], positive_index=d["labels"], temperature=s["temperature"], **p
        ),
        banks.info_nce_memory,
        features="a",
        data=("labels",),
        shared=("temperature", "bank"),
    ),
    Case("hard_info_nce", lambda f, d, s, **p: o.hard_info_nce(f["a"], f["b"], top_k=3, **s, **p), banks.hard_info_nce),
    Case(
        "hard_simple_contrastive",
        lambda f, d, s, **p: o.hard_simple_contrastive(f["a"], f["b"], top_k=3, **p),
        banks.hard_simple_contrastive,
        shared=(),
    ),
    Case(
        "simple_contrastive",
        lambda f, d, s, axis_name=None, **_: o.simple_contrastive(f["a"], f["b"], axis_name=axis_name),
        banks.simple_contrastive,
        shared=(),
        engine=False,
    ),
    Case("feature_bank", _bank, banks.feature_bank, features="a", data=("index",)),
    Case("nt_xent", lambda f, d, s, **p: o.nt_xent(f["a"], f["b"], **s, **p), loops.nt_xent),
    Case("decoupled", lambda f, d, s, **p: o.decoupled(f["a"], f["b"], **s, **p), loops.decoupled),
    Case(
        "decoupled: weighted",
        lambda f, d, s, **p: o.decoupled(f["a"], f["b"], weight_sigma=0.5, **s, **p),
        loops.decoupled_weighted,
    ),
    Case("debiased", lambda f, d, s, **p: o.debiased(f["a"], f["b"], **s, **p), loops.debiased),
    Case(
        "hard_negative_reweighted",
        lambda f, d, s, **p: o.hard_negative_reweighted(f["a"], f["b"], **s, **p),
        loops.hard_negative,
        shared=("temperature", "hardness"),
    ),
    Case(
        "hard_negative_reweighted: two modalities",
        lambda f, d, s, **p: o.hard_negative_reweighted(f["a"], f["b"], negatives="other_view", **s, **p),
        loops.hard_negative_other_view,
    ),
    Case(
        "supcon",
        lambda f, d, s, **p: o.supcon(f["a"], d["labels"], **s, **p),
        loops.supcon,
        features="a",
        data=("labels",),
    ),
    Case("supcon: in, two views", _supcon_in, loops.supcon_in, data=("labels",)),
    Case(
        "multi_positive: dense weights",
        lambda f, d, s, **p: o.multi_positive(f["a"], f["b"], d["weights"], **s, **p),
        loops.multi_positive,
        data=("weights",),
        engine=False,
    ),
    Case(
        "multi_positive: mixed, symmetric",
        _mixed,
        loops.multi_positive_symmetric,
        data=("partner", "weight"),
    ),
    Case(
        "m3co",
        lambda f, d, s, **p: o.m3co(f["a"], f["b"], d["partner"], d["weight"], normalize=False, **s, **p),
        loops.m3co,
        data=("partner", "weight"),
    ),
    Case(
        "m3co: fixed points overwritten",
        lambda f, d, s, **p: o.m3co(
            f["a"], f["b"], d["partner"], d["weight"], fixed_point="overwrite", normalize=False, **s, **p
        ),
        loops.m3co_overwritten,
        data=("partner", "weight"),
    ),
    Case("soft_clip", lambda f, d, s, **p: o.soft_clip(f["a"], f["b"], normalize=False, **s, **p), loops.soft_clip),
    Case(
        "multiple_negatives_ranking",
        lambda f, d, s, **p: o.multiple_negatives_ranking(f["a"], f["b"], f["c"], **s, **p),
        loops.ranking,
        features="abc",
        shared=("scale",),
    ),
    Case(
        "n_pairs",
        lambda f, d, s, **p: o.n_pairs(f["a"], f["b"], l2_weight=0.02, **p),
        loops.n_pairs,
        shared=(),
        unit=False,
    ),
    Case(
        "barlow_twins",
        lambda f, d, s, axis_name=None, **_: o.barlow_twins(
            f["a"], f["b"], off_diagonal_weight=s["weight"], axis_name=axis_name
        ),
        loops.barlow_twins,
        shared=("weight",),
        engine=False,
        unit=False,
    ),
    Case(
        "vicreg",
        lambda f, d, s, axis_name=None, **_: o.vicreg(f["a"], f["b"], axis_name=axis_name),
        loops.vicreg,
        shared=(),
        engine=False,
        unit=False,
    ),
    Case(
        "alignment",
        lambda f, d, s, axis_name=None, **_: o.alignment(f["a"], f["b"], alpha=3.0, axis_name=axis_name),
        loops.alignment,
        shared=(),
        engine=False,
    ),
    Case(
        "uniformity",
        lambda f, d, s, **p: o.uniformity(f["a"], **s, **p),
        loops.uniformity,
        features="a",
        shared=("t",),
    ),
    Case(
        "uniformity: between two sets",
        lambda f, d, s, **p: o.uniformity(f["a"], f["b"], **s, **p),
        loops.cross_uniformity,
        shared=("t",),
    ),
    Case(
        "clip_alignment_uniformity",
        lambda f, d, s, **p: o.clip_alignment_uniformity(
            f["a"], f["b"], logit_scale=s["scale"], alignment=0.5, uniformity=2.0, cross_uniformity=1.5, **p
        ),
        banks.clip_alignment_uniformity,
        shared=("scale",),
    ),
    Case(
        "cyclic",
        lambda f, d, s, axis_name=None, **_: o.cyclic(
            f["a"], f["b"], in_modal=0.3, cross_modal=0.7, axis_name=axis_name
        ),
        banks.cyclic,
        shared=(),
        engine=False,
    ),
    Case(
        "contrastive",
        lambda f, d, s, **p: o.contrastive(f["a"], d["labels"], **s, **p),
        loops.contrastive,
        features="a",
        data=("labels",),
        shared=("margin",),
        unit=False,
    ),
    Case(
        "contrastive: active pairs",
        lambda f, d, s, **p: o.contrastive(f["a"], d["labels"], power=1, average="active", **s, **p),
        loops.contrastive_active,
        features="a",
        data=("labels",),
        shared=("margin",),
        unit=False,
    ),
    Case(
        "multi_similarity",
        lambda f, d, s, **p: o.multi_similarity(f["a"], d["labels"], **s, **p),
        loops.multi_similarity,
        features="a",
        data=("labels",),
        shared=("alpha", "beta", "base"),
    ),
    Case(
        "multi_similarity: not mined",
        lambda f, d, s, **p: o.multi_similarity(f["a"], d["labels"], mining_margin=None, **s, **p),
        loops.multi_similarity_plain,
        features="a",
        data=("labels",),
        shared=("alpha", "beta", "base"),
    ),
    Case(
        "circle",
        lambda f, d, s, **p: o.circle(f["a"], d["labels"], margin=s["margin"], scale=s["scale"], **p),
        loops.circle,
        features="a",
        data=("labels",),
        shared=("margin", "scale"),
    ),
    Case(
        "triplet",
        lambda f, d, s, **p: o.triplet(f["a"], d["labels"], margin=None, **p),
        loops.triplet_hard,
        features="a",
        data=("labels",),
        shared=(),
        unit=False,
    ),
    Case(
        "triplet: semi-hard, squared",
        lambda f, d, s, **p: o.triplet(f["a"], d["labels"], mining="semi_hard", distance="squared", **p),
        loops.triplet_semi_hard,
        features="a",
        data=("labels",),
        shared=(),
        engine=False,
    ),
    Case(
        "triplet: all, cosine, active",
        lambda f, d, s, **p: o.triplet(f["a"], d["labels"], mining="all", distance="cosine", average="active", **p),
        loops.triplet_all,
        features="a",
        data=("labels",),
        shared=(),
        engine=False,
    ),
    Case(
        "proxy_nca",
        lambda f, d, s, axis_name=None, **_: o.proxy_nca(f["a"], d["labels"], **s, axis_name=axis_name),
        loops.proxy_nca,
        features="a",
        data=("labels",),
        shared=("proxies", "scale"),
        engine=False,
    ),
    Case(
        "proxy_anchor",
        lambda f, d, s, axis_name=None, **_: o.proxy_anchor(f["a"], d["labels"], **s, axis_name=axis_name),
        loops.proxy_anchor,
        features="a",
        data=("labels",),
        shared=("proxies", "scale", "margin"),
        engine=False,
    ),
    Case("momentum_contrast", _moco, loops.momentum_contrast, data=("labels",)),
    Case("mochi", _mochi, loops.mochi, data=("labels",)),
    Case(
        "weighted_info_nce: other classes only, symmetric",
        lambda f, d, s, **p: o.weighted_info_nce(
            f["a"], f["b"], ~pairs.same_label(d["labels"]), symmetric=True, **s, **p
        ),
        loops.weighted_info_nce,
        data=("labels",),
    ),
    Case(
        "cluster_weighted_info_nce",
        lambda f, d, s, **p: o.cluster_weighted_info_nce(
            f["a"], f["b"], jnp.stack([d["labels"], d["labels"] // 2]), **s, **p
        ),
        loops.cluster_weighted_info_nce,
        data=("labels",),
    ),
    Case(
        "adaptive_weighted_info_nce",
        _adaptive,
        loops.adaptive_weighted_info_nce,
        shared=("temperature", "scale"),
    ),
    Case(
        "prototype_nce",
        lambda f, d, s, axis_name=None, **_: o.prototype_nce(
            f["a"],
            [jnp.asarray(loops.PROTOTYPES, f["a"].dtype)],
            [jnp.asarray(loops.DENSITIES, f["a"].dtype)],
            d["labels"][None],
            axis_name=axis_name,
        ),
        loops.prototype_nce,
        features="a",
        data=("labels",),
        shared=(),
        engine=False,
    ),
    Case("cross_batch_memory", _memory, loops.cross_batch_memory, data=("labels",)),
    Case("isogclr", _of_all_examples(o.isogclr, average=0.6), banks.isogclr, data=("index",), shared=()),
    Case("sogclr", _of_all_examples(o.sogclr, temperature=0.3, average=0.6), banks.sogclr, data=("index",), shared=()),
    Case("isogclr_clip", _of_all_examples(o.isogclr_clip, average=0.6), banks.isogclr_clip, data=("index",), shared=()),
    Case(
        "sogclr_clip",
        _of_all_examples(o.sogclr_clip, temperature=0.3, average=0.6, positive=False),
        banks.sogclr_clip,
        data=("index",),
        shared=(),
    ),
    Case(
        "fastclip",
        # Averages that all but stay as they are, so that the loss has the slope along the scale that it claims.
        _of_all_examples(o.fastclip, version="v0", average=1e-15, all_seen=True),
        banks.fastclip,
        data=("index",),
        shared=("t",),
    ),
    *(Case(**case) for case in geometry_cases.CASES),
]
CASES += [Case(**each) for each in multiview_cases.CASES]
CASES += [Case(**each) for each in caption_cases.CASES]


def example(case: Case, size: int = SIZE, seed: int = 0) -> tuple[Tree, Tree, Tree]:
    """(features, data, shared) in float64. Rows grow more alike along the batch, so no two shards look the same."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=DIM)

    def rows(count: int) -> np.ndarray:
        x = rng.normal(size=(count, DIM)) + np.linspace(0, 1.5, count)[:, None] * centre
        return (
            x / np.linalg.norm(x, axis=1, keepdims=True) * (1 if case.unit else np.linspace(0.5, 1.5, count)[:, None])
        )

    features = {name: rows(size) for name in case.features}
    every: dict[str, Callable[[], np.ndarray]] = {
        "labels": lambda: rng.permutation(np.arange(size) % CLASSES).astype(np.int32),
        "index": lambda: rng.permutation(size + 3)[:size].astype(np.int32),
        "partner": lambda: rng.permutation(size).astype(np.int32),
        "weight": lambda: rng.uniform(size=size),
        "weights": lambda: rng.uniform(size=(size, size)) * (rng.uniform(size=(size, size)) < 0.6),
    }
    shared: Tree = {name: np.float64(VALUES[name]) for name in case.shared if name in VALUES}
    if "proxies" in case.shared:
        proxies = rng.normal(size=(CLASSES + 1, DIM))
        shared["proxies"] = proxies / np.linalg.norm(proxies, axis=1, keepdims=True)
    if "bank" in case.shared:
        bank = rng.normal(size=(BANK, DIM))
        shared["bank"] = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    return features, {name: every[name]() for name in case.data}, shared
