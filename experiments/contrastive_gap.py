"""Two encoders of two views, or of the same one, trained by contrast: does a gap open between what they say?

`config.views` names the field that each encoder sees; equal names are the idealised setting, in which the encoders get
identical inputs. `config.zero_gap` turns the second encoder onto the first before training, by a constant rotation.
Images and captions are `experiments.clip` with the same objective.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixcon import config as configs
from mixcon import data, evals, models
from mixcon.data.records import read, two_views
from mixcon.evals.embed import embed
from mixcon.models.procrustes import procrustes_alignment
from mixcon.train import loop
from mixcon.train import mesh as meshes
from mixcon.train.assemble import assemble, process_share
from mixcon.train.objective import pair_objective
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState, init_state

ENCODERS = ("first", "second")
BATCH = 500


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Encoders, rotation, loss, data and evaluations as the config names them."""
    source = configs.call(config.data.train)
    views = dict(zip(ENCODERS, two_views(config.views, source[0]), strict=True))
    towers = {name: models.functional(models.build(configs.plain(config.towers[name]))) for name in ENCODERS}
    augmentations = map(configs.partial, config.augment)
    view_of = data.augment.pixels(*augmentations, mean=config.image_mean, std=config.image_std)
    loss = pair_objective(config.objective, num_examples=len(source))
    steps_per_epoch = max(len(source) // config.batch_size, 1)

    def pixels(x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images as the encoders take them; tables stay as they are."""
        return view_of(x, key) if x.dtype == jnp.uint8 else x

    def init(key: jax.Array) -> tuple[dict, dict, dict]:
        made = {name: towers[name].init(k) for name, k in zip(ENCODERS, jax.random.split(key), strict=True)}
        params, extra = ({name: pair[i] for name, pair in made.items()} for i in (0, 1))
        if config.zero_gap:
            sample = sampled(source, config.views, config.zero_gap.pairs)

            def unit(name: str) -> jax.Array:
                def one(x: jax.Array) -> jax.Array:
                    return towers[name].apply(params[name], extra[name], pixels(x[None]))[0]["embedding"][0]

                return models.l2_normalize(jax.lax.map(one, jnp.asarray(sample[views[name]]), batch_size=BATCH))

            rotation = procrustes_alignment(unit("first"), unit("second"), gap=config.zero_gap.gap)
            extra = extra | {"rotation": rotation}
        return params, extra, loss.init()

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        """Both encoders see one augmentation: with equal views, identical inputs."""
        return {view: pixels(batch[view], key) for view in set(config.views)} | {"index": batch["index"]}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array | None, train: bool) -> tuple[dict, dict]:
        reps, new = {}, dict(extra)
        keys = (None, None) if key is None else jax.random.split(key)
        for name, k in zip(ENCODERS, keys, strict=True):
            out, new[name] = towers[name].apply(params[name], extra[name], batch[views[name]], key=k, train=train)
            reps[name] = models.l2_normalize(out["embedding"])
        if "rotation" in extra:
            reps["second"] = reps["second"] @ extra["rotation"].T
        return reps, new

    def objective(params: dict, state: dict, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        which = {"index": batch["index"], "epoch": step // steps_per_epoch, "key": key}  # for losses that ask
        return loss.apply(state, reps["first"], reps["second"], **which)

    def embedded(state: TrainState, held_out: data.Source) -> dict[str, np.ndarray]:
        def features(batch: Batch) -> dict[str, jax.Array]:
            ready = {view: pixels(batch[view]) for view in set(config.views)}
            reps, _ = encode(state.averaged, state.extra, ready, key=None, train=False)
            return reps | ({"label": batch["label"]} if "label" in batch else {})

        return embed(features, data.eval_batches(held_out, batch_size=BATCH, **process_share()))

    return assemble(
        config,
        init=init,
        task=Task(prepare, encode, objective),
        source=source,
        evals={name: evaluator(configs.call(piece), source, embedded) for name, piece in config.data.evals.items()},
    )


def sampled(source: data.Source, views: tuple[str, str], count: int) -> dict[str, np.ndarray]:
    """Stacked fields of so many records, or fewer, from all over the source."""
    records = list(read(source, at_most=count))
    return {view: np.stack([record[view] for record in records]) for view in set(views)}


def evaluator(
    held_out: data.Source, known: data.Source, embedded: Callable[..., Mapping[str, np.ndarray]]
) -> Evaluator:
    """The gap, retrieval between the views, and classes by the other view's nearest centroid."""

    def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
        shown = embedded(state, held_out)
        sides = shown["first"], shown["second"]
        yield from evals.gap_report(*sides).items()
        yield "alignment", evals.alignment(*sides)
        both = [evals.retrieval(a, b, ks=(1, 3, 5, 10)) for a, b in (sides, sides[::-1])]
        recalls = [name for name in both[0] if name.startswith("R@") and "/" not in name]
        yield from ((name, (both[0][name] + both[1][name]) / 2) for name in recalls)
        if "label" in shown:
            train = embedded(state, known)
            labels = train["label"], shown["label"]
            ways = [by_centroid(shown[a], train[b], *labels) for a, b in (ENCODERS, ENCODERS[::-1])]
            yield "zero_shot", sum(ways) / 2

    return evaluate


def by_centroid(query: np.ndarray, known: np.ndarray, known_labels: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of the class whose centroid, of the other view, is nearest."""
    classes = np.unique(known_labels)
    centroids = evals.normalized(np.stack([known[known_labels == c].mean(0) for c in classes]))
    return float(np.mean(classes[np.argmax(query @ centroids.T, axis=1)] == labels))


def before_and_after(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """A study's measure: the evaluation of the untrained encoders and, under `after/`, of the trained ones."""
    experiment = loop.build(config, workdir)

    def evaluated(when: str, state: TrainState) -> dict[str, float]:
        with jax.set_mesh(meshes.make_mesh(**config.mesh)), jax.numpy_dtype_promotion("standard"):
            return {f"{when}/{name}": float(value) for name, value in experiment.evals["test"](state)}

    untrained = jax.jit(lambda seed: init_state(experiment, seed, ema=False))(np.uint32(config.seed))
    found = evaluated("before", untrained)
    return found | evaluated("after", loop.train(config, workdir, progress=False))
