"""Optimisers by name, schedules by formula, overrides by path."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixcon.errors import InputError
from mixcon.train.gradients import Outcome
from mixcon.train.optim import momentum_schedule, on_plateau, optimizer, own_schedules, schedule
from mixcon.train.state import Health, TrainState
from mixcon.train.step import make_step

PARAMS = {"image": {"proj": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}, "logit_scale": {"log": jnp.ones(())}}
GRADS = jax.tree.map(lambda p: jnp.full_like(p, 0.5), PARAMS)


@pytest.mark.parametrize("name", ["adamw", "lamb", "lars", "sgd", "adafactor", "muon", "lion", "adam"])
def test_named_optimisers_update_every_parameter(name):
    tx = optimizer(name=name, learning_rate=schedule(peak=0.1, steps=10))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert all(np.all(np.asarray(u) < 0) for u in jax.tree.leaves(updates))


def test_schedule_follows_the_formula():
    rate = schedule(peak=2.0, steps=100, warmup_steps=10, decay="cosine")
    assert float(rate(0)) == pytest.approx(0.2)
    assert float(rate(9)) == pytest.approx(2.0)
    for t in (10, 37, 99):
        assert float(rate(t)) == pytest.approx(1 + math.cos(math.pi * (t - 10) / 90), rel=1e-4)
    linear = schedule(peak=1.0, steps=20, decay="linear", end=0.5)
    assert float(linear(10)) == pytest.approx(0.75)
    rsqrt = schedule(peak=1.0, steps=500, warmup_steps=4, decay="rsqrt")
    assert float(rsqrt(16)) == pytest.approx(0.5)
    stairs = schedule(peak=1.0, steps=20, warmup_steps=4, decay="steps", at=(10, 15), factor=0.5)
    rates = [float(stairs(t)) for t in (3, 9, 10, 14, 15, 19)]
    np.testing.assert_allclose(rates, [1, 1, 0.5, 0.5, 0.25, 0.25])
    for wrong in ({"decay": "steps"}, {"at": (5,)}, {"decay": "steps", "at": (4,), "warmup_steps": 4}):
        with pytest.raises(InputError, match="decay='steps'"):
            schedule(peak=1.0, steps=20, **wrong)


def test_overrides_follow_the_first_regex_found():
    overrides = ((r"bias$|logit_scale", {"weight_decay": 0.0}), (r"kernel$", {"lr_scale": 0.1}))
    tx = optimizer(name="adamw", learning_rate=1.0, weight_decay=0.5, overrides=overrides)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["image"]["proj"]["kernel"], -0.05)
    np.testing.assert_allclose(updates["image"]["proj"]["bias"], 0.0)
    np.testing.assert_allclose(updates["logit_scale"]["log"], 0.0)


def test_freezing_stops_a_parameter():
    tx = optimizer(name="sgd", learning_rate=1.0, overrides=((r"^image", {"freeze": True}),))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert not np.any(updates["image"]["proj"]["kernel"])
    np.testing.assert_allclose(updates["logit_scale"]["log"], -0.5)


def test_decay_of_sgd_goes_through_the_momentum():
    tx = optimizer(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.5)
    theta, m, params = 1.0, 0.0, {"w": jnp.ones(())}
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update({"w": jnp.full((), 0.2)}, state, params)
        params = optax.apply_updates(params, updates)
        m = 0.9 * m + 0.2 + 0.5 * theta
        theta -= 0.1 * m
    assert float(params["w"]) == pytest.approx(theta, rel=1e-6)


def test_decay_of_adam_goes_through_the_moments():
    """Twice by hand: m and v are of g + λθ. A decoupled decay would move the parameter further."""
    tx = optimizer(name="adam", learning_rate=0.1, weight_decay=0.5)
    params, m, v = {"w": jnp.array([2.0])}, 0.0, 0.0
    state, theta = tx.init(params), 2.0
    for t, gradient in enumerate((1.0, -3.0), start=1):
        updates, state = tx.update({"w": jnp.array([gradient])}, state, params)
        params = optax.apply_updates(params, updates)
        whole = gradient + 0.5 * theta
        m, v = 0.9 * m + 0.1 * whole, 0.999 * v + 0.001 * whole**2
        theta -= 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)
        np.testing.assert_allclose(params["w"], theta, rtol=1e-5)


def test_the_rate_falls_when_a_metric_has_stopped_rising():
    """Means over two steps: .2, .4, then two that are no better fall short of more than one; the third such would."""
    tx, monitor = on_plateau(optax.sgd(1.0), metric="accuracy", factor=0.1, patience=1, every=2)
    step = make_step(scripted, tx, monitor=monitor)
    w, state = jnp.zeros(()), None
    state = TrainState(
        jnp.int32(0), jnp.uint32(0), {"w": w}, {}, tx.init({"w": w}), {}, (), Health(jnp.int32(0), jnp.int32(-1)), ()
    )
    heights, run = [], jax.jit(step)
    for accuracy in (0.1, 0.3, 0.5, 0.3, 0.4, 0.4, 0.1, 0.1, 0.9, 0.9, 0.9):
        before = state.params["w"]
        state, _ = run(state, {"accuracy": jnp.float32(accuracy)})
        heights.append(float(before - state.params["w"]))
    np.testing.assert_allclose(heights, [1.0] * 7 + [0.1] * 4, rtol=1e-6)


def scripted(state, batch):
    """A gradient of one, and the accuracy that the batch says."""
    zero = jnp.zeros((), jnp.float32)
    return {"w": zero + 1}, Outcome(zero, {"accuracy": batch["accuracy"]}, {}, {})


def test_a_plateau_of_nothing_is_refused():
    with pytest.raises(InputError, match=r"factor in \(0, 1\)"):
        on_plateau(optax.sgd(1.0), metric="accuracy", factor=2.0, patience=1, every=1)
    _, monitor = on_plateau(optax.sgd(1.0), metric="acuracy", factor=0.5, patience=1, every=1)
    with pytest.raises(InputError, match="did you mean accuracy"):
        monitor(Outcome(0.0, {"accuracy": 1.0}, {}, {}))


def test_a_player_may_follow_a_schedule_of_its_own():
    overrides = ((r"^image", {"schedule": {"peak": 1.0, "decay": "linear", "end": 0.5}, "momentum": 0.5}),)
    ready = own_schedules(overrides, steps=2)
    tx = optimizer(name="sgd", learning_rate=0.1, overrides=ready)
    state = tx.init(PARAMS)
    steps = []
    for _ in range(2):
        updates, state = tx.update(GRADS, state, PARAMS)
        steps.append(updates)
    np.testing.assert_allclose(steps[0]["image"]["proj"]["kernel"], -0.5)
    np.testing.assert_allclose(steps[1]["image"]["proj"]["kernel"], -0.75 * (0.5 * 0.5 + 0.5))
    np.testing.assert_allclose([s["logit_scale"]["log"] for s in steps], -0.05)


def test_clipping_bounds_the_global_norm():
    tx = optimizer(name="sgd", learning_rate=1.0, clip_norm=0.1)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert float(optax.global_norm(updates)) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "adamv"}, "did you mean.*adam"),
        ({"name": "adamw", "weight_dekay": 0.1}, "did you mean weight_decay"),
        ({"name": "adamw", "overrides": (("nothing", {}),)}, "matches no parameter path"),
    ],
)
def test_misspelt_optimisers_are_refused_with_the_nearest_name(kwargs, message):
    with pytest.raises(InputError, match=message):
        optimizer(learning_rate=0.1, **kwargs).init(PARAMS)


def test_impossible_schedules_are_refused():
    with pytest.raises(InputError, match="did you mean cosine"):
        schedule(peak=1.0, steps=10, decay="cosin")
    with pytest.raises(InputError, match="warmup_steps=11"):
        schedule(peak=1.0, steps=10, warmup_steps=11)


def test_teacher_momentum_holds_then_follows_a_cosine_of_the_whole_run():
    momentum = momentum_schedule(start=0.9, end=1.0, steps=100, hold_steps=10)
    got = [float(momentum(jnp.asarray(step))) for step in (0, 9, 10, 50, 100)]
    want = [0.9, 0.9, *(1 - 0.1 * (1 + np.cos(np.pi * t / 100)) / 2 for t in (10, 50, 100))]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    with pytest.raises(InputError, match=r"end=1\.2"):
        momentum_schedule(start=0.9, end=1.2, steps=10)


def test_lamb_steps_are_as_long_as_the_parameters_unless_told_otherwise():
    tx = optimizer(
        name="lamb", learning_rate=0.1, weight_decay=0.5, overrides=((r"bias$", {"adapt": False, "weight_decay": 0.0}),)
    )
    params = {"kernel": jnp.asarray([3.0, 4.0]), "bias": jnp.asarray([3.0, 4.0])}
    grads = {"kernel": jnp.asarray([2.0, -1.0]), "bias": jnp.asarray([2.0, -1.0])}
    updates, _ = tx.update(grads, tx.init(params), params)
    adam = np.sign(grads["kernel"])  # the first step of Adam but for its epsilon
    decayed = adam + 0.5 * np.asarray([3.0, 4.0])
    expected = -0.1 * 5.0 * decayed / np.linalg.norm(decayed)
    np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -0.1 * adam, rtol=1e-5)
