"""A mixer that is learned beside the classifier (AdAutoMix, AutoMix, SAMix), against mixers that are only drawn.

Two networks of one kind: the student is trained, the teacher follows it. A generator makes masks from the teacher's
features; the student learns from its mixes, the generator from what the teacher says of them (`train/players.py`).
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixcon import config as configs
from mixcon import data, models
from mixcon.errors import InputError
from mixcon.evals.embed import embedder
from mixcon.mixers.losses import soft_cross_entropy
from mixcon.mixers.plan import dense_targets, mix, mix_targets
from mixcon.models.classifier import Classifier
from mixcon.train import optim
from mixcon.train.assemble import assemble, process_share
from mixcon.train.gradients import ema_teacher, refuse_parts
from mixcon.train.players import Classify, Rule, check_scale, players
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState

EVAL_BATCH = 500


class Game(NamedTuple):
    """What `build` puts together, for those who look inside."""

    init: Callable[[jax.Array], tuple[dict, dict, dict]]
    task: Task
    pixels: data.augment.Pixels
    classify: Classify
    rule: Rule | None  # of a learned mixer
    train: data.Source
    test: data.Source


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Data, classifier and mixing as the config names them."""
    refuse_parts(config.gradient.name, ("standard",), "partners are drawn over the whole batch")
    game, teacher = make_game(config), config.teacher
    momentum = optim.momentum_schedule(
        start=teacher.start, end=teacher.end, steps=config.steps, hold_steps=round(teacher.hold * config.steps)
    )
    return assemble(
        with_own_rate(config),
        init=game.init,
        task=game.task,
        source=game.train,
        evals={"test": heads(game, teacher=teacher.use)},
        around=functools.partial(ema_teacher, momentum=momentum) if teacher.use else lambda gradient: gradient,
    )


def make_game(config: ml_collections.ConfigDict) -> Game:
    """Who plays, with what, on which data."""
    if config.method not in config.methods:
        raise InputError(f"unknown method={config.method!r}; {configs.nearest(config.method, config.methods)}")
    method = config.methods[config.method]
    rule = configs.call(method.rule) if "rule" in method else None
    if rule and not config.teacher.use:
        raise InputError(f"method={config.method!r} learns from its teacher; set teacher.use=True")
    if rule and rule.num_sources > config.batch_size:
        raise InputError(f"num_sources={rule.num_sources} is more than the batch, which is {config.batch_size}")
    seeded = {"seed": config.seed} if config.data.split_by_seed else {}
    train, test = (configs.partial(config.data[side])(**seeded) for side in ("train", "test"))
    pixels = data.augment.pixels(*map(configs.partial, config.augment), mean=config.image_mean, std=config.image_std)
    classes = config.model.num_classes
    spec = configs.plain(config.model) | {"heads": ("one", "mix") if rule else ("one",)}
    model = models.functional(models.build(spec))
    classify = functools.partial(model.apply, method=functools.partial(Classifier.with_map, at=config.tap))

    def init(key: jax.Array) -> tuple[dict, dict, dict]:
        params, statistics = model.init(key)
        extra = {"student": statistics}
        if config.teacher.use:
            extra |= jax.tree.map(jnp.copy, {"teacher": params, "teacher_statistics": statistics})
        return params, extra, {}

    if rule is None:
        return Game(init, drawn_task(config, method, pixels, classify), pixels, classify, rule, train, test)

    def tapped(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = pixels(jnp.asarray(train[0]["image"])[None], key)
        return x, classify(*model.init(key), x)[0][1]

    image, found = jax.eval_shape(tapped, jax.random.key(0))
    check_scale(method.generator.scale, image.shape, found.shape, place=config.tap)
    make = configs.partial(method.generator)
    generator = models.functional(lambda rngs: make(found.shape[-1], rngs=rngs))

    def init_all(key: jax.Array) -> tuple[dict, dict, dict]:
        (params, extra, state), (masks, statistics) = init(key), generator.init(jax.random.fold_in(key, 1))
        return params | {"generator": masks}, extra | {"generator": statistics}, state

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> dict[str, Any]:
        image_key, draw_key = jax.random.split(key)
        image, label = pixels(batch["image"], image_key), batch["label"]
        return {"image": image, "label": label} | rule.draw(draw_key, len(label))

    halves = players(rule, classify, generator.apply, classes=classes, smoothing=config.smoothing)
    return Game(init_all, Task(prepare, *halves), pixels, classify, rule, train, test)


def drawn_task(
    config: ml_collections.ConfigDict,
    method: ml_collections.ConfigDict,
    pixels: data.augment.Pixels,
    classify: Classify,
) -> Task:
    """Cross-entropy of clean images, or of those that a policy without parameters mixes; the teacher only follows."""
    policy = configs.partial(method.mixer) if "mixer" in method else None

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        image_key, mix_key = jax.random.split(key)
        image = pixels(batch["image"], image_key)
        targets = dense_targets(batch["label"], config.model.num_classes, config.smoothing)
        if policy is not None:
            plan = policy(mix_key, image)
            image, targets = mix(plan, image), mix_targets(plan, targets)
        return {"image": image, "targets": targets}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array, train: bool) -> tuple[dict, dict]:
        now = dict(extra)
        (logits, _), now["student"] = classify(params, extra["student"], batch["image"], key=key, train=train)
        if "teacher" in extra:  # for the statistics of its layers
            followed = (extra["teacher"], extra["teacher_statistics"])
            now["teacher_statistics"] = classify(*followed, batch["image"], key=key, train=train)[1]
        return {"logits": logits["one"]}, now

    def objective(params: dict, state: dict, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        return soft_cross_entropy(reps["logits"], batch["targets"]), {}, state

    return Task(prepare, encode, objective)


def with_own_rate(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with the generator as a player of its own in the optimiser, where its method has a schedule."""
    schedule = configs.plain(config.methods[config.method].get("schedule", {}))
    if not schedule:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        own = (r"^generator/", {"schedule": schedule})
        config.optimizer.overrides = (own, *config.optimizer.get("overrides", ()))
    return config


def heads(game: Game, *, teacher: bool) -> Evaluator:
    """Accuracy of each head, `one` and `mix`, of the student (q) and the teacher (k); a single head stands for both."""

    @embedder
    def predict(state: tuple[dict, dict], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        params, extra = state
        student = {name: part for name, part in params.items() if name != "generator"}
        nets = {"q": (student, extra["student"])}
        if teacher:
            nets["k"] = (extra["teacher"], extra["teacher_statistics"])
        found = {"label": batch["label"]}
        for who, net in nets.items():
            logits, _ = game.classify(*net, game.pixels(batch["image"]))[0]
            found |= {f"{head}_{who}": logits.get(head, logits["one"]).argmax(axis=-1) for head in ("one", "mix")}
        return found

    def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
        found = predict(
            (state.params, state.extra), data.eval_batches(game.test, batch_size=EVAL_BATCH, **process_share())
        )
        for name in sorted(found.keys() - {"label", "index"}):
            yield name, float(np.mean(found[name] == found["label"]))

    return evaluate
