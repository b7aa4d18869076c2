"""One modality learns to speak to a frozen other one: locked-tower contrast, with one-hot or graded targets (CWCL).

`config.views` names the fields that the trained and the frozen tower see. The frozen tower is no part of the state: its
features of the training set are computed once and read beside the records (`frozen.cached`), or its weights are fixed
arrays of every batch. Images and captions are `experiments.clip` with a locked image tower.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixcon import config as configs
from mixcon import data, evals, models
from mixcon.data.beside import Beside
from mixcon.data.records import read, two_views
from mixcon.errors import InputError
from mixcon.evals.embed import embedder
from mixcon.models.heads import LogitScale
from mixcon.train.assemble import assemble, process_share
from mixcon.train.feature_cache import cached_features
from mixcon.train.gradients import refuse_parts
from mixcon.train.objective import pair_objective
from mixcon.train.stages import earlier, fitting
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState

EVAL_BATCH = 500
FEATURES = "frozen_features"
MADE = ("given", "bert")  # kinds of frozen towers whose view is no field of the records: features instead, or tokens
Encoder = Callable[[Any, jax.Array], jax.Array]  # (weights, inputs) -> unit embeddings


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """The frozen tower and its features, the trained tower, loss, data and evaluations as the config names them."""
    refuse_parts(config.gradient.name, ("standard",), "the frozen weights belong to the whole batch")
    source = source_of(config, config.data.train)
    made = config.views[1:] if config.frozen.kind in MADE else ()
    view, known_view = two_views(config.views, {*source[0], *made})
    known, weights, transform = frozen_tower(config, workdir)
    spec = configs.plain(config.tower)
    trained = models.functional(models.build(spec))
    scale = models.functional(lambda rngs: LogitScale(**configs.plain(config.logit_scale)))
    loss = pair_objective(config.objective, num_examples=len(source))
    lowest, highest = configs.bounds("logit_scale_range", config.logit_scale_range)

    def with_features(records: data.Source, piece: ml_collections.ConfigDict) -> data.Source:
        if config.frozen.kind == "given":
            return records
        found = cached_features(
            lambda weights, batch: {FEATURES: known(weights, batch[known_view])},
            weights,
            records,
            folder=workdir / "features",
            about=f"{configs.to_json(piece)} {config.seed} {configs.to_json(config.frozen)}",
            transform=transform,
            batch_size=config.frozen.batch_size,
        )
        return Beside(records, found, without=(known_view,))

    def init(key: jax.Array) -> tuple[dict, dict, dict]:
        params, extra = trained.init(key)
        return {"trained": params, "logit_scale": scale.init(key)[0]}, extra, loss.init()

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        wanted = (view, "index", "label", FEATURES) if config.frozen.cached else (view, "index", "label", known_view)
        return {name: batch[name] for name in (*wanted, "frozen") if name in batch}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array | None, train: bool) -> tuple[dict, dict]:
        out, extra = trained.apply(params["trained"], extra, batch[view], key=key, train=train)
        features = batch[FEATURES] if FEATURES in batch else known(batch["frozen"], batch[known_view])
        return {"trained": models.l2_normalize(vector(out)), "frozen": features}, extra

    def objective(params: dict, state: dict, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        multiplier, _ = models.read_logit_scale(params["logit_scale"])
        more = {"logit_scale": multiplier, "index": batch["index"], "epoch": 0}
        more |= {"labels": batch["label"]} if config.objective.get("weights") == "labels" else {}
        value, aux, state = loss.apply(state, reps["trained"], jax.lax.stop_gradient(reps["frozen"]), **more)
        return value, aux | {"logit_scale": multiplier}, state

    def pairs_of(variables: tuple[dict, dict], batch: Batch) -> dict[str, jax.Array]:
        reps, _ = encode(*variables, batch, key=None, train=False)
        return reps | ({"label": batch["label"]} if "label" in batch else {})

    embed_pairs = embedder(pairs_of)

    def embedded(state: TrainState, held_out: data.Source) -> dict[str, np.ndarray]:
        return embed_pairs(
            (state.averaged, state.extra), data.eval_batches(held_out, batch_size=EVAL_BATCH, **process_share())
        )

    classes = None
    if config.data.get("classes"):
        labelled = with_features(source_of(config, config.data.classes), config.data.classes)
        classes = class_means(labelled)
    held_out = {name: with_features(source_of(config, piece), piece) for name, piece in config.data.evals.items()}
    cached = config.frozen.cached
    return assemble(
        config,
        init=init,
        task=Task(prepare, encode, objective),
        constrain=lambda params: models.clamp_logit_scale(params, low=lowest, high=highest),
        source=with_features(source, config.data.train) if cached else source,
        transform=None if cached else transform,
        fixed=None if cached else {"frozen": weights},
        evals={name: evaluator(records, classes, embedded) for name, records in held_out.items()},
    )


def source_of(config: ml_collections.ConfigDict, piece: ml_collections.ConfigDict) -> data.Source:
    """A source that the config names, split by the run's seed where it is asked to."""
    return configs.partial(piece)(seed=config.seed) if config.data.split_by_seed else configs.call(piece)


def frozen_tower(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> tuple[Encoder, Any, Any]:
    """(weights, inputs) -> unit embeddings; its weights; and how host batches become its inputs.

    "labels": a tower that `frozen.training` trains first, in a folder of its own. "pca": principal components.
    "bert": weights and tokenizer of a text encoder in `frozen.weights`. With "given" there is no tower: records hold
    its features, of unit length, as `frozen_features`.
    """
    frozen, view = config.frozen, config.views[1]
    if frozen.kind == "given":
        return lambda weights, x: x, (), None
    if frozen.kind == "pca":
        rows = np.stack([record[view] for record in read(source_of(config, frozen.training.data.train))])
        mean = rows.mean(0)
        axes = np.linalg.svd(rows - mean, full_matrices=False)[2][: frozen.embed_dim]
        basis = {"mean": mean.astype(np.float32), "axes": axes.astype(np.float32)}
        return lambda w, x: models.l2_normalize((x - w["mean"][None]) @ w["axes"].T), basis, None
    if frozen.kind == "labels":
        trained = earlier(frozen, workdir, seed=config.seed, name="frozen")
        tower = models.functional(models.build(configs.plain(frozen.training.tower)))
        params, extra = (part.get("tower", {}) for part in trained)
        weights, transform = fitting((params, extra), tower.init, of=frozen.get("run") or "frozen.training"), None
    elif frozen.kind == "bert":
        found = models.load_bert(frozen.weights, pool="mean", scan_layers=True)
        tokenizer = data.tokenizer.load(frozen.tokenizer)
        tower = models.functional(models.build(found.spec | {"dtype": frozen.dtype}))
        weights, transform = (found.params, found.extra), data.tokenizer.tokenize(tokenizer, frozen.context_length)
    else:
        raise InputError(f"frozen.kind={frozen.kind!r} is unknown; choose 'labels', 'pca', 'bert' or 'given'.")

    def encode(weights: Any, x: jax.Array) -> jax.Array:
        return models.l2_normalize(vector(tower.apply(*weights, x)[0]).astype(jnp.float32))

    return encode, weights, transform


def vector(out: Any) -> jax.Array:
    """What a tower says of its input, with a head or without."""
    return out["embedding"] if isinstance(out, dict) else out


def class_means(labelled: data.Source) -> np.ndarray:
    """Unit means [C, D] of the frozen features of each class."""
    records = list(read(labelled))
    features, labels = (np.stack([record[name] for record in records]) for name in (FEATURES, "label"))
    return evals.normalized(np.stack([features[labels == c].mean(0) for c in range(labels.max() + 1)]))


def evaluator(
    held_out: data.Source, classes: np.ndarray | None, embedded: Callable[..., dict[str, np.ndarray]]
) -> Evaluator:
    """Classes by the nearest mean of the frozen modality, where there are labels; else retrieval of the pairs."""

    def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
        found = embedded(state, held_out)
        if classes is None:
            yield from evals.retrieval(found["trained"], found["frozen"], ks=(1, 5)).items()
            return
        for name, side in (("zero_shot", "trained"), ("frozen", "frozen")):
            yield name, float(np.mean(np.argmax(found[side] @ classes.T, axis=1) == found["label"]))

    return evaluate
