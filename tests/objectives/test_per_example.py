"""Objectives that remember every example: their memory on meshes, their fixed point, and what they refuse."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import NamedSharding, PartitionSpec

from mixcon import objectives as o
from mixcon.errors import InputError
from mixcon.objectives.per_example import recall, remember
from mixcon.train.mesh import make_mesh
from mixcon.train.objective import pair_objective

SIZE, DIM, EXAMPLES = 16, 5, 24
ALL = {"num_examples": EXAMPLES}
ROWS, EVERYWHERE = PartitionSpec("data"), PartitionSpec()


@functools.cache
def batch(seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Two matrices of unit rows that grow more alike along the batch, and ids in no order."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, SIZE, DIM)) + np.linspace(0, 2, SIZE)[:, None]
    first, second = (jnp.asarray(v / np.linalg.norm(v, axis=1, keepdims=True), jnp.float32) for v in x)
    return first, second, jnp.asarray(rng.permutation(EXAMPLES)[:SIZE], jnp.int32)


def made(name: str, **options: Any) -> o.Objective:
    make = {"views": o.isogclr, "pairs": o.isogclr_clip, "adam": functools.partial(o.fastclip, version="v2")}[name]
    return make(EXAMPLES, temperature=0.2, **options)


def step(objective: o.Objective) -> Any:
    """(state, first, second, ids, epoch) -> (loss, aux, state), gradients."""

    def run(state: Any, first: Any, second: Any, ids: Any, epoch: Any) -> Any:
        def loss(first: Any, second: Any) -> Any:
            value, aux, new = objective.apply(state, first, second, index=ids, epoch=epoch)
            return value, (value, aux, new)

        gradients, found = jax.grad(loss, argnums=(0, 1), has_aux=True)(first, second)
        return found, gradients

    return run


@functools.cache
def two_steps(name: str) -> Any:
    """State and gradients after two steps on one device."""
    objective = made(name, impl="dense")
    run, state = jax.jit(step(objective)), objective.init()
    for t in range(2):
        found, gradients = run(state, *batch(t), jnp.float32(t))
        state = found[2]
    return found, gradients


def same(got: Any, want: Any) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=2e-5)


# --- meshes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "devices", "inside"),
    [
        ("views", 2, False),
        ("views", 8, True),
        ("pairs", 4, False),
        ("pairs", 2, True),
        ("adam", 8, False),
        pytest.param("views", 1, False, marks=pytest.mark.slow),
        pytest.param("views", 4, True, marks=pytest.mark.slow),
        pytest.param("pairs", 8, False, marks=pytest.mark.slow),
        pytest.param("pairs", 8, True, marks=pytest.mark.slow),
        pytest.param("adam", 4, True, marks=pytest.mark.slow),
    ],
)
def test_memory_and_gradient_after_two_steps_are_those_of_one_device(name: str, devices: int, inside: bool) -> None:
    """Under jit the memory is split over the mesh, inside `shard_map` every device has it whole."""
    mesh = make_mesh(data=devices, devices=jax.devices()[:devices])
    rows, whole = NamedSharding(mesh, ROWS), NamedSharding(mesh, EVERYWHERE)
    objective = made(name, axis_name="data") if inside else made(name, impl="ring" if devices > 1 else "auto")
    if inside:
        specs = (EVERYWHERE, ROWS, ROWS, ROWS, EVERYWHERE)
        outs = ((EVERYWHERE, EVERYWHERE, EVERYWHERE), (ROWS, ROWS))
        run = jax.jit(jax.shard_map(step(objective), mesh=mesh, in_specs=specs, out_specs=outs))
    else:
        run = jax.jit(step(objective), out_shardings=((whole, whole, rows), None))
    with jax.set_mesh(mesh):
        state = jax.device_put(objective.init(), whole if inside else rows)
        for t in range(2):
            found, gradients = run(state, *jax.device_put(batch(t), rows), jax.device_put(jnp.float32(t), whole))
            state = found[2]
    if not inside:
        assert all(leaf.sharding.spec == ROWS for leaf in jax.tree.leaves(state))
    same((found, gradients), two_steps(name))


def test_a_memory_that_is_split_is_never_put_together() -> None:
    """The compiled program holds no array of all examples, only each device's share."""
    examples, devices = 4096, 4
    mesh = make_mesh(data=devices, devices=jax.devices()[:devices])
    rows = NamedSharding(mesh, ROWS)
    objective = o.isogclr(examples, temperature=0.2)
    with jax.set_mesh(mesh):
        state, arrays = jax.device_put((objective.init(), batch()), rows)
        run = jax.jit(step(objective), out_shardings=((None, None, rows), None), donate_argnums=0)
        program = run.lower(state, *arrays, jnp.float32(0)).compile().as_text()
    assert f"[{examples // devices}]" in program
    assert f"[{examples}]" not in program


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_examples_that_are_not_in_the_batch_stay_as_they_were() -> None:
    (_, _, state), _ = two_steps("pairs")
    seen = np.zeros(EXAMPLES, bool)
    for t in range(2):
        seen[np.asarray(batch(t)[2])] = True
    assert 0 < seen.sum() < EXAMPLES
    for memory in state.values():
        assert np.array_equal(np.isfinite(memory.log_average), seen)
        assert np.array_equal(np.asarray(memory.temperature) != np.float32(0.2), seen)
        assert np.array_equal(np.asarray(memory.slope) != 0, seen)


def test_no_gradient_flows_into_or_out_of_the_memory() -> None:
    first, second, ids = batch()
    objective = made("pairs")
    state = objective.init()

    def kept(first: Any, state: Any) -> Any:
        loss, _, new = objective.apply(state, first, second, index=ids, epoch=0)
        return sum(jnp.where(jnp.isfinite(x), x, 0).sum() for x in jax.tree.leaves(new)), loss

    gradients = jax.jit(jax.grad(lambda first, state: kept(first, state)[0], argnums=0))(first, state)
    assert not np.asarray(gradients).any()
    of_memory = jax.jit(jax.grad(lambda state, first: kept(first, state)[1]))(state, first)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(of_memory))


def test_state_is_float32_for_bfloat16_features() -> None:
    first, second, ids = batch()
    half = first.astype(jnp.bfloat16), second.astype(jnp.bfloat16)
    objective = made("views")
    loss, _, state = jax.jit(lambda a, b: objective.apply(objective.init(), a, b, index=ids))(*half)
    assert loss.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


def test_of_equal_ids_the_last_is_kept_and_an_id_outside_is_not_another_example() -> None:
    memory = jnp.arange(5.0)
    ids = jnp.array([3, 1, 3, 7, -1], jnp.int32)
    new = remember(memory, ids, jnp.array([10.0, 11.0, 12.0, 13.0, 14.0]), None)
    assert new.tolist() == [0, 11, 2, 12, 4]
    assert np.array_equal(recall(memory, ids), [3, 1, 3, np.nan, np.nan], equal_nan=True)


def test_a_hundredth_of_a_temperature_neither_overflows_nor_vanishes() -> None:
    """exp(S/τ) itself would be beyond float32."""
    first, second, ids = batch()
    for objective in (o.sogclr(EXAMPLES, temperature=0.005), o.sogclr_clip(EXAMPLES, temperature=0.005)):
        (loss, _, _), gradients = jax.jit(step(objective))(objective.init(), first, second, ids, jnp.float32(1))
        assert np.isfinite(loss)
        assert all(np.isfinite(g).all() and np.asarray(g).any() for g in gradients)


# --- temperatures ----------------------------------------------------------------------------------------------------


def test_on_fixed_features_the_divergence_of_every_anchor_becomes_the_radius() -> None:
    """The fixed point of the temperature solves KL(softmax(margin/τ) ‖ uniform) = ρ."""
    radius = 0.5
    rng = np.random.default_rng(0)
    first = rng.normal(size=(SIZE, DIM))
    first, second = first / np.linalg.norm(first, axis=1, keepdims=True), rng.normal(size=(SIZE, DIM))
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    ids = jnp.arange(SIZE, dtype=jnp.int32)
    objective = o.isogclr_clip(
        SIZE, temperature=0.3, bounds=(0.005, 20.0), radius=radius, rate=0.05, positive=False, clip=None
    )
    pair = jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32)

    @jax.jit
    def settle(state: Any) -> Any:
        def body(state: Any, _: None) -> Any:
            _, aux, new = objective.apply(state, *pair, index=ids)
            return new, aux["temperature_at_bounds_image"]

        return jax.lax.scan(body, state, length=3000)

    state, at_bounds = settle(objective.init())
    assert at_bounds[-1] == 0
    for memory, (anchors, others) in ((state["image"], (first, second)), (state["text"], (second, first))):
        sims = anchors @ others.T
        for i, tau in enumerate(np.asarray(memory.temperature, np.float64)):
            logits = np.delete(sims[i] - sims[i, i], i) / tau
            p = np.exp(logits - logits.max())
            p /= p.sum()
            assert abs(np.sum(p * np.log(p * len(p))) - radius) < 1e-3


def test_temperatures_held_by_their_bounds_are_counted() -> None:
    first, second, ids = batch()
    objective = o.isogclr_clip(EXAMPLES, temperature=0.06, bounds=(0.05, 1.0), radius=50.0, rate=0.1)
    _, aux, state = jax.jit(lambda a, b, i: objective.apply(objective.init(), a, b, index=i))(first, second, ids)
    assert aux["temperature_at_bounds_image"] == 1
    assert np.asarray(state["image"].temperature)[np.asarray(ids)] == pytest.approx(0.05)


def test_rates_may_follow_the_epoch() -> None:
    first, second, ids = batch()
    rate = {"name": "mixcon.objectives.by_epoch.exponential_rate", "start": 0.03, "decay": 0.8, "end": 0.0}
    piece = {"name": "mixcon.objectives.isogclr", "temperature": 0.2, "rate": rate}
    fading = pair_objective(
        piece | {"average": {"name": "mixcon.objectives.by_epoch.cosine_average", "end": 0.3}}, **ALL
    )
    fixed = o.isogclr(EXAMPLES, temperature=0.2, rate=0.03 * 0.8**2, average=0.3)
    got, want = (
        jax.jit(lambda made=made: made.apply(made.init(), first, second, index=ids, epoch=2)[2])()
        for made in (fading, fixed)
    )
    same(got, want)


# --- bad input -------------------------------------------------------------------------------------------------------


def apply(ids: Any, objective: o.Objective | None = None, rows: int = SIZE) -> Any:
    first, second, _ = batch()
    objective = objective or made("views")
    return objective.apply(objective.init(), first[:rows], second[:rows], index=ids)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: apply(jnp.arange(SIZE) + EXAMPLES - SIZE + 1), "set num_examples to the size of the training set"),
        (lambda: apply(jnp.arange(SIZE) - 1), "has ids -1"),
        (lambda: apply(jnp.arange(SIZE) // 2), "more than once"),
        (lambda: apply(jnp.arange(SIZE - 1)), "one integer for each"),
        (lambda: apply(jnp.arange(float(SIZE))), "one integer for each"),
        (lambda: apply(jnp.arange(1), rows=1), "take at least 2"),
        (lambda: apply(jnp.arange(1), made("pairs"), rows=1), "take at least 2"),
        (lambda: o.isogclr(1), "num_examples=1"),
        (lambda: o.isogclr(9, temperature=0.01), "must be above zero and hold"),
        (lambda: o.isogclr_clip(9, bounds=(0.5, 0.1)), "must be above zero and hold"),
        (lambda: o.isogclr(9, radius=-1.0), "must not be negative"),
        (lambda: o.isogclr(9, average=0.0), r"must lie in \(0, 1\]"),
        (lambda: o.sogclr(9, first_visit="never"), "first_visit must be one of"),
        (lambda: o.sogclr(9, views="max"), "views must be"),
        (lambda: o.sogclr(9, dtype=jnp.bfloat16), "float32 or float64"),
        (lambda: o.fastclip(9, version="v4"), "version must be one of v0"),
        (lambda: o.fastclip(9, average=1.5), r"must lie in \(0, 1\]"),
        (lambda: pair_objective({"name": "mixcon.objectives.isogclr", "radios": 1.0}, **ALL), "did you mean radius"),
        (lambda: apply(jnp.arange(SIZE), o.fastclip(EXAMPLES)), "pass it as logit_scale"),
    ],
)
def test_bad_input_is_said_before_anything_is_computed(call: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


def test_inside_jit_an_id_outside_makes_the_loss_nan_and_checkify_says_which() -> None:
    first, second, ids = batch()
    objective = made("views", impl="dense")

    def loss(ids: Any) -> Any:
        return objective.apply(objective.init(), first, second, index=ids)[0]

    outside, twice = ids.at[0].set(EXAMPLES), ids.at[0].set(ids[1])
    assert np.isnan(jax.jit(loss)(outside))
    assert np.isfinite(jax.jit(loss)(twice))
    checked = jax.jit(checkify.checkify(loss, errors=checkify.user_checks))
    assert "must lie in 0..23" in checked(outside)[0].get()
    assert "must not name an example twice" in checked(twice)[0].get()
    assert checked(ids)[0].get() is None
