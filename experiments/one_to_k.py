"""An image and its captions in several languages: 1-to-K contrast, hard pairs told apart, hidden words filled in."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.clip import prepare_tokenizer
from mixcon import config as configs
from mixcon import data, evals, models, objectives
from mixcon.data.captions import OneLanguage, draw_languages, tokenize_captions
from mixcon.data.masking import mask_tokens
from mixcon.data.records import read
from mixcon.errors import InputError
from mixcon.evals.embed import embed
from mixcon.train.assemble import assemble, process_share
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState

EVAL_BATCH = 128


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Towers, fusion, losses, data and evaluations as the config names them."""
    source = configs.call(config.data.train)
    languages, tested = tuple(config.captions.languages), tuple(config.captions.tested or config.captions.languages)
    number, consistent = config.captions.number or len(languages), tuple(config.captions.get("consistent", ()))
    if strange := set(consistent) - set(tested):
        raise InputError(f"captions.consistent: {strange.pop()!r} is not among those tested, {', '.join(tested)}.")
    tokenizer = prepare_tokenizer(config, workdir, OneLanguage(source, languages))
    mask_id, spec = tokenizer.vocab_size, configs.plain(config.model)  # one token more than the tokenizer knows
    pad_id = None if tokenizer.pad_id == tokenizer.eos_id else tokenizer.pad_id
    spec["text"] |= {"vocab_size": tokenizer.vocab_size + 1, "pad_id": pad_id}
    model, length = models.functional(models.build(spec)), spec["text"]["context_length"]
    augment = data.augment.compose(*map(configs.partial, config.augment))
    contrast = configs.partial(config.objective)
    name_image(config.image_id, source)
    by_id = "ids" in inspect.signature(configs.resolve(config.objective.name)).parameters
    if by_id and (number > 1 or not config.image_id):
        raise InputError("a loss by ids takes one caption a record: set captions.number=1, and image_id to its field.")
    special = tuple(
        {tokenizer.pad_id, tokenizer.eos_id} | ({tokenizer.bos_id} if tokenizer.bos_id is not None else set())
    )
    hide = configs.plain(config.hidden) | {"mask_id": mask_id, "vocab_size": mask_id, "special_ids": special}
    weights, (coldest, warmest) = config.weights, configs.bounds("temperature_range", config.temperature_range)

    def pixels(images: jax.Array) -> jax.Array:
        return data.augment.normalize(images, config.image_mean, config.image_std)

    def init(key: jax.Array) -> tuple[dict, dict, dict]:
        return *model.init(key), {}

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        image_key, language_key = jax.random.split(key)
        chosen = draw_languages(language_key, batch["text_mask"], number)
        return {
            "image": pixels(augment(image_key, data.augment.to_float(batch["image"]))),
            "tokens": jnp.take_along_axis(batch["tokens"], chosen[:, :, None], axis=1),
            "text_mask": jnp.take_along_axis(batch["text_mask"], chosen, axis=1),
            "image_id": batch[config.image_id or "index"],
        }

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array | None, train: bool) -> tuple[dict, dict]:
        images, captions = batch["tokens"].shape[:2]
        rows = batch["tokens"].reshape(images * captions, -1)
        out, extra = model.apply(params, extra, batch["image"], rows, key=key, train=train)
        for name in ("text", "text_tokens"):
            out[name] = out[name].reshape(images, captions, *out[name].shape[1:])
        return out, extra

    def objective(params: dict, state: dict, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        temperature, there = params["logit_scale"]["temperature"], batch["text_mask"]
        if by_id:
            loss = contrast(reps["image"], reps["text"][:, 0], batch["image_id"], temperature=temperature)
            metrics = {}
        else:
            options = {"temperature": temperature, "text_mask": there, "has_aux": True}
            loss, metrics = contrast(reps["image"], reps["text"], **options)
        metrics = {name: value for name, value in metrics.items() if value.ndim == 0}
        metrics |= {"contrast": loss, "temperature": temperature}
        loss = weights.contrast * loss
        if weights.matching or weights.words:
            parts = fused(params, reps, batch, temperature=temperature, key=key)
            loss += sum(weights[name] * value for name, value in parts.items())
            metrics |= parts
        return loss, metrics, state

    def fused(params: dict, reps: dict, batch: Batch, *, temperature: jax.Array, key: jax.Array) -> dict:
        """The losses of the fusion encoder: three pairs of each image, and one of its captions with hidden words."""
        parts: dict[str, jax.Array] = {}
        draw_key, match_key, hide_key, fill_key = jax.random.split(key, 4)
        images, captions = batch["text_mask"].shape
        block = min(config.matching.block, images) or images
        options = {"prefer": config.matching.prefer, "text_mask": batch["text_mask"], "ids": batch["image_id"]}
        options |= {"key": draw_key, "temperature": temperature}
        if block == images:
            drawn = objectives.draw_matches(reps["image"], reps["text"], **options)
        else:
            drawn = objectives.draw_matches_in_blocks(reps["image"], reps["text"], block=block, **options)

        def take(rows: jax.Array, index: jax.Array) -> jax.Array:
            """Rows of the batch, each from its own block: no device asks another one."""
            blocks, own = images // block, rows.shape[0] // images * block
            cut = rows.reshape(blocks, own, *rows.shape[1:])
            found = jax.vmap(lambda rows, index: rows[index])(cut, jnp.maximum(index, 0).reshape(blocks, block) % own)
            return found.reshape(images, *rows.shape[1:])

        own = jnp.arange(images, dtype=jnp.int32) * captions + jnp.maximum(drawn.caption, 0)
        ids, tokens = (
            rows.reshape(images * captions, *rows.shape[2:]) for rows in (batch["tokens"], reps["text_tokens"])
        )
        shown, real = reps["image_tokens"], drawn.caption >= 0
        if weights.matching:
            texts = (own, own, drawn.negative_text)
            seen = (shown, take(shown, drawn.negative_image), shown)
            three = [take(ids, row) for row in texts], [take(tokens, row) for row in texts], seen
            pairs = [jnp.stack(list(part), axis=1).reshape(3 * images, *part[0].shape[1:]) for part in three]
            said, _ = model.apply(params, {}, *pairs, key=match_key, train=True, method="match")
            kept = jnp.stack([real, drawn.negative_image >= 0, drawn.negative_text >= 0], axis=1)
            parts["matching"] = objectives.pair_matching(said.reshape(images, 3, 2), mask=kept)
        if weights.words:
            hidden = mask_tokens(hide_key, take(ids, own), **hide)
            question = hidden.tokens, hidden.positions, shown
            guessed, _ = model.apply(params, {}, *question, key=fill_key, train=True, method="fill")
            parts["words"] = objectives.masked_tokens(guessed, hidden.targets, mask=hidden.mask & real[:, None])
        return parts

    def evaluator(held_out: data.Source) -> Evaluator:
        def features(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
            ready = {"image": pixels(data.augment.to_float(batch["image"])), "tokens": batch["tokens"]}
            out = encode(state.averaged, state.extra, ready, key=None, train=False)[0]
            kept = out if config.rerank else {name: out[name] for name in ("image", "text")}
            kept |= {"there": batch["text_mask"], "image_id": batch[config.image_id or "index"]}
            return kept | {"ids": batch["tokens"]}

        def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
            transform = tokenize_captions(tokenizer, length, tested)
            batches = data.eval_batches(held_out, batch_size=EVAL_BATCH, transform=transform, **process_share())
            found = embed(lambda batch: features(state, batch), batches)
            texts, there = (
                {name: np.ascontiguousarray(found[part][:, k]) for k, name in enumerate(tested)}
                for part in ("text", "there")
            )
            options = {"ids": found["image_id"], "there": there, "over": consistent, "k": config.rerank}
            match = second_stage(model, state, found, tested) if config.rerank else None
            yield from evals.multilingual_report(found["image"], texts, score=match, **options)

        name_image(config.image_id, held_out)
        return evaluate

    return assemble(
        config,
        init=init,
        task=Task(prepare, encode, objective),
        constrain=lambda params: models.clamp_logit_scale(
            params, low=1 / warmest, high=1 / coldest if coldest else float("inf")
        ),
        source=source,
        transform=tokenize_captions(tokenizer, length, languages),
        evals={name: evaluator(configs.call(piece)) for name, piece in config.data.evals.items()},
    )


def name_image(field: str, source: data.Source) -> None:
    """Refuse records without the number by which an image is known."""
    for record in read(source, at_most=1) if field else ():
        if not np.issubdtype(np.asarray(record.get(field, "")).dtype, np.integer):
            raise InputError(f"image_id: records have no integer {field!r}; they have {', '.join(sorted(record))}.")


def second_stage(model: models.Model, state: TrainState, found: dict, languages: tuple[str, ...]) -> Callable:
    """`score(language, images_ask)`: of pairs, the logit by which the matching head says that they belong together."""

    @jax.jit
    def yes(params: dict, ids: jax.Array, tokens: jax.Array, images: jax.Array) -> jax.Array:
        return model.apply(params, {}, ids, tokens, images, method="match")[0][:, 1]

    def score(language: str, images_ask: bool) -> evals.multilingual.Score:
        k = languages.index(language)

        def of_pairs(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
            images, texts = (rows, cols) if images_ask else (cols, rows)
            out = []
            for start in range(0, len(rows), EVAL_BATCH):
                here = [np.resize(x[start : start + EVAL_BATCH], EVAL_BATCH) for x in (images, texts)]  # one shape
                pair = found["ids"][here[1], k], found["text_tokens"][here[1], k], found["image_tokens"][here[0]]
                out.append(jax.device_get(yes(state.averaged, *jax.device_put(pair))))
            return np.concatenate(out)[: len(rows)]

        return of_pairs

    return score
