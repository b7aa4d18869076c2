"""A classifier trained with any mixing policy by name, and judged by accuracy, calibration and robustness.

Policies are drawn where the parameters are at hand, in `encode`: some look at the batch through the network that is
trained (saliency, attention, feature maps), some mix inside it. Partners come from what is encoded together.
Shapes: B batch, H×W pixels, C classes, T tokens.
"""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mixcon import config as configs
from mixcon import data, evals, models
from mixcon.errors import InputError
from mixcon.evals import stress
from mixcon.evals.embed import embedder
from mixcon.mixers.classifier import Draft, Draw, Network, Sight, drawing
from mixcon.mixers.names import LEARNED
from mixcon.train.assemble import assemble, process_share
from mixcon.train.gradients import refuse_parts
from mixcon.train.state import Batch, Evaluator, Experiment, Task, TrainState

EVAL_BATCH = 500
Places = Mapping[str, tuple[int, ...]]  # hidden layers of a network, in order, and the shape of one example there


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """Network, policy, loss, data and evaluations as the config names them."""
    refuse_parts(config.gradient.name, ("standard", "accumulate"), "it is mixed while it is encoded")
    source = configs.call(config.data.train)
    model = models.functional(models.build(configs.plain(config.model)))
    places = find_places(model, np.asarray(source[0]["image"]).shape)
    draw, score = policy(config), configs.partial(config.loss)
    augment = data.augment.compose(*map(configs.partial, config.augment))

    def pixels(images: jax.Array) -> jax.Array:
        return data.augment.normalize(images, config.image_mean, config.image_std)

    def ask(params: dict, extra: dict, images: jax.Array, method: Any = None) -> Any:
        """The network in evaluation mode, of images in [0, 1]."""
        return model.apply(params, extra, pixels(images), method=method)[0]

    def init(key: jax.Array) -> tuple[dict, dict, dict]:
        return *model.init(key), {}

    def prepare(batch: Batch, *, key: jax.Array, step: jax.Array) -> Batch:
        return {"image": augment(key, data.augment.to_float(batch["image"])), "label": batch["label"]}

    def encode(params: dict, extra: dict, batch: Batch, *, key: jax.Array, train: bool) -> tuple[dict, dict]:
        mix_key, net_key = jax.random.split(key)
        still = jax.lax.stop_gradient(params)  # policies look at the network; they do not train it
        sight = Sight(batch["image"], batch["label"], network(functools.partial(ask, still, extra), still, places))
        draft = draw(mix_key, sight)
        forward = functools.partial(with_draft, draft=draft)
        out, extra = model.apply(params, extra, pixels(draft.images), key=net_key, train=train, method=forward)
        classes, shares = draft.targets(*out)
        return {"logits": out[0], "classes": classes, "shares": shares}, extra

    def objective(params: dict, state: dict, reps: dict, batch: Batch, *, key: jax.Array, step: jax.Array) -> tuple:
        loss, metrics = score(reps["logits"], reps["classes"], reps["shares"])
        main = jnp.take_along_axis(reps["classes"], reps["shares"].argmax(axis=1)[:, None], axis=1)[:, 0]
        return loss, metrics | {"accuracy": jnp.mean(reps["logits"].argmax(axis=1) == main)}, state

    return assemble(
        config,
        init=init,
        task=Task(prepare, encode, objective),
        source=source,
        evals={"test": evaluator(config, ask)},
    )


def policy(config: ml_collections.ConfigDict) -> Draw:
    """The mixer that the config names, with the arguments published for this setting where none are given."""
    name = config.mixer.name
    if name == "adamixup":
        raise InputError("mixer.name='adamixup' has losses of its own (docs/mixers.md); no experiment trains it yet")
    if name in LEARNED:
        raise InputError(
            f"mixer.name={name!r} is learned in a game with the classifier, not drawn: adautomix, automix and samix "
            "are trained by `mixcon train --config configs/adautomix.py`, with the same evaluations of accuracy"
        )
    given = {key: value for key, value in configs.plain(config.mixer).items() if key != "name"}
    return drawing(name, configs.plain(config.mixers).get(name, {}) | given)


def find_places(model: models.Model, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Which hidden layers a hook can see, found by tracing."""
    places: dict[str, tuple[int, ...]] = {}

    def note(place: str, value: jax.Array) -> jax.Array:
        places[place] = value.shape[1:]
        return value

    def run(key: jax.Array, images: jax.Array) -> Any:
        look = functools.partial(with_hook, hook=note)
        return model.apply(*model.init(key), images, method=look)[0]

    jax.eval_shape(run, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return places


def network(ask: Callable[..., Any], params: dict, places: Places) -> Network:
    """The network as policies see it: a tower of blocks has attention, one of stages feature maps."""
    names = tuple(places)
    tokens, *_ = places[names[-1]]
    if len(places[names[-1]]) == 3:
        head = (params["head"]["kernel"], params["head"]["bias"])
        last = functools.partial(ask, method=functools.partial(at_place, place=names[-1]))
        return Network(ask, feature_map=last, head=head, places=names)
    side = math.isqrt(tokens)
    seen = (lambda images: ask(images, method="with_attention")[1]) if tokens == side**2 + 1 else None
    return Network(ask, attention=seen, places=names[1:], grid=(side, side))  # to mix at block0 is to mix the input


def with_hook(module: Any, images: jax.Array, *, train: bool, key: Any, hook: Any) -> jax.Array:
    """The module's output, its hidden layers seen by a hook."""
    return module(images, train=train, key=key, hook=hook)


def at_place(module: Any, images: jax.Array, *, train: bool, key: Any, place: str) -> jax.Array:
    """What a hidden layer holds."""
    seen: dict[str, jax.Array] = {}
    with_hook(module, images, train=train, key=key, hook=lambda name, value: seen.setdefault(name, value))
    return seen[place]


def with_draft(module: Any, images: jax.Array, *, train: bool, key: Any, draft: Draft) -> tuple[jax.Array, Any]:
    """Logits [B, C], and every block's attention where the draft's labels need it."""
    if draft.relabel is None:
        return module(images, train=train, key=key, hook=draft.hook), None
    if not hasattr(module, "with_attention"):
        raise InputError("this mixer's labels follow attention: use a vision transformer with a class token")
    return module.with_attention(images, train=train, key=key, hook=draft.hook)


def evaluator(config: ml_collections.ConfigDict, ask: Callable[..., Any]) -> Evaluator:
    """Accuracy and calibration, before and after a temperature that held-out images give; at the end robustness."""
    test, held, classes = configs.call(config.data.test), configs.call(config.data.held), config.model.num_classes
    robust = configs.plain(config.robustness)
    configs.check_arguments(stress.predictions, "robustness", robust)
    robust = robust and robust | {"occlusion_fill": tuple(config.image_mean)}

    def logits(state: tuple, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"logits": ask(*state, data.augment.to_float(batch["image"])), "label": batch["label"]}

    def attacked(state: tuple, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        images = data.augment.to_float(batch["image"])
        found = stress.predictions(
            functools.partial(ask, *state), images, batch["label"],
            key=jax.random.fold_in(jax.random.key(0), batch["index"][0]), **robust,
        )  # fmt: skip
        return found | {"label": batch["label"]}

    plain, hard = embedder(logits), embedder(attacked)

    def batches(source: data.Source) -> Any:
        return data.eval_batches(source, batch_size=min(EVAL_BATCH, len(source)), **process_share())

    def evaluate(state: TrainState) -> Iterator[tuple[str, Any]]:
        weights = (state.averaged, state.extra)
        found, known = plain(weights, batches(test)), plain(weights, batches(held))
        z, label = found["logits"], found["label"]
        order = np.argsort(-z, axis=1, kind="stable")[:, : min(5, classes)]
        yield from evals.accuracy(order, label, classes=classes).items()
        yield from evals.calibration_report(z, label).items()
        temperature = evals.temperature_scale(known["logits"], known["label"])
        yield "temperature", temperature
        yield from ((f"scaled/{k}", v) for k, v in evals.calibration_report(z / temperature, label).items())
        yield "reliability", evals.reliability(z, label, title=f"Confidence and accuracy, {config.mixer.name}")
        if robust and int(jax.device_get(state.step)) >= config.steps:
            yield from stress.accuracies(hard(weights, batches(test)))

    return evaluate
