"""A dual encoder trained by contrast of matching pairs: CLIP, SigLIP and whatever else scores a batch of pairs."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixcon import config as configs
from mixcon import data, models
from mixcon.data.records import read
from mixcon.errors import InputError
from mixcon.evals import image_text
from mixcon.evals.composed import composed_report
from mixcon.evals.embed import embed
from mixcon.evals.zero_shot import zero_shot_weights
from mixcon.train.assemble import assemble, process_share
from mixcon.train.checkpoint import Checkpoints
from mixcon.train.objective import pair_objective
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState, stream

EVAL_BATCH = 256
RANDOM = "random"  # as `init_from`: no weights, though towers are locked, as to plan a run
TASKS = {  # of an evaluation: which held-out set, by which field of its records, and what else
    "zero_shot": ("on", "label", "prompts"),
    "probes": ("on", "label", "train"),
    "edits": ("on", "key", "known", "weight", "changes"),
}
TOKENIZER_TEXTS = 100_000  # captions that a tokenizer is trained on, at most


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Towers, loss, data and evaluations as the config names them."""
    source = configs.call(config.data.train)
    tokenizer = prepare_tokenizer(config, workdir, source)
    spec, pretrained = describe_model(config, tokenizer)
    model, length = models.functional(models.build(spec)), spec["text"]["context_length"]
    tokenizer = tokenizer.padded_for(spec["text"].get("pool"))
    captions = data.tokenizer.tokenize(tokenizer, length)
    words = data.tokenizer.tokenize(tokenizer, length, field="keywords", out="keyword_tokens")
    augment = data.augment.compose(*map(configs.partial, config.augment))
    loss = pair_objective(config.objective, num_examples=len(source))
    steps_per_epoch = max(len(source) // config.batch_size, 1)
    lowest, highest = configs.bounds("logit_scale_range", config.logit_scale_range)

    def pixels(images: jax.Array) -> jax.Array:
        return data.augment.normalize(images, config.image_mean, config.image_std)

    def init(key: jax.Array) -> tuple[dict, dict, dict]:
        return *model.init(key), loss.init()

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        image_key, text_key = jax.random.split(key)
        image = pixels(augment(image_key, data.augment.to_float(batch["image"])))
        tokens = batch["tokens"]
        if "keyword_tokens" in batch:
            swap = jax.random.bernoulli(text_key, config.keyword_share, (len(tokens), 1))
            tokens = jnp.where(swap, batch["keyword_tokens"], tokens)
        return {"image": image, "tokens": tokens, "index": batch["index"]}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array, train: bool) -> tuple[dict, dict]:
        out, extra = model.apply(params, extra, batch["image"], batch["tokens"], key=key, train=train)
        return {"image": out["image"], "text": out["text"]}, extra

    def objective(params: dict, state: dict, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        scale, bias = models.read_logit_scale(params["logit_scale"])
        which = {"index": batch["index"], "epoch": step // steps_per_epoch, "key": key}  # for those that ask
        value, aux, state = loss.apply(state, reps["image"], reps["text"], logit_scale=scale, logit_bias=bias, **which)
        return value, aux | {"logit_scale": scale}, state

    def embed_pairs(state: TrainState, pairs: data.Source) -> dict[str, np.ndarray]:
        def features(batch: Batch) -> dict[str, jax.Array]:
            ready = {"image": pixels(data.augment.to_float(batch["image"])), "tokens": batch["tokens"]}
            return encode(state.averaged, state.extra, ready, key=None, train=False)[0]

        return embed(features, data.eval_batches(pairs, batch_size=EVAL_BATCH, transform=captions, **process_share()))

    def embed_texts(state: TrainState, texts: Sequence[str]) -> np.ndarray:
        tokens = tokenizer.encode(texts, length)
        encoder = jax.jit(lambda params, tokens: model.apply(params, state.extra, tokens, method="encode_text")[0])
        return np.asarray(jax.device_get(encoder(state.averaged, tokens)))

    return assemble(
        config,
        init=init,
        pretrained=pretrained,
        task=Task(prepare, encode, objective),
        constrain=lambda params: models.clamp_logit_scale(params, low=lowest, high=highest),
        source=source,
        transform=(lambda batch: words(captions(batch))) if config.keyword_share else captions,
        evals=evaluators(config, embed_pairs, embed_texts),
    )._replace(model=spec)


def prepare_tokenizer(config: ml_collections.ConfigDict, workdir: pathlib.Path, source: data.Source) -> data.Tokenizer:
    """The tokenizer that the config names, or one trained on the captions and kept in the workdir."""
    if config.tokenizer.path:
        return data.tokenizer.load(config.tokenizer.path)
    kept = workdir / "tokenizer.json"
    if not Checkpoints(workdir, read_only=True).steps():  # what a start that came to nothing left may be of other data
        kept.unlink(missing_ok=True)
    return data.tokenizer.load_or_train(
        kept,
        lambda: (record["text"] for record in read(source, at_most=TOKENIZER_TEXTS)),
        vocab_size=config.tokenizer.vocab_size,
        kind=config.tokenizer.get("kind", "bpe"),
    )


def describe_model(config: ml_collections.ConfigDict, tokenizer: data.Tokenizer) -> tuple[dict, tuple | None]:
    """The model in plain words and, where parts of it are loaded, its parameters and statistics."""
    spec, found = configs.plain(config.model), loaded(config)
    if (homeless := sorted(set(spec.get("locked", ())) - set(found.params))) and config.init_from != RANDOM:
        raise InputError(
            f"model.locked names {', '.join(homeless)}, which would stay random: set init_from to a folder of weights "
            "(a CLIP, a SigLIP, a plain ViT) and init_parts to parts of it that include the tower, or init_from to "
            f"{RANDOM!r} where the numbers do not matter"
        )
    if "text" in found.params:
        text = found.spec["text"]
        is_bert, folder = text["name"] == "bert", config.get("text_init_from", "") or config.init_from
        spare = text["vocab_size"] - tokenizer.vocab_size
        if spare < 0 or (is_bert and spare) or text.get("eos_id") not in (None, tokenizer.eos_id):
            raise InputError(
                f"the tokenizer ({tokenizer.vocab_size} tokens, end of text {tokenizer.eos_id}) is not that of the "
                f"weights in {folder} ({text['vocab_size']}, {text.get('eos_id')}); set tokenizer.path to the "
                f"{'vocab.txt' if is_bert else 'tokenizer.json'} that belongs to them"
            )
    else:
        words = tokenizer.padded_for(spec["text"].get("pool"))
        pad_id = None if words.pad_id == words.eos_id else words.pad_id  # no mask that hides the end token
        ids = {"vocab_size": tokenizer.vocab_size, "pad_id": pad_id}
        if spec["text"]["name"] == "text_transformer":  # the tower that may pool at the end token
            ids["eos_id"] = tokenizer.eos_id
        spec["text"] |= ids
    if not found.params:
        return spec, None
    whole = models.complete(spec, found, stream(config.seed, "init", 0))
    return whole.spec, (whole.params, whole.extra)


def loaded(config: ml_collections.ConfigDict) -> models.Pretrained:
    """The parts whose weights the config names: of `init_from`, and a BERT as the text tower."""
    found, scan_layers = models.Pretrained({}, {}, {}), config.model.scan_layers
    if config.init_from not in ("", RANDOM):
        load = configs.partial({"name": "mixcon.models.load_towers", **config.get("init_options", {})})
        whole = load(config.init_from, scan_layers=scan_layers)
        found = models.select(whole, tuple(config.get("init_parts", ())))
    if folder := config.get("text_init_from", ""):
        if "text" in found.params:
            raise InputError("init_from and text_init_from both have a text tower; leave it out in init_parts")
        text = models.load_bert(folder, scan_layers=scan_layers)
        length = min(config.model.text.context_length, text.spec["context_length"])
        params = text.params | {"pos_embed": text.params["pos_embed"][:length]}
        found = models.Pretrained(
            found.spec | {"text": text.spec | {"context_length": length}}, found.params | {"text": params}, found.extra
        )
    return found


def check_tasks(config: ml_collections.ConfigDict, name: str, record: Mapping) -> None:
    """Refuse tasks that could not be done on a held-out set once the model is trained; `record` is one of its own."""
    for kind, keys in TASKS.items():
        for task in config.get(kind, ()):
            if not isinstance(task, Mapping | ml_collections.ConfigDict) or set(task) != set(keys):
                raise InputError(f"{kind} must be a sequence of dicts with {', '.join(keys)}; got {task!r} in it")
            field = task[keys[1]]
            if task["on"] == name and field not in record:
                raise InputError(f"{kind} on {name!r}: records have no {field!r} but {', '.join(sorted(record))}")
            if kind == "zero_shot" and len({len(prompts) for _, prompts in task["prompts"]}) != 1:
                raise InputError(f"zero_shot on {task['on']!r}: every class needs the same number of prompts")


def evaluators(
    config: ml_collections.ConfigDict,
    embed_pairs: Callable,
    embed_texts: Callable,
    classify: Callable[[np.ndarray], np.ndarray] = zero_shot_weights,
) -> dict[str, Evaluator]:
    """One for each held-out set: retrieval, and the zero-shot tasks, probes and maps that the config puts on it.

    `classify`: embedded prompts [C, T, D] -> weights [D, C] of the classes.
    """

    def evaluator(name: str, piece: Mapping) -> Evaluator:
        held_out = configs.call(piece)
        check_tasks(config, name, next(read(held_out, at_most=1), {}))

        def evaluate(state: TrainState) -> image_text.Yielded:
            found = embed_pairs(state, held_out)
            image, text, records = found["image"], found["text"], [held_out[i] for i in found["index"]]
            options = {"image_id": config.get("image_id", ""), "ks": tuple(config.get("recall_at", (1, 5, 10)))}
            yield from image_text.retrieval_report(image, text, records, name=name, **options)
            for task in (t for t in config.zero_shot if t["on"] == name):
                names, prompts = zip(*task["prompts"], strict=True)
                vectors = embed_texts(state, [p for ps in prompts for p in ps]).reshape(len(names), len(prompts[0]), -1)
                labels = [record[task["label"]] for record in records]
                found_here = image_text.zero_shot_report(image, classify(vectors), labels, names, name=task["label"])
                yield from ((f"zero_shot_{task['label']}/{key}", value) for key, value in found_here)
            for task in (t for t in config.probes if t["on"] == name):
                known = configs.call(task["train"])
                features, label = embed_pairs(state, known), task["label"]
                known_labels = [known[i][label] for i in features["index"]]
                labels = [record[label] for record in records]
                found_here = image_text.probe_report(image, labels, features["image"], known_labels)
                yield from ((f"{label}/{key}", value) for key, value in found_here)
                yield from image_text.map_report(image, text, records, label=label, name=name)
            for task in (t for t in config.get("edits", ()) if t["on"] == name):
                known = configs.call(task["known"])
                features, keys = embed_pairs(state, known), {record[task["key"]] for record in records}
                known_records = [known[i] for i in features["index"]]
                targets = [row for row, record in enumerate(known_records) if record[task["key"]] in keys]
                for change in task["changes"]:
                    values, prompts = zip(*change["words"], strict=True)
                    vectors = [embed_texts(state, list(each))[None] for each in prompts]
                    words = {value: classify(v)[:, 0] for value, v in zip(values, vectors, strict=True)}
                    arguments = {"attribute": change["attribute"], "same": change["same"], "weight": task["weight"]}
                    found_here = composed_report(features["image"], known_records, targets, words, **arguments)
                    yield from ((f"edit_{change['attribute']}/{key}", value) for key, value in found_here)

        return evaluate

    return {name: evaluator(name, piece) for name, piece in config.data.evals.items()}
