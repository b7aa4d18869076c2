"""Gradient transforms agree with each other, and with plain differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixcon.errors import InputError
from mixcon.train import gradients
from mixcon.train.state import Health, Task, TrainState
from mixcon.train.step import make_step

B, D = 12, 3
X = np.random.default_rng(0).normal(size=(B, 5)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(B, 4)).astype(np.float32)
BATCH = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}


def encode(params, extra, batch, *, key, train):
    del key, train
    return {"x": batch["x"] @ params["x"], "y": batch["y"] @ params["y"]}, {"seen": extra["seen"] + batch["x"].shape[0]}


def contrast(params, state, reps, batch, *, key, step):
    """A loss in which every example meets every other."""
    del batch, key, step
    logits = jnp.exp(params["log_scale"]) * reps["x"] @ reps["y"].T
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diag(logits))
    return loss, {"max": logits.max()}, {"count": state["count"] + 1}


def mean_loss(params, state, reps, batch, *, key, step):
    del params, batch, key, step
    return jnp.mean(jnp.sum((reps["x"] - reps["y"]) ** 2, axis=1)), {}, state


def task(objective):
    return Task(prepare=lambda batch, *, key, step: batch, encode=encode, objective=objective)


def state():
    rng = np.random.default_rng(2)
    params = {
        "x": jnp.asarray(rng.normal(size=(5, D)), jnp.float32),
        "y": jnp.asarray(rng.normal(size=(4, D)), jnp.float32),
        "log_scale": jnp.asarray(0.3),
    }
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        zero,
        zero.astype(jnp.uint32),
        params,
        {"seen": zero},
        optax.sgd(0.1).init(params),
        {"count": zero},
        (),
        Health(zero, zero - 1),
    )


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_grad_cache_is_the_whole_batch_gradient(parts):
    want, whole = gradients.standard(task(contrast))(state(), BATCH)
    got, cached = jax.jit(gradients.grad_cache(task(contrast), parts))(state(), BATCH)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, want)
    np.testing.assert_allclose(cached.loss, whole.loss, rtol=1e-6)
    assert int(cached.extra["seen"]) == B
    assert int(cached.objective["count"]) == 1


@pytest.mark.parametrize("parts", [1, 3, 6])
def test_accumulation_equals_one_batch_for_a_mean_of_examples(parts):
    want, whole = gradients.standard(task(mean_loss))(state(), BATCH)
    got, summed = gradients.accumulate(task(mean_loss), parts)(state(), BATCH)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, want)
    np.testing.assert_allclose(summed.loss, whole.loss, rtol=1e-6)
    assert int(summed.extra["seen"]) == B


def test_accumulation_of_contrast_is_the_smaller_problem():
    got, outcome = gradients.accumulate(task(contrast), 3)(state(), BATCH)
    parts = [{k: v[m::3] for k, v in BATCH.items()} for m in range(3)]
    each = [gradients.standard(task(contrast))(state(), part) for part in parts]
    want = jax.tree.map(lambda *g: sum(g) / 3, *[g for g, _ in each])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, want)
    np.testing.assert_allclose(outcome.loss, np.mean([o.loss for _, o in each]), rtol=1e-6)


def test_parts_must_divide_the_batch():
    with pytest.raises(InputError, match="cannot be split into 5"):
        gradients.grad_cache(task(contrast), 5)(state(), BATCH)


def step_with(**kwargs):
    return jax.jit(make_step(gradients.standard(task(contrast)), optax.sgd(0.1), **kwargs))


def test_a_step_is_gradient_then_optimiser_then_constraint():
    clamp = lambda params: params | {"log_scale": jnp.clip(params["log_scale"], 0.0, 0.301)}  # noqa: E731
    grads, _ = gradients.standard(task(contrast))(state(), BATCH)
    new, metrics = step_with(constrain=clamp, ema_decay=0.9)(state()._replace(ema=state().params), BATCH)
    np.testing.assert_allclose(new.params["x"], state().params["x"] - 0.1 * grads["x"], rtol=1e-5, atol=1e-6)
    assert float(new.params["log_scale"]) <= 0.3011
    np.testing.assert_allclose(new.ema["x"], 0.9 * state().params["x"] + 0.1 * new.params["x"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(grads), rtol=1e-5)
    assert int(new.step) == 1


@pytest.mark.parametrize("change", [{"ema_decay": 1.0}, {"ema_decay": -0.5}, {"nonfinite": "ignore"}])
def test_a_policy_that_is_none_is_refused(change):
    with pytest.raises(InputError, match=r"ema=|nonfinite="):
        step_with(**change)


@pytest.mark.parametrize("parts", [0, -1, 2.0, "8"])
def test_parts_that_are_no_number_are_refused(parts):
    for transform in (gradients.accumulate, gradients.grad_cache):
        with pytest.raises(InputError, match=r"parts=.* whole number"):
            transform(task(contrast), parts)


@pytest.mark.parametrize(("policy", "steps", "skipped", "halted_at"), [("skip", 3, 1, -1), ("stop", 1, 0, 1)])
def test_a_bad_batch_is_skipped_or_freezes_the_state(policy, steps, skipped, halted_at):
    step = step_with(nonfinite=policy)
    bad = {**BATCH, "x": BATCH["x"].at[0, 0].set(jnp.nan)}
    good_state, _ = step(state(), BATCH)
    after_bad, metrics = step(good_state, bad)
    jax.tree.map(np.testing.assert_array_equal, after_bad.params, good_state.params)
    assert int(metrics["halted_at"]) == halted_at
    after, metrics = step(after_bad, BATCH)
    assert int(metrics.get("skipped_steps", 0)) == skipped
    assert (int(after.step), int(after.health.skipped), int(after.health.halted_at)) == (steps, skipped, halted_at)
    moved = not np.array_equal(after.params["x"], good_state.params["x"])
    assert moved == (policy == "skip")


def test_a_teacher_follows_once_a_step_before_anything_is_encoded():
    def compare(params, extra, batch, *, key, train):
        del key, train
        return {"x": batch["x"] @ params["x"], "y": batch["x"] @ extra["teacher"]["x"]}, extra

    def distance(params, state, reps, batch, *, key, step):
        del params, batch, key, step
        return jnp.mean((reps["x"] - reps["y"]) ** 2), {}, state

    following = Task(prepare=lambda batch, *, key, step: batch, encode=compare, objective=distance)
    before = state()
    teacher = {"x": before.params["x"] + 1.0}
    before = before._replace(extra={"teacher": teacher})
    moved = 0.75 * np.asarray(teacher["x"]) + 0.25 * np.asarray(before.params["x"])
    for inner in (gradients.standard(following), gradients.accumulate(following, 3)):
        gradient = gradients.ema_teacher(inner, momentum=lambda step: 0.75 + step)
        grads, outcome = gradient(before, BATCH)
        np.testing.assert_allclose(outcome.extra["teacher"]["x"], moved, rtol=1e-6)
        np.testing.assert_allclose(
            outcome.loss, np.mean((BATCH["x"] @ (np.asarray(before.params["x"]) - moved)) ** 2), rtol=1e-5
        )
        assert float(jnp.abs(grads["x"]).max()) > 0
    with pytest.raises(InputError, match=r"momentum=1\.5"):
        gradients.ema_teacher(gradients.standard(following), momentum=1.5)
