"""The game of student, teacher and generator: the published step with every gradient and the teacher, and its rules."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixcon.errors import InputError
from mixcon.mixers import AdaptiveMask
from mixcon.mixers.plan import Plan
from mixcon.models import flatten, functional
from mixcon.train.gradients import ema_teacher, standard
from mixcon.train.players import Rule, check_scale, players
from mixcon.train.state import Health, Task, TrainState
from mixcon.train.step import make_step

GOLDEN = Path(__file__).parent.parent / "golden" / "adautomix.npz"


@pytest.fixture(scope="module", autouse=True)
def _quick_compiles():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1), jnp.float32)


def kernel(weight):
    """[O, I, ...] as [..., I, O]; a 1×1 convolution as a matrix."""
    turned = np.moveaxis(weight, (0, 1), (-1, -2))
    return jnp.asarray(turned.reshape(turned.shape[-2:]) if turned.shape[:2] == (1, 1) else turned, jnp.float32)


def tree(arrays, prefix, names, turn=True):
    """Nested parameters from the original's names."""
    found = {}
    for ours, theirs in names.items():
        found[ours] = {
            "kernel": kernel(arrays[f"{prefix}{theirs}.weight"]),
            "bias": jnp.asarray(arrays[f"{prefix}{theirs}.bias"], jnp.float32),
        }
    return found


def net_names(who):
    return {
        "a": f"backbone_{who}.a",
        "b": f"backbone_{who}.b",
        "one": f"head_one_{who}.fc",
        "mix": f"head_mix_{who}.fc",
    }


MASK_NAMES = {"query": "mix_block.conv_q.conv", "key": "mix_block.conv_k.conv", "value": "mix_block.conv_v"}


def stand_in(params, statistics, x, *, key, train):
    """The recorded backbone: a = tanh(conv 4×4 stride 4) is tapped, b = tanh(conv 2×2); mean, two linear heads."""

    def conv(x, layer, stride):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, layer["kernel"], (stride, stride), "VALID", dimension_numbers=numbers)
        return jnp.tanh(y + layer["bias"].reshape(1, 1, 1, -1))

    map_ = conv(x, params["a"], 4)
    pooled = conv(map_, params["b"], 1).mean(axis=(1, 2))
    logits = {h: pooled @ params[h]["kernel"] + params[h]["bias"][None] for h in ("one", "mix")}
    return (logits, map_), statistics


def published(case, **changed):
    """Task, parameters, extra and batch of a recorded training step, and what the original made of them."""
    with np.load(GOLDEN) as arrays:
        side = {kind: {k.split("/", 2)[2]: arrays[k] for k in arrays if k.startswith(f"{case}/{kind}/")}
                for kind in ("in", "out")}  # fmt: skip
    given, out = side["in"], side["out"]
    count, raw = int(given["num_samples"]), jnp.asarray(given["lam_draw"], jnp.float32)
    rule = Rule(**{
        "num_sources": count, "margin": float(given["lam_margin"]), "linear_share": float(given["xi"]),
        "beta": float(given["beta"]), "adversarial_interval": int(given["adversarial"]),
    } | changed)  # fmt: skip
    x, own = nhwc(given["x"]), jnp.arange(4)
    if count == 2:
        weights = [jnp.stack([w, 1 - w]) for w in raw]
        rows = {who: jnp.stack([own, jnp.asarray(given[f"perm_{who}"][0])]) for who in ("generator", "classifier")}
    else:
        weights = [raw / raw.sum()] * 2
        rows = {who: jnp.asarray(given[f"perm_{who}"]) for who in ("generator", "classifier")}
    plans = [
        Plan(r.T.astype(jnp.int32), jnp.broadcast_to(w[None], (4, count)))
        for r, w in zip(rows.values(), weights, strict=True)
    ]
    batch = {"image": x, "label": jnp.asarray(given["y"]), "generator": plans[0], "student": plans[1]}
    params = tree(given, "param/", net_names("q")) | {"generator": tree(given, "param/", MASK_NAMES)}
    extra = {"teacher": tree(given, "param/", net_names("k")), "student": {}, "teacher_statistics": {}, "generator": {}}
    upsample = "bilinear" if given["bilinear"] else "nearest"
    scale = int(given["scale_factor"])
    generator = functional(lambda rngs: AdaptiveMask(8, scale, rngs=rngs, upsample=upsample))
    halves = players(rule, stand_in, generator.apply, classes=5)
    return Task(lambda batch, **_: batch, *halves), params, extra, batch, out


def new_state(params, extra, opt_state=()):
    """A state before the first step, whatever further fields it has got."""
    zero = jnp.zeros((), jnp.int32)
    known = dict(step=zero, seed=jnp.uint32(0), params=params, extra=extra, opt_state=opt_state, objective={},
                 ema=(), health=Health(zero, zero - 1))  # fmt: skip
    return TrainState(**known)


def close(actual, expected, tolerance=1e-5, floor=0.0):
    """1e-5 of the largest value of the array; below `floor` a gradient is rounding alone."""
    expected = np.asarray(expected, np.float64)
    scale = max(np.abs(expected).max(), floor / tolerance)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("case", ["c2", "c3"])
def test_the_published_step(case):
    """Three images adversarially, two cooperatively: loss, every gradient of both players, the teacher that follows."""
    task, params, extra, batch, out = published(case)
    state = new_state(params, extra)
    grads, outcome = jax.jit(lambda state: standard(task)(state, batch))(state)
    close(outcome.loss, out["loss"])
    expected = tree(out, "grad/", net_names("q")) | {"generator": tree(out, "grad/", MASK_NAMES)}
    for name, grad in flatten(grads).items():
        close(grad, flatten(expected)[name], floor=1e-7)
    followed = ema_teacher(lambda state, batch: (None, state.extra), momentum=0.999)(state, {})[1]
    for ours, theirs in {"a": "backbone_k.a", "one": "head_one_k.fc", "mix": "head_mix_k.fc"}.items():
        close(followed["teacher"][ours]["kernel"], kernel(out[f"ema/{theirs}.weight"]))


@pytest.fixture(scope="module")
def step():
    """The recorded game of three images, adversarial in every second step, under plain descent."""
    task, params, extra, batch, _ = published("c2", adversarial_interval=2)
    optimizer = optax.inject_hyperparams(optax.sgd)(1.0)
    jitted = jax.jit(make_step(standard(task), optimizer))
    start = new_state(params, extra, optimizer.init(params))

    def run(state=start, rate=1e-2, number=0):
        state.opt_state.hyperparams["learning_rate"] = jnp.float32(rate)
        return jitted(state._replace(step=jnp.int32(number)), batch)

    return run


def test_the_generator_plays_against_the_teacher_and_then_with_it(step):
    """One program: in an even step what the teacher says of the mixes gets worse, in an odd one better."""
    told = {}
    for number, name in ((0, "against"), (1, "with")):
        moved, before = step(rate=0.3, number=number)
        held = moved._replace(params=moved.params)
        told[name] = float(step(held, rate=0.0, number=1)[1]["generator"] - before["generator"])
    assert told["against"] > 1e-5
    assert told["with"] < -1e-5


def test_the_teacher_is_trained_by_nobody(step):
    moved, _ = step(rate=0.3)
    for name, before in flatten(step(rate=0.0)[0].extra["teacher"]).items():
        np.testing.assert_array_equal(flatten(moved.extra["teacher"])[name], before)


def test_a_game_without_bounds_stops_at_the_first_loss_that_is_not_finite(step):
    """The state is then the last good one, which is what the loop saves."""
    state, metrics = step(rate=1e30)
    assert int(metrics["halted_at"]) == -1
    stopped, metrics = step(state, rate=1e30, number=1)
    assert not np.isfinite(metrics["loss"])
    assert int(metrics["halted_at"]) == 1
    for name, before in flatten(state.params).items():
        np.testing.assert_array_equal(flatten(stopped.params)[name], before)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_sources": 1}, "two images"),
        ({"beta": 1.5}, "beta"),
        ({"linear_share": -0.1}, "linear_share"),
        ({"adversarial_interval": -1}, "adversarial_interval"),
        ({"cosine_sign": 0.0}, "cosine_sign"),
        ({"mask_weight": 0.1}, "num_sources=2"),
    ],
)
def test_rules_that_make_no_game_are_refused(wrong, named):
    with pytest.raises(InputError, match=named):
        Rule(**wrong)


def test_masks_of_another_size_than_the_images_are_refused():
    check_scale(4, (1, 16, 16, 3), (1, 4, 4, 8), place="stage3")
    with pytest.raises(InputError, match="scale to 4"):
        check_scale(2, (1, 16, 16, 3), (1, 4, 4, 8), place="stage3")
