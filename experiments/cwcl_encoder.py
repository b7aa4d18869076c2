"""A tower and a linear classifier on what it says, trained with labels: an encoder for others to be aligned to."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_collections
import optax

from mixcon import config as configs
from mixcon import data, models
from mixcon.evals.embed import embed
from mixcon.train.assemble import assemble, process_share
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Tower, classifier and data as the config names them."""
    source = configs.partial(config.data.train)(seed=config.seed)
    tower = models.functional(models.build(configs.plain(config.tower)))
    head = models.functional(models.mlp_head(config.tower.embed_dim, config.num_classes, hidden=1, depth=1))

    def init(key: jax.Array) -> tuple[dict, dict, dict]:
        (params, extra), (linear, _) = (m.init(k) for m, k in zip((tower, head), jax.random.split(key), strict=True))
        return {"tower": params, "head": linear}, {"tower": extra}, {}

    def prepare(batch: Batch, *, key: jax.Array | None = None, step: jax.Array | None = None) -> Batch:
        return {"x": batch[config.view], "label": batch["label"]}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array | None, train: bool) -> tuple[dict, dict]:
        out, moved = tower.apply(params["tower"], extra["tower"], batch["x"], key=key, train=train)
        logits, _ = head.apply(params["head"], {}, out["embedding"])
        return {"logits": logits}, {"tower": moved}

    def objective(params: dict, state: dict, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        loss = optax.softmax_cross_entropy_with_integer_labels(reps["logits"], batch["label"]).mean()
        return loss, {"accuracy": jnp.mean(reps["logits"].argmax(1) == batch["label"])}, state

    def evaluator(piece: ml_collections.ConfigDict) -> Evaluator:
        def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
            def logits(batch: Batch) -> dict[str, jax.Array]:
                ready = prepare(batch)
                return encode(state.averaged, state.extra, ready, key=None, train=False)[0] | {"y": batch["label"]}

            held_out = configs.partial(piece)(seed=config.seed)
            found = embed(logits, data.eval_batches(held_out, batch_size=500, **process_share()))
            yield "top1", float((found["logits"].argmax(1) == found["y"]).mean())

        return evaluate

    return assemble(
        config,
        init=init,
        task=Task(prepare, encode, objective),
        source=source,
        evals={name: evaluator(piece) for name, piece in config.data.evals.items()},
    )
