"""CLIP, its improved recipe, and what may be added: SiamLIP, BYOL-LIP, BarLIP, SwALIP, over weak and strong views.

`config.towers` names the field of each of the two views: images (bytes), captions (under `text`), or rows of features.
`config.method` picks one of `config.methods`: the heads that it adds, and the term, with its weight.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import clip
from mixcon import config as configs
from mixcon import data, evals, models, objectives
from mixcon.data.text_augment import CaptionAugmentation, caption_views
from mixcon.errors import InputError
from mixcon.evals.embed import embed
from mixcon.objectives import PairedViews
from mixcon.train.assemble import assemble, process_share
from mixcon.train.gradients import ema_teacher
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState

EVAL_BATCH = 250
METHODS = ("clip", "barlip", "siamlip", "byolip", "swalip", "swalip_prototypes")
Reps = dict[str, dict[str, jax.Array]]


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Towers, heads, views, loss, data and evaluations as the config names them."""
    method = check(config)
    source = configs.call(config.data.train)
    views = tuple(config.towers)
    tokenizer = clip.prepare_tokenizer(config, workdir, source) if "text" in views else None
    towers = {view: tower(config, view, tokenizer) for view in views}
    scale = models.functional(lambda rngs: models.LogitScale(config.logit_scale))
    view_scale = models.functional(lambda rngs: models.LogitScale(config.view_logit_scale))
    prototypes = None
    if config.method == "swalip_prototypes":
        sizes = method.heads.projector.out_features, method.prototypes
        prototypes = models.functional(lambda rngs: models.Prototypes(*sizes, rngs))
    pipelines = config.augment.weak, config.augment.strong, config.augment.get("strong2") or config.augment.strong
    weak, strong, second = (data.augment.compose(*map(configs.partial, pieces)) for pieces in pipelines)
    strongs = [second if number == 1 else strong for number in range(config.strong_views)]

    def init(key: jax.Array) -> tuple[dict, dict, dict]:
        keys = iter(jax.random.split(key, len(views) + 3))
        params, extra = {}, {}
        for view in views:
            params[view], extra[view] = towers[view].init(next(keys))
        if config.method == "byolip":
            extra["teacher"] = jax.tree.map(jnp.copy, dict(params))
        params |= {"logit_scale": scale.init(next(keys))[0], "view_logit_scale": view_scale.init(next(keys))[0]}
        return params | ({"prototypes": prototypes.init(next(keys))[0]} if prototypes else {}), extra, {}

    def pixels(x: jax.Array) -> jax.Array:
        return data.augment.normalize(x, config.image_mean, config.image_std)

    def ready(x: jax.Array, augment: Callable, key: jax.Array | None = None) -> jax.Array:
        """Images and features are augmented here, captions were on the host."""
        if x.dtype == jnp.int32:
            return x
        image = x.dtype == jnp.uint8
        x = data.augment.unit_float(x) if image else x
        x = x if key is None else augment(key, x)
        return pixels(x) if image else x

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        out = {}
        for view, k in zip(views, jax.random.split(key, len(views)), strict=True):
            weak_key, *keys = jax.random.split(k, 1 + config.strong_views)
            out[view] = ready(batch[view], weak, weak_key)
            if f"{view}_views" in batch:
                out[f"{view}_views"] = batch[f"{view}_views"]
            elif keys:
                seen = [ready(batch[view], augment, k) for augment, k in zip(strongs, keys, strict=True)]
                out[f"{view}_views"] = jnp.stack(seen, axis=1)
        return out | {"index": batch["index"]}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array, train: bool) -> tuple[Reps, dict]:
        reps: Reps = {}
        new = dict(extra)
        if train and len(batch[views[0]]) < 2:
            raise InputError("batch_size: one pair at a time has no other to be told from, and no statistics; take two")
        for number, view in enumerate(views):
            inputs = batch[view], batch.get(f"{view}_views")
            own, taught = jax.random.split(jax.random.fold_in(key, number))
            out, new[view] = towers[view].apply(params[view], extra[view], *inputs, key=own, train=train)
            if "teacher" in extra:  # the same inputs, the statistics of the batch; those it would keep are dropped
                of_teacher = extra["teacher"][view]
                held, _ = towers[view].apply(of_teacher, extra[view], *inputs, key=taught, train=train)
                out = out | {f"{name}_held": x for name, x in jax.lax.stop_gradient(held).items()}
            reps[view] = out
        return reps, new

    def objective(params: dict, state: dict, reps: Reps, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        scales = {name: models.read_logit_scale(params[name])[0] for name in ("logit_scale", "view_logit_scale")}
        pairs = functools.partial(paired, reps, views)
        own_scale = config.strong_views and "strong" in config.heads
        recipe = dict(label_smoothing=config.label_smoothing, reduction=config.reduction)
        recipe |= dict(stop_gradient_gathered=config.stop_gradient_gathered, has_aux=True)
        view_logit_scale = scales["view_logit_scale"] if own_scale else scales["logit_scale"]
        loss, metrics = objectives.multiview_clip(
            pairs("weak", "strong"), logit_scale=scales["logit_scale"], view_logit_scale=view_logit_scale, **recipe
        )
        if config.method != "clip":
            scores = None
            if prototypes:
                held = jax.lax.stop_gradient(params["prototypes"])
                own = jax.tree.map(
                    functools.partial(jnp.where, step >= method.frozen_steps), params["prototypes"], held
                )
                scores = [
                    prototypes.apply(own, {}, models.l2_normalize(x))[0] for x in pairs("projected", "projected")[:2]
                ]
            extra = term(config, pairs, view_logit_scale, scores)
            loss, metrics = loss + method.weight * extra, metrics | {"term": extra}
        return loss, metrics | scales, state

    share = config.ensemble if "strong" in config.heads else 1.0  # of the weak views' heads

    def embedded(state: TrainState, view: str, x: jax.Array) -> jax.Array:
        """Unit rows whose products are w·weak + (1-w)·strong similarities."""
        apply = towers[view].apply
        out, _ = apply(state.averaged[view], state.extra[view], ready(x, weak), method="embed")
        return jnp.concatenate([share**0.5 * out["weak"], (1 - share) ** 0.5 * out["strong"]], axis=1)

    def embed_pairs(state: TrainState, pairs: data.Source) -> dict[str, np.ndarray]:
        def features(batch: Batch) -> dict[str, jax.Array]:
            names = ("image", "text") if tokenizer else views
            found = {name: embedded(state, view, batch[view]) for name, view in zip(names, views, strict=True)}
            return found | ({"label": batch["label"]} if "label" in batch else {})

        batches = data.eval_batches(pairs, batch_size=EVAL_BATCH, transform=plain, **process_share())
        return embed(features, batches)

    def embed_texts(state: TrainState, texts: Sequence[str]) -> np.ndarray:
        assert tokenizer is not None
        tokens = tokenizer.encode(texts, config.towers.text.backbone.context_length)
        return np.asarray(jax.device_get(jax.jit(lambda x: embedded(state, "text", x))(tokens)))

    plain, augmented = None, None
    if tokenizer:
        length = config.towers.text.backbone.context_length
        plain = data.tokenizer.tokenize(tokenizer, length, out="text")
        kinds = CaptionAugmentation(seed=config.seed, **configs.plain(config.captions))
        augmented = caption_views(kinds, tokenizer, length, views=config.strong_views)
        found = clip.evaluators(config, embed_pairs, embed_texts, functools.partial(class_weights, share=share))
    else:
        found = {
            name: evaluator(configs.call(piece), source, views, embed_pairs)
            for name, piece in config.data.evals.items()
        }
    momentum = functools.partial(ema_teacher, momentum=method.momentum) if config.method == "byolip" else None
    return assemble(
        config,
        init=init,
        task=Task(prepare, encode, objective),
        around=momentum or (lambda gradient: gradient),
        constrain=lambda params: models.clamp_logit_scale(params, low=1.0, high=100.0),
        source=source,
        transform=augmented,
        evals=found,
    )


def check(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The chosen method's settings; refuses what does not go together."""
    if config.method not in METHODS:
        raise InputError(f"method={config.method!r} is none of {', '.join(METHODS)}")
    if len(config.towers) != 2:
        raise InputError(f"towers must be two, one for each view; got {', '.join(config.towers)}")
    if config.method == "swalip" and (config.strong_views != 2 or config.label_smoothing):
        raise InputError(
            f"swalip swaps two strong views and takes no label smoothing: set strong_views=2 and label_smoothing=0.0, "
            f"not {config.strong_views} and {config.label_smoothing}; method='swalip_prototypes' needs neither"
        )
    return ml_collections.ConfigDict() if config.method == "clip" else config.methods[config.method]


def tower(config: ml_collections.ConfigDict, view: str, tokenizer: data.Tokenizer | None) -> models.Model:
    """A view's backbone with the heads of the recipe and of the method."""
    spec = configs.plain(config.towers[view])
    backbone = spec["backbone"]
    if view == "text" and tokenizer is not None:
        pad_id = None if tokenizer.pad_id == tokenizer.eos_id else tokenizer.pad_id
        backbone |= {"vocab_size": tokenizer.vocab_size, "pad_id": pad_id, "eos_id": tokenizer.eos_id}
    extra = {} if config.method == "clip" else configs.plain(config.methods[config.method].heads)
    heads = configs.plain(config.heads) | extra
    return models.functional(
        models.multiview_tower(
            models.build(backbone), heads, regularize_weak=spec["regularize_weak"], dtype=config.head_dtype
        )
    )


def class_weights(prompts_CTD: np.ndarray, share: float) -> np.ndarray:
    """A classifier [D, C] of `embedded` rows: each head averages and normalises a class's prompts by itself."""
    parts = zip(np.split(prompts_CTD, 2, axis=-1), (share, 1 - share), strict=True)
    return np.concatenate([w**0.5 * evals.zero_shot_weights(part) if w else part[:, 0].T for part, w in parts])


def paired(reps: Reps, views: tuple[str, str], weak: str, strong: str) -> PairedViews:
    """The representations of that name, of weak and strong views."""
    return PairedViews(*(reps[view].get(name) for name in (weak, strong) for view in views))


def term(config: ml_collections.ConfigDict, pairs: Callable[..., PairedViews], scale: jax.Array, scores: Any) -> Any:
    """What the method adds to CLIP, before its weight."""
    options = configs.plain(config.methods[config.method].options)
    if config.method == "swalip":
        options["stop_gradient_gathered"] = config.stop_gradient_gathered
        return objectives.swalip(pairs("weak", "strong"), logit_scale=scale, **options)
    if config.method == "swalip_prototypes":
        return objectives.swapped_assignment(*scores, **options)
    projected = pairs("projected", "strong_projected")
    if config.method == "barlip":
        return objectives.barlip(projected, **options)
    targets = pairs("projected_held", "strong_projected_held") if config.method == "byolip" else projected
    return objectives.siamlip(pairs("predicted", "strong_predicted"), targets, **options)


def evaluator(held_out: data.Source, known: data.Source, views: tuple[str, str], embed_pairs: Callable) -> Evaluator:
    """Retrieval between two tables, and classes by the other view's nearest centroid."""

    def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
        shown, train = embed_pairs(state, held_out), embed_pairs(state, known)
        ways = views, views[::-1]
        found = [evals.retrieval(shown[a], shown[b], ks=(1, 5)) for a, b in ways]
        yield from ((f"{a}_to_{b}/R@1", each["R@1"]) for (a, b), each in zip(ways, found, strict=True))
        yield from ((name, sum(each[name] for each in found) / 2) for name in ("R@1", "R@5"))
        classes = np.unique(train["label"])
        right = []
        for a, b in ways:
            centroids = evals.normalized(np.stack([train[b][train["label"] == c].mean(0) for c in classes]))
            right.append(np.mean(classes[np.argmax(shown[a] @ centroids.T, axis=1)] == shown["label"]))
        yield "zero_shot", float(np.mean(right))

    return evaluate
