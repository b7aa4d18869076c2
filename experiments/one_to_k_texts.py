"""1-to-K contrast without images: the caption in one language stands for the picture, those in others are its texts.

Everything else of the method is in `experiments.one_to_k`; here are an encoder of `config.anchor` and one that the
languages of `config.captions` share, and nothing but the contrast.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixcon import config as configs
from mixcon import data, evals, models
from mixcon.data.captions import draw_languages
from mixcon.errors import InputError
from mixcon.evals.embed import embed
from mixcon.train.assemble import assemble, process_share
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState

EVAL_BATCH = 500


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Encoders, loss and data as the config names them."""
    source = configs.call(config.data.train)
    languages, number = tuple(config.captions.languages), config.captions.number or len(config.captions.languages)
    if missing := {config.anchor, *languages} - set(source[0]):
        raise InputError(f"captions: records have no {missing.pop()!r}; they have {', '.join(sorted(source[0]))}")
    encoders = {side: models.functional(models.build(configs.plain(config.encoder))) for side in ("anchor", "text")}
    loss = configs.partial(config.objective)

    def init(key: jax.Array) -> tuple[dict, dict, dict]:
        keys = dict(zip(encoders, jax.random.split(key, len(encoders)), strict=True))
        made = {side: encoder.init(keys[side]) for side, encoder in encoders.items()}
        return {side: pair[0] for side, pair in made.items()}, {side: pair[1] for side, pair in made.items()}, {}

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        texts = jnp.stack([batch[language] for language in languages], axis=1)
        everywhere = jnp.ones(texts.shape[:2], bool)
        chosen = draw_languages(key, everywhere, number)
        return {"anchor": batch[config.anchor], "text": jnp.take_along_axis(texts, chosen[:, :, None], axis=1)}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array | None, train: bool) -> tuple[dict, dict]:
        out = {side: encoders[side].apply(params[side], extra[side], batch[side], train=train)[0] for side in encoders}
        return {side: models.l2_normalize(features) for side, features in out.items()}, extra

    def objective(params: dict, state: dict, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        value, metrics = loss(reps["anchor"], reps["text"], has_aux=True)
        return value, {name: x for name, x in metrics.items() if x.ndim == 0}, state

    def evaluator(held_out: data.Source) -> Evaluator:
        tested = tuple(name for name in held_out[0] if name != config.anchor)

        def features(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
            ready = {"anchor": batch[config.anchor], "text": jnp.stack([batch[name] for name in tested], axis=1)}
            return encode(state.averaged, state.extra, ready, key=None, train=False)[0]

        def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
            batches = data.eval_batches(held_out, batch_size=EVAL_BATCH, **process_share())
            found = embed(lambda batch: features(state, batch), batches)
            texts = {name: np.ascontiguousarray(found["text"][:, k]) for k, name in enumerate(tested)}
            yield from evals.multilingual_report(found["anchor"], texts)

        return evaluate

    return assemble(
        config,
        init=init,
        task=Task(prepare, encode, objective),
        source=source,
        evals={name: evaluator(configs.call(piece)) for name, piece in config.data.evals.items()},
    )
