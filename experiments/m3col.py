"""Modalities classified together, and contrasted: mixed at first, then by their similarities (M3CoL)."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from sklearn.linear_model import LogisticRegression

from mixcon import config as configs
from mixcon import data, mixers, models
from mixcon.data.pipeline import Transform
from mixcon.data.records import read
from mixcon.errors import InputError
from mixcon.evals.embed import embedder
from mixcon.evals.multimodal import label_scores, multimodal_report
from mixcon.objectives import m3co, multimodal_pairs, soft_clip
from mixcon.train.assemble import assemble, process_share
from mixcon.train.gradients import refuse_parts
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState

EVAL_BATCH = 256
CHOICES = {
    "contrast.form": ("m3co_then_soft_clip", "m3co", "soft_clip"),
    "contrast.mix_at": ("embedding", "input"),
    "contrast.partner": ("clean", "mixed"),
}


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Encoders, heads, data and evaluations as the config names them."""
    source, names, contrast = configs.call(config.data.train), tuple(config.modalities), config.contrast
    check(config, source)
    transform, sizes = text_transform(config, workdir, source)
    encoders = {name: models.build(configs.plain(config.encoders[name]) | sizes.get(name, {})) for name in names}
    model = models.functional(models.multimodal_classifier(encoders, unimodal=bool(config.unimodal), **config.heads))
    pixels = data.augment.pixels(*map(configs.partial, config.augment), mean=config.image_mean, std=config.image_std)
    ordered = [(names[a], names[b]) for a, b in multimodal_pairs(len(names))] if contrast.weight else []
    contrasted = tuple(contrast.mixed) or names
    switch = switch_step(config, len(source))

    def ready(batch: Batch, key: jax.Array | None = None) -> Batch:
        return {**batch, "image": pixels(batch["image"], key)} if "image" in names else batch

    def init(key: jax.Array) -> tuple[dict, dict, dict]:
        return *model.init(key), {}

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        return {name: value for name, value in ready(batch, key).items() if name in (*names, "label")}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array, train: bool) -> tuple[dict, dict]:
        inputs, reps = {name: batch[name] for name in names}, dict[str, Any]()
        keys = jax.random.split(key, 4)

        def embeddings(plans: Mapping[str, mixers.Plan], key: jax.Array) -> dict[str, jax.Array]:
            """Tables and pixels are mixed before their encoder; tokens cannot be averaged, their embeddings can."""
            early = {name: plan for name, plan in plans.items() if jnp.issubdtype(inputs[name].dtype, jnp.floating)}
            mixed = inputs | {name: mixers.mix(plan, inputs[name]) for name, plan in early.items()}
            z = model.apply(params, extra, mixed, key=key, train=train, method="encode")[0]
            return z | {name: mixers.mix(plan, z[name]) for name, plan in plans.items() if name not in early}

        usual: dict[str, mixers.Plan] = {}
        if train and config.input_mixup:  # ordinary mixup, for the classifier
            plan = mixers.mixup(keys[0], batch["label"], alpha=config.input_mixup_alpha)
            usual = dict.fromkeys(config.input_mixup, plan)
            reps |= {"other": batch["label"][plan.partner], "share": plan.weight}
        clean = embeddings(usual, keys[1])
        if train and ordered and contrast.form != "soft_clip":
            draw = functools.partial(mixers.mixco, x=batch["label"], alpha=contrast.alpha, select=contrast.select)
            drawn = jax.vmap(draw)(jax.random.split(keys[2], len(contrasted)))  # all at once: a third to compile
            reps["plans"] = {name: mixers.Plan(drawn.partner[m], drawn.weight[m]) for m, name in enumerate(contrasted)}
            if contrast.mix_at == "input":
                reps["mixed"] = embeddings(reps["plans"], keys[3])
        logits, extra = model.apply(params, extra, clean, train=train, method="classify")
        return reps | {"clean": clean, "logits": logits}, extra

    def objective(params: dict, state: dict, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        labels = batch["label"]
        terms = classified(reps, labels, names, tuple(config.input_mixup))
        loss = terms["fusion"] + config.unimodal * sum(terms[name] for name in names if name in terms)
        metrics = {"classification": loss, "accuracy": (reps["logits"]["fusion"].argmax(-1) == labels).mean()}
        if ordered:
            how = {"ordered": ordered, "contrast": contrast}
            forms = {"m3co": functools.partial(mixing, **how), "soft_clip": functools.partial(settled, **how)}
            if contrast.form in forms:
                metrics["contrast"] = forms[contrast.form](reps)
            else:
                metrics["contrast"] = jax.lax.cond(step < switch, *forms.values(), reps)
            loss += contrast.weight * metrics["contrast"]
        return loss, metrics, state

    @embedder
    def predict(state: tuple[dict, dict], batch: Batch) -> dict[str, jax.Array]:
        return encode(*state, ready(batch), key=jax.random.key(0), train=False)[0]["logits"] | {
            "label": batch["label"]
        }

    def evaluator(piece: Mapping) -> Evaluator:
        batches = data.eval_batches(configs.call(piece), batch_size=EVAL_BATCH, transform=transform, **process_share())

        def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
            found = predict((state.averaged, state.extra), batches)
            labels, _ = found.pop("label"), found.pop("index")
            yield from multimodal_report(found, labels)

        return evaluate

    return assemble(
        config,
        init=init,
        task=Task(prepare, encode, objective),
        source=source,
        transform=transform,
        evals={name: evaluator(piece) for name, piece in config.data.evals.items()},
    )


def mixing(reps: Mapping, ordered: Sequence[tuple[str, str]], contrast: ml_collections.ConfigDict) -> jax.Array:
    """M3Co summed over ordered pairs of modalities whose first is mixed."""
    clean, plans = reps["clean"], reps["plans"]
    mixed = reps.get("mixed") or {name: mixers.mix(plan, clean[name]) for name, plan in plans.items()}
    partners = clean | mixed if contrast.partner == "mixed" else clean
    how = {key: contrast[key] for key in ("temperature", "bidirectional", "fixed_point")}
    return jnp.stack([m3co(mixed[a], partners[b], *plans[a][:2], **how) for a, b in ordered if a in plans]).sum()


def settled(reps: Mapping, ordered: Sequence[tuple[str, str]], contrast: ml_collections.ConfigDict) -> jax.Array:
    """Soft CLIP of nothing mixed, summed over the same pairs."""
    clean, how = reps["clean"], {"detach_targets": contrast.detach_targets, "temperature": contrast.soft_temperature}
    return jnp.stack([soft_clip(clean[a], clean[b], **how) for a, b in ordered]).sum()


def classified(
    reps: Mapping, labels: jax.Array, names: Sequence[str], mixed: Sequence[str] = ()
) -> dict[str, jax.Array]:
    """Cross-entropy of every head; of inputs that mixup has mixed, with both labels by the share that each head saw."""
    whole = jnp.ones(labels.shape, jnp.float32)
    share = {name: reps["share"] if name in mixed else whole for name in names}
    share["fusion"] = jnp.stack([share[name] for name in names]).mean(0)  # (1 + λ)/2 when one of two is mixed
    other = reps.get("other", labels)
    return {name: mixers.pair_cross_entropy(z, labels, other, share[name]) for name, z in reps["logits"].items()}


def check(config: ml_collections.ConfigDict, source: data.Source) -> None:
    """Refuse words that mean nothing here, and records that lack a modality."""
    for key, known in CHOICES.items():
        value = config[key.partition(".")[0]][key.partition(".")[2]]
        if value not in known:
            raise InputError(f"{key}={value!r} must be one of {', '.join(known)}; {configs.nearest(value, known)}")
    names = tuple(config.modalities)
    for key, used in (("contrast.mixed", config.contrast.mixed), ("input_mixup", config.input_mixup)):
        if unknown := [name for name in used if name not in names]:
            raise InputError(f"{key} names {unknown[0]!r}, which is not one of the modalities {', '.join(names)}")
    record = next(read(source))
    if missing := [name for name in (*names, "label") if name not in record]:
        raise InputError(
            f"modality {missing[0]!r} is missing from the records, which hold {', '.join(record)}; "
            "give a source that has it, or leave it out of config.modalities"
        )
    refuse_parts(config.gradient.name, ("standard", "accumulate"), "partners are drawn where it is encoded")


def switch_step(config: ml_collections.ConfigDict, examples: int) -> int:
    """First step of soft CLIP when it follows M3Co: that of epoch floor(switch · epochs)."""
    per_epoch = max(examples // config.batch_size, 1)
    return int(config.contrast.switch * (config.steps // per_epoch)) * per_epoch


def text_transform(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, source: data.Source
) -> tuple[Transform | None, dict[str, dict]]:
    """How texts become tokens, and what their tower has to know of them; nothing where there is no text."""
    if "text" not in config.modalities:
        return None, {}
    path, size = config.tokenizer.path, config.tokenizer.vocab_size
    tokenizer = (
        data.tokenizer.load(path)
        if path
        else data.tokenizer.load_or_train(
            workdir / "tokenizer.json", lambda: (record["text"] for record in read(source)), vocab_size=size
        )
    )
    length = config.encoders.text.context_length
    ids = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id}
    return data.tokenizer.tokenize(tokenizer, length, out="text"), {"text": ids}


def logistic(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Logistic regression (C = 0.1) on the features of all modalities beside each other."""
    sides = {"train": configs.call(config.data.train), "test": configs.call(config.data.evals.test)}
    x = {
        side: np.concatenate([source.columns[name] for name in config.modalities], 1) for side, source in sides.items()
    }
    fitted = LogisticRegression(C=0.1, max_iter=5_000).fit(x["train"], sides["train"].columns["label"])
    score = fitted.decision_function(x["test"])
    scores = label_scores(np.stack([np.zeros_like(score), score], 1), sides["test"].columns["label"])
    return {f"eval/test/{name}": value for name, value in scores.items()}
