"""What the study of AdAutoMix measures beside accuracy: which way each player pushes, and what the masks become."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments.adautomix import Game, heads, make_game
from mixcon import config as configs
from mixcon.mixers.losses import soft_cross_entropy
from mixcon.mixers.plan import mix, mix_targets
from mixcon.train import loop
from mixcon.train import mesh as meshes
from mixcon.train.optim import optimizer
from mixcon.train.state import TrainState, stream

PHASE = 300  # steps of the generator alone
DRAWS = 40  # mixed batches that a figure is averaged over
AGAINST, TOGETHER = 0, 1  # parity of an adversarial and of a cooperative step


def directions(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Train as configured; then, the teacher fixed, a new generator against it and another one with it.

    Returns:
      `against`, `together`, `untrained`: the teacher's loss on a generator's mixes less that on linear mixes of the
      same images and λ; `spread_first`, `spread_last`: standard deviation of all shares in the whole training;
      `sum_error`: largest |Σ shares - 1|; `teacher_gain`: accuracy of the teacher's one-hot head less the student's.
    """
    game, state = make_game(config), loop.train(config, workdir / "run", progress=False)
    fresh = game.init(stream(config.seed, "init", 0))[0]["generator"]
    push, compare = phases(config, game, state)
    untrained, trained = compare(fresh), compare(state.params["generator"])
    with jax.set_mesh(meshes.make_mesh(**config.mesh)):
        accuracy = {name: value for name, value in heads(game, teacher=True)(state) if isinstance(value, float)}
    return {
        "untrained": untrained["gap"],
        "against": compare(push(fresh, AGAINST))["gap"],
        "together": compare(push(fresh, TOGETHER))["gap"],
        "spread_first": untrained["spread"],
        "spread_last": trained["spread"],
        "sum_error": max(untrained["sum_error"], trained["sum_error"]),
        "teacher_gain": accuracy["one_k"] - accuracy["one_q"],
    }


def phases(
    config: ml_collections.ConfigDict, game: Game, state: TrainState
) -> tuple[Callable[[dict, int], dict], Callable[[dict], dict[str, float]]]:
    """`push(masks, parity)` trains a generator alone; `compare(masks)` holds its mixes against linear ones."""
    size, classes = config.batch_size, config.model.num_classes
    records = [game.train[i] for i in range(len(game.train))]
    images, labels = (jnp.asarray(np.stack([record[name] for record in records])) for name in ("image", "label"))
    options = {k: v for k, v in configs.plain(config.optimizer).items() if k != "overrides"}
    tx = optimizer(learning_rate=config.schedule.peak, **options)

    def told(masks: dict, key: jax.Array, parity: jax.Array) -> tuple:
        row_key, draw_key, net_key = jax.random.split(key, 3)
        rows = jax.random.permutation(row_key, len(images))[:size]
        batch = game.task.prepare({"image": images[rows], "label": labels[rows]}, key=draw_key, step=parity)
        params = state.params | {"generator": masks}
        reps, _ = game.task.encode(params, state.extra, batch, key=net_key, train=True)
        loss, metrics, _ = game.task.objective(params, {}, reps, batch, key=net_key, step=parity)
        return loss, (metrics, reps, batch)

    @jax.jit
    def turn(masks: dict, opt_state: tuple, key: jax.Array, parity: jax.Array) -> tuple[dict, tuple]:
        grads, _ = jax.grad(told, has_aux=True)(masks, key, parity)
        updates, opt_state = tx.update(grads, opt_state, masks)
        return optax.apply_updates(masks, updates), opt_state

    @jax.jit
    def figures(masks: dict, key: jax.Array) -> dict[str, jax.Array]:
        _, (metrics, reps, batch) = told(masks, key, jnp.int32(TOGETHER))
        plan = batch["generator"]
        teacher = (state.extra["teacher"], state.extra["teacher_statistics"])
        (logits, _), _ = game.classify(*teacher, mix(plan, batch["image"]), key=key, train=True)
        linear = soft_cross_entropy(logits["mix"], mix_targets(plan, batch["label"], num_classes=classes))
        sums = jnp.abs(reps["mask"].sum(axis=-1) - 1).max()
        return {"gap": metrics["generator"] - linear, "spread": metrics["spread"], "sum_error": sums}

    def push(masks: dict, parity: int) -> dict:
        opt_state = tx.init(masks)
        for number in range(PHASE):
            key = stream(config.seed, "phase", number)
            masks, opt_state = turn(masks, opt_state, key, jnp.int32(parity))
        return masks

    def compare(masks: dict) -> dict[str, float]:
        found = [jax.device_get(figures(masks, stream(config.seed, "compare", n))) for n in range(DRAWS)]
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]}

    return push, compare
