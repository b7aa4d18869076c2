"""MAML against the algorithm written out with finite steps, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mixcon.data.tasks import Sinusoids
from mixcon.errors import InputError
from mixcon.train.meta import adapt, maml, split_task
from mixcon.train.state import Health, Task, TrainState

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 3, 6, 2)).astype(np.float32)  # 3 tasks, 4 support and 2 query examples, 2 features
PARAMS = {"body": {"kernel": RNG.normal(size=(2, 2)).astype(np.float32)}, "head": {"kernel": np.eye(2, dtype="f")}}
RATE, STEPS = 0.1, 2


def encode(params, extra, batch, *, key, train):
    return {"pred": jnp.tanh(batch["x"] @ params["body"]["kernel"]) @ params["head"]["kernel"]}, extra


def objective(params, state, reps, batch, *, key, step):
    loss = jnp.square(reps["pred"] - batch["y"]).mean()
    return loss, {"error": loss}, state


TASK = Task(lambda batch, *, key, step: {"x": batch["x"], "y": batch["y"]}, encode, objective)
BATCH = {"x": X, "y": Y, "index": np.arange(3)}


def state_of(params):
    counts = Health(jnp.zeros((), jnp.int32), -jnp.ones((), jnp.int32))
    fields = {name: () for name in TrainState._fields}
    return TrainState(
        **fields
        | dict(step=jnp.zeros((), jnp.int32), seed=jnp.uint32(0), params=params, extra={}, objective={}, health=counts)
    )


def inner_loss(body, head, x, y):
    return np.mean((np.tanh(x @ body) @ head - y) ** 2)


def inner_gradient(body, head, x, y):
    hidden = np.tanh(x @ body)
    error = 2 * (hidden @ head - y) / y.size
    return x.T @ ((error @ head.T) * (1 - hidden**2)), hidden.T @ error


def meta_loss(body, head, adapted=("body", "head")):
    """The algorithm by a loop in float64."""
    losses = []
    for x, y in zip(X.astype(float), Y.astype(float), strict=True):
        b, h = body, head
        for _ in range(STEPS):
            db, dh = inner_gradient(b, h, x[:4], y[:4])
            b = b - RATE * db * ("body" in adapted)
            h = h - RATE * dh * ("head" in adapted)
        losses.append(inner_loss(b, h, x[4:], y[4:]))
    return np.mean(losses)


def finite_differences(adapted):
    """Of the meta-loss with respect to body and head."""
    values = [PARAMS["body"]["kernel"].astype(float), PARAMS["head"]["kernel"].astype(float)]
    found = []
    for which in (0, 1):
        grad = np.zeros((2, 2))
        for place in np.ndindex(2, 2):
            ends = []
            for sign in (1, -1):
                moved = [v.copy() for v in values]
                moved[which][place] += sign * 1e-5
                ends.append(meta_loss(*moved, adapted=adapted))
            grad[place] = (ends[0] - ends[1]) / 2e-5
        found.append(grad)
    return found


@pytest.mark.parametrize(("regex", "adapted"), [("", ("body", "head")), ("head", ("head",))])
def test_value_and_gradient_go_through_the_inner_steps(regex, adapted):
    gradient = maml(TASK, support=4, rate=RATE, inner_steps=STEPS, adapted=regex)
    grads, outcome = jax.jit(lambda s: gradient(s, BATCH))(state_of(PARAMS))
    expected = meta_loss(*(PARAMS[k]["kernel"].astype(float) for k in ("body", "head")), adapted=adapted)
    assert_allclose(outcome.loss, expected, rtol=1e-5)
    assert_allclose(outcome.metrics["error"], expected, rtol=1e-5)
    for name, grad in zip(("body", "head"), finite_differences(adapted), strict=True):
        assert_allclose(grads[name]["kernel"], grad, rtol=1e-4, atol=1e-5)


def test_first_order_takes_the_gradient_where_the_inner_steps_end():
    gradient = maml(TASK, support=4, rate=RATE, inner_steps=STEPS, first_order=True)
    grads, _ = jax.jit(lambda s: gradient(s, BATCH))(state_of(PARAMS))
    total = [np.zeros((2, 2)), np.zeros((2, 2))]
    for x, y in zip(X, Y, strict=True):
        b, h = PARAMS["body"]["kernel"], PARAMS["head"]["kernel"]
        for _ in range(STEPS):
            db, dh = inner_gradient(b, h, x[:4], y[:4])
            b, h = b - RATE * db, h - RATE * dh
        for into, part in zip(total, inner_gradient(b, h, x[4:], y[4:]), strict=True):
            into += part / 3
    assert_allclose(grads["body"]["kernel"], total[0], rtol=1e-4, atol=1e-6)
    assert_allclose(grads["head"]["kernel"], total[1], rtol=1e-4, atol=1e-6)


def test_a_task_is_prepared_whole_and_alone():
    """What `prepare` sees is one task's support and query; a permutation of the tasks changes nothing."""
    seen = []

    def prepare(batch, *, key, step):
        seen.append(batch["x"].shape)
        return {"x": batch["x"] - batch["x"].mean(axis=0, keepdims=True), "y": batch["y"]}

    gradient = maml(TASK._replace(prepare=prepare), support=4, rate=RATE)
    run = jax.jit(lambda s, b: gradient(s, b)[1].loss)
    loss = run(state_of(PARAMS), BATCH)
    assert set(seen) == {(6, 2)}
    assert_allclose(run(state_of(PARAMS), {k: v[[2, 0, 1]] for k, v in BATCH.items()}), loss, rtol=1e-6)


def test_adaptation_lowers_the_loss_on_the_support():
    def loss(params, batch, key):
        reps, _ = encode(params, {}, batch, key=key, train=True)
        return objective(params, {}, reps, batch, key=key, step=0)[:2]

    known = {"x": X[0], "y": Y[0]}
    moved = jax.jit(lambda p: adapt(loss, p, known, jax.random.key(0), rate=RATE, steps=20))(PARAMS)
    assert loss(moved, known, None)[0] < 0.9 * loss(PARAMS, known, None)[0]


def test_waves_depend_on_seed_and_number_alone():
    waves = Sinusoids(5, examples=200, seed=3)
    assert_array_equal(waves[2]["y"], Sinusoids(9, examples=200, seed=3)[2]["y"])
    assert_array_equal(waves[4]["y"], Sinusoids(2, examples=200, first=3, seed=3)[1]["y"])
    assert (waves[2]["y"] != Sinusoids(5, examples=200, seed=4)[2]["y"]).any()
    x, y = waves[1]["x"][:, 0], waves[1]["y"][:, 0]
    basis = np.stack([np.sin(x), np.cos(x)], axis=1)
    assert_allclose(basis @ np.linalg.lstsq(basis, y, rcond=None)[0], y, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: maml(TASK, support=0, rate=0.1), "support=0"),
        (lambda: maml(TASK, support=1, rate=0.0), "rate=0.0"),
        (lambda: maml(TASK, support=1, rate=0.1, inner_steps=0), "inner_steps=0"),
        (lambda: split_task({"x": X[0]}, 6), "more examples than its support=6"),
        (lambda: adapt(None, PARAMS, {}, jax.random.key(0), rate=0.1, adapted="tail"), "matches no parameter"),
        (lambda: Sinusoids(0, examples=3), "num_tasks=0"),
    ],
)
def test_what_is_no_task_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
