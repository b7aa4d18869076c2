"""MoCo and MoCHi: golden vectors, what the mixtures promise, the queue, meshes, memory, bad input."""

import functools
import pathlib
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mixcon import ops
from mixcon.errors import InputError
from mixcon.mixers.embedding import HardDraws, hard_negative_mix, mochi_draws, query_mix
from mixcon.objectives import memory
from mixcon.objectives.momentum import Mixing, mixed_similarity, mochi, momentum_contrast
from mixcon.ops import gathered, pairs
from mixcon.train.gradients import Outcome, ema_teacher
from mixcon.train.mesh import make_mesh

compiled = jax.jit(mochi, static_argnames=("num_hard", "impl", "has_aux"))
similarity = jax.jit(mixed_similarity)
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "mochi.npz"
DRAWS = ("idx_i", "idx_j", "alpha", "idx_q", "beta")


@pytest.fixture(scope="module", autouse=True)
def _quick_compiles():
    """Small arrays, many programs: compiling is the cost here."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def load(case: str) -> tuple[SimpleNamespace, SimpleNamespace]:
    """(inputs, outputs) of one golden case."""
    with np.load(GOLDEN) as file:
        sides = [
            {k.rpartition("/")[2]: file[k] for k in file.files if k.startswith(f"{case}/{side}/")}
            for side in ("in", "out")
        ]
    return SimpleNamespace(**sides[0]), SimpleNamespace(**sides[1])


def unit(*shape: int, seed: int = 0, dtype: Any = np.float32) -> jax.Array:
    """Rows of unit length that grow more alike, so that no two parts of a batch look the same."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) + np.linspace(0, 1.5, shape[0])[:, None] * np.ones(shape[1])
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype)


def draws_for(rows: int, mixing: Mixing, seed: int = 0) -> HardDraws:
    counts = {"num_hard": mixing.num_hard, "num_mix": mixing.num_mix, "num_query_mix": mixing.num_query_mix}
    return mochi_draws(jax.random.key(seed), rows, replace=mixing.replace, **counts)


# --- golden vectors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize("case", ["c0", "c1", "c2"])
def test_golden_loss_logits_and_gradient(case, impl):
    inp, out = load(case)
    with jax.enable_x64(True):
        draws = HardDraws(*(jnp.asarray(getattr(inp, name)) for name in DRAWS))
        q, k, queue = (jnp.asarray(x) for x in (inp.q, inp.k, inp.queue))
        options = {"temperature": float(inp.temperature), "num_hard": int(inp.num_hard), "impl": impl}

        def loss(q, k, queue, draws):
            return mochi(q, k, queue, draws=draws, has_aux=True, **options)

        both = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
        (value, aux), gradients = both(q, k, queue, draws)
        np.testing.assert_allclose(value, out.loss, rtol=1e-9)
        np.testing.assert_allclose(gradients[0], out.grad_q, rtol=1e-8, atol=1e-10)
        assert not np.any(gradients[1]), "the key is a constant"
        assert not np.any(gradients[2]), "and so is the queue"
        compiled_loss = jax.jit(loss)
        rows = [compiled_loss(q[i : i + 1], k[i : i + 1], queue, jax.tree.map(lambda x, i=i: x[i : i + 1], draws))[0]
                for i in range(len(q))]  # fmt: skip
        np.testing.assert_allclose(rows, out.per_query, rtol=1e-9)
        hard = ops.top_k(q, queue, int(inp.num_hard), impl=impl).indices
        np.testing.assert_array_equal(hard, out.hard_idx)
        synthetic = out.logits[:, 1 + len(queue) :]
        np.testing.assert_allclose(
            similarity(q, queue, hard, draws) / float(inp.temperature), synthetic, rtol=1e-9, atol=1e-12
        )
        best = out.logits[:, 0] > out.logits[:, 1:].max(1)
        np.testing.assert_allclose(aux["proxy_accuracy"], best.mean())
        best = out.logits[:, 0] > out.logits[:, 1 : 1 + len(queue)].max(1)
        np.testing.assert_allclose(aux["queue_accuracy"], best.mean())
        np.testing.assert_allclose(aux["probability"], np.exp(-out.per_query).mean(), rtol=1e-9)


def test_golden_queue_and_teacher():
    """c3: three batches go round a queue of two, and the teacher moves once."""
    inp, out = load("c3")
    with jax.enable_x64(True):
        size, dim = inp.queue.shape
        queue = memory.random_queue(jax.random.key(0), size, dim, jnp.float64)._replace(features=jnp.asarray(inp.queue))
        for step, keys in enumerate(inp.keys):
            queue = memory.push(queue, jnp.asarray(keys))
            np.testing.assert_allclose(queue.features, out.queue_after[step], rtol=1e-12)
            assert int(queue.cursor) == out.pointer_after[step]

        def inside(state, batch):
            return (), Outcome(0, {}, state.extra, ())

        class State(SimpleNamespace):
            def _replace(self, **changed):
                return State(**{**vars(self), **changed})

        state = State(
            step=0,
            params={"w": jnp.asarray(inp.online), "head": jnp.zeros(2)},
            extra={"teacher": {"w": jnp.asarray(inp.target)}},
        )
        _, outcome = ema_teacher(inside, momentum=float(inp.momentum))(state, {})
        np.testing.assert_allclose(outcome.extra["teacher"]["w"], out.target_after, rtol=1e-12)


# --- what the mixtures promise ---------------------------------------------------------------------------------------

MIXING = Mixing(num_hard=6, num_mix=9, num_query_mix=7)


def test_a_mixture_with_the_query_is_harder_than_its_parent():
    q, queue = unit(16, 5), unit(64, 5, seed=1)
    draws = draws_for(16, MIXING)
    hard = ops.top_k(q, queue, MIXING.num_hard).indices
    parents = jnp.take_along_axis(q @ queue.T, jnp.take_along_axis(hard, draws.query, 1), 1)
    harder = similarity(q, queue, hard, draws)[:, MIXING.num_mix :]
    assert (harder > parents)[draws.beta > 1e-4].all()


def test_a_mixture_of_two_is_no_easier_than_the_easier_and_often_harder_than_both():
    q, queue = unit(16, 5), unit(64, 5, seed=1)
    draws = draws_for(16, MIXING)
    hard = ops.top_k(q, queue, MIXING.num_hard).indices
    first, second = (
        jnp.take_along_axis(q @ queue.T, jnp.take_along_axis(hard, ranks, 1), 1)
        for ranks in (draws.first, draws.second)
    )
    mixture = similarity(q, queue, hard, draws)[:, : MIXING.num_mix]
    counted = (first >= 0) & (second >= 0)
    assert counted.mean() > 0.5
    assert (mixture >= jnp.minimum(first, second) - 1e-6)[counted].all()
    assert 0.2 < (mixture > jnp.maximum(first, second))[counted].mean() < 1


def test_similarities_are_those_of_the_mixtures_and_their_gradient_is_the_mixture():
    q, queue = unit(8, 5), unit(32, 5, seed=1)
    draws = draws_for(8, MIXING)
    hard = ops.top_k(q, queue, MIXING.num_hard).indices
    mixtures = jnp.concatenate([hard_negative_mix(queue, hard, draws), query_mix(q, queue, hard, draws)], axis=1)
    np.testing.assert_allclose(
        similarity(q, queue, hard, draws), jnp.einsum("bd,bsd->bs", q, mixtures), rtol=1e-5, atol=1e-6
    )
    gradient = jax.jit(jax.grad(lambda q: mixed_similarity(q, queue, hard, draws).sum()))(q)
    np.testing.assert_allclose(gradient, mixtures.sum(1), rtol=1e-4, atol=1e-5)


def test_opposite_negatives_mix_to_a_finite_gradient():
    queue = jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    half = HardDraws(
        *(jnp.asarray(x) for x in ([[0]], [[2]], [[0.5]])), jnp.zeros((1, 0), jnp.int32), jnp.zeros((1, 0))
    )
    q = jnp.asarray([[0.8, 0.6]])  # hardest first: rows 0, 2, 1
    run = jax.jit(jax.value_and_grad(lambda q: mochi(q, q, queue, temperature=0.2, num_hard=3, draws=half)))
    value, gradient = run(q)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_blocks_of_columns_change_nothing(monkeypatch):
    q, queue = unit(8, 5), unit(32, 5, seed=1)
    draws = draws_for(8, MIXING)

    def run(q):
        return mochi(q, q, queue, temperature=0.2, num_hard=6, draws=draws)

    whole = jax.jit(jax.value_and_grad(run))(q)
    monkeypatch.setattr(gathered, "BLOCK", 8 * 5 * 2)  # two columns at a time
    for one, other in zip(whole, jax.jit(jax.value_and_grad(lambda q: run(q)))(q), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_bfloat16_features_are_ranked_and_summed_in_float32():
    q, k, queue = unit(8, 5), unit(8, 5, seed=2), unit(32, 5, seed=1)
    draws = draws_for(8, MIXING)
    low = [x.astype(jnp.bfloat16) for x in (q, k, queue)]
    got = compiled(*low, temperature=0.2, num_hard=6, draws=draws)
    rounded = [x.astype(jnp.float32) for x in low]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, compiled(*rounded, temperature=0.2, num_hard=6, draws=draws), rtol=1e-3)


# --- own images, classes, warm-up ------------------------------------------------------------------------------------


def test_rows_of_the_own_image_are_neither_negatives_nor_mixed():
    """The loss with ids is the one of a queue from which the rows have been cut."""
    q, k, queue = unit(4, 5), unit(4, 5, seed=2), unit(16, 5, seed=1)
    ids = jnp.arange(4, dtype=jnp.int32)
    queue_ids = jnp.where(jnp.arange(16) < 4, jnp.arange(16), 100 + jnp.arange(16))  # row i is of image i
    queue = queue.at[:4].set(q)  # the hardest of all, if they were allowed
    draws = draws_for(4, MIXING)
    with_ids = compiled(
        q, k, queue, temperature=0.2, num_hard=6, draws=draws, negatives=~pairs.same_label(ids, queue_ids), has_aux=True
    )
    for i in range(4):
        own = jax.tree.map(lambda x, i=i: x[i : i + 1], draws)
        cut = jnp.delete(queue, i, axis=0)
        alone = compiled(
            q[i : i + 1], k[i : i + 1], queue, temperature=0.2, num_hard=6, draws=own,
            negatives=~pairs.same_label(ids[i : i + 1], queue_ids),
        )  # fmt: skip
        np.testing.assert_allclose(
            alone, compiled(q[i : i + 1], k[i : i + 1], cut, temperature=0.2, num_hard=6, draws=own), rtol=1e-5
        )
    assert with_ids[0] < compiled(q, k, queue, temperature=0.2, num_hard=6, draws=draws)


@functools.cache
def run(objective_arguments: tuple = (), mixing: Mixing | None = MIXING) -> Any:
    objective = momentum_contrast(16, 5, mixing=mixing, **dict(objective_arguments))
    return objective, jax.jit(objective.apply)


def test_one_program_serves_the_warm_up_and_what_follows():
    """Before its step each kind of mixture is out of the loss; one trace serves all steps."""
    mixing = MIXING._replace(warmup_steps=5, query_warmup_steps=9)
    objective, apply = run(mixing=mixing)
    state, q, k = objective.init(jax.random.key(0)), unit(8, 5), unit(8, 5, seed=2)
    rng = jax.random.key(3)
    losses = [float(apply(state, q, k, rng=rng, step=jnp.int32(step))[0]) for step in (0, 4, 5, 8, 9)]
    assert apply._cache_size() == 1
    draws = draws_for(8, MIXING, seed=3)
    none = compiled(q, k, state.features, temperature=0.2)
    first = compiled(q, k, state.features, temperature=0.2, num_hard=6, draws=draws, use_query_mix=False)
    both = compiled(q, k, state.features, temperature=0.2, num_hard=6, draws=draws)
    np.testing.assert_allclose(losses, [none, none, first, first, both], rtol=1e-5)
    assert none < first < both


def test_objective_pushes_keys_ids_and_labels_after_its_loss():
    objective, apply = run()
    state, q, k = objective.init(jax.random.key(0)), unit(8, 5), unit(8, 5, seed=2)
    np.testing.assert_allclose(jnp.linalg.norm(state.features, axis=1), 1, rtol=1e-5)
    ids, labels = jnp.arange(8, dtype=jnp.int32) + 30, jnp.arange(8, dtype=jnp.int32) % 3
    _, aux, after = apply(state, q, k, rng=jax.random.key(1), step=0, ids=ids, labels=labels)
    assert set(aux) == {"proxy_accuracy", "queue_accuracy", "probability"}
    np.testing.assert_array_equal(after.features[:8], k)
    np.testing.assert_array_equal(after.features[8:], state.features[8:])
    np.testing.assert_array_equal(after.ids, [*ids, *[-1] * 8])
    np.testing.assert_array_equal(after.labels, [*labels, *[-1] * 8])
    assert int(after.cursor) == 8
    again = apply(after, q, k, rng=jax.random.key(1), step=0, ids=ids, labels=labels)[0]
    np.testing.assert_allclose(
        again,
        mochi(
            q, k, after.features, temperature=0.2, num_hard=6, draws=draws_for(8, MIXING, seed=1),
            negatives=~pairs.same_label(ids, after.ids),
        ),
        rtol=1e-5,
    )  # fmt: skip


def test_class_oracle_leaves_the_own_class_out():
    objective, apply = run((("oracle", True),), None)
    state, q, k = objective.init(jax.random.key(0)), unit(8, 5), unit(8, 5, seed=2)
    labels = jnp.arange(8, dtype=jnp.int32) % 2
    state = apply(state, q, k, labels=labels)[2]
    state = apply(state, k, q, labels=1 - labels)[2]
    loss = apply(state, q, k, labels=labels)[0]
    held = np.asarray(state.labels)
    expected = []
    for i in range(8):
        rows = state.features[held != int(labels[i])]
        logits = np.concatenate([[q[i] @ k[i]], rows @ q[i]]).astype(np.float64) / 0.2
        expected.append(np.log(np.exp(logits).sum()) - logits[0])
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


def test_too_few_negatives_under_jit_leave_mixtures_out():
    """Where a query has fewer than N, a mixture that would need more is no negative: nothing is made up."""
    q, queue = unit(4, 5), unit(16, 5, seed=1)
    ids = jnp.zeros(4, jnp.int32)
    queue_ids = jnp.where(jnp.arange(16) < 12, 0, 1)  # four negatives each
    draws = draws_for(4, MIXING)

    def run(q):
        return mochi(q, q, queue, temperature=0.2, num_hard=6, draws=draws, negatives=~pairs.same_label(ids, queue_ids))

    value, gradient = jax.jit(jax.value_and_grad(run))(q)
    hard = np.argsort(-np.asarray(q @ queue[12:].T), axis=1, kind="stable") + 12
    hard = jnp.asarray(np.concatenate([hard, np.full((4, 2), -1)], axis=1), jnp.int32)
    logits = jnp.concatenate([(q * q).sum(1, keepdims=True), q @ queue[12:].T, similarity(q, queue, hard, draws)], 1)
    np.testing.assert_allclose(value, (jax.nn.logsumexp(logits / 0.2, 1) - logits[:, 0] / 0.2).mean(), rtol=1e-5)
    assert np.isfinite(gradient).all()


# --- meshes and memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True], ids=["jit", "shard_map"])
def test_sharded_is_single_device(inside):
    """Loss, gradient, metrics and the queue after the step, with ids and classes, on data that differ by device."""
    mixing = MIXING._replace(warmup_steps=2)
    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    q, k = unit(16, 5), unit(16, 5, seed=2)
    ids, labels = jnp.arange(16, dtype=jnp.int32), jnp.arange(16, dtype=jnp.int32) % 5

    def step(objective, state, q, k, ids, labels):
        def loss(q):
            value, aux, after = objective.apply(state, q, k, rng=jax.random.key(7), step=3, ids=ids, labels=labels)
            return value, (aux, after)

        return jax.value_and_grad(loss, has_aux=True)(q)

    alone = momentum_contrast(32, 5, mixing=mixing, oracle=True)
    state = memory.push(alone.init(jax.random.key(0)), unit(16, 5, seed=4), ids=ids, labels=labels)
    want = jax.jit(functools.partial(step, alone))(state, q, k, ids, labels)
    mesh = make_mesh(data=8)
    batch = jax.device_put((q, k, ids, labels), NamedSharding(mesh, rows))
    state = jax.device_put(state, NamedSharding(mesh, everywhere))
    if inside:
        local = momentum_contrast(32, 5, mixing=mixing, oracle=True, axis_name="data")
        mapped = jax.shard_map(
            functools.partial(step, local),
            mesh=mesh,
            in_specs=(everywhere, rows, rows, rows, rows),
            out_specs=((everywhere, (everywhere, everywhere)), rows),
        )
        got = jax.jit(mapped)(state, *batch)
    else:
        with jax.set_mesh(mesh):
            got = jax.jit(functools.partial(step, alone))(state, *batch)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def test_no_matrix_of_the_queue_and_no_tensor_of_mixtures(monkeypatch):
    """Value and gradient at B=256, K=65536, (256, 256, 128): neither [B, K] nor [B, s, D] is in the program."""
    rows, size, dim = 256, 65_536, 128
    mixing = Mixing(num_hard=256, num_mix=256, num_query_mix=128)
    monkeypatch.setattr(gathered, "BLOCK", 2**20)

    def loss(q, k, queue, rng, impl):
        draws = mochi_draws(rng, rows, num_hard=256, num_mix=256, num_query_mix=128)
        return mochi(q, k, queue, temperature=0.2, num_hard=mixing.num_hard, draws=draws, impl=impl)

    jax.config.update("jax_disable_most_optimizations", False)  # what is asked of is the program as it runs

    def biggest(impl):
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, dim), (rows, dim), (size, dim))]
        key = jax.eval_shape(jax.random.key, 0)
        compiled = jax.jit(jax.value_and_grad(functools.partial(loss, impl=impl))).lower(*shapes, key).compile()
        found = re.findall(r"\b(?:f|s|u|pred)\d*\[([\d,]+)\]", compiled.as_text())
        arrays = {tuple(int(n) for n in shape.split(",")) for shape in found}
        return arrays, compiled.memory_analysis().temp_size_in_bytes

    arrays, temporary = biggest("tiled")
    assert (size, dim) in arrays
    assert not any(shape[:1] == (rows,) and np.prod(shape) >= rows * min(size, 256 * dim) for shape in arrays)
    assert max(np.prod(shape) for shape in arrays if shape != (size, dim)) <= 2**20 * 1.5
    assert temporary < rows * size * 4 / 2
    assert (rows, size) in biggest("dense")[0], "the inspection would see it"


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hard": 17}, "num_hard=17 must lie in 1..16"),
        ({"num_hard": 0}, "num_hard=0 must lie in 1..16"),
        ({"num_mix": -1}, "must not be negative"),
        ({"num_query_mix": -2}, "must not be negative"),
        ({"num_hard": 1}, "replace=True"),
        ({"num_mix": 0, "num_query_mix": 0}, "mixing=None"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
    ],
)
def test_mixing_that_cannot_be_drawn_is_refused(changes, words):
    with pytest.raises(InputError, match=re.escape(words)):
        momentum_contrast(16, 5, mixing=MIXING._replace(**changes))


def test_one_hardest_negative_is_copied_with_replacement():
    objective = momentum_contrast(16, 5, mixing=Mixing(1, 3, 0, replace=True))
    state, q = objective.init(jax.random.key(0)), unit(8, 5)
    loss = jax.jit(objective.apply)(state, q, q, rng=jax.random.key(1), step=0)[0]
    similar = q @ state.features.T
    logits = jnp.concatenate([jnp.ones((8, 1)), similar, jnp.repeat(similar.max(1, keepdims=True), 3, 1)], 1) / 0.2
    np.testing.assert_allclose(loss, (jax.nn.logsumexp(logits, 1) - 5).mean(), rtol=1e-5)


def test_bad_input_of_the_loss_is_refused():
    q, queue, draws = unit(4, 5), unit(16, 5, seed=1), draws_for(4, MIXING)
    call = functools.partial(mochi, temperature=0.2, num_hard=6)
    refused = [
        (lambda: call(q, q, queue, temperature=0.0), "temperature must be finite and above zero"),
        (lambda: call(q, q[:2], queue), "query and key are pairs"),
        (lambda: call(2 * q, q, queue), "query must have rows of unit length"),
        (lambda: call(q, q, 2 * queue), "queue must have rows of unit length"),
        (lambda: call(q, q, queue[:, :3]), "D = 5 but keys have D = 3"),
        (lambda: call(q, q, queue, draws=draws, num_hard=17), "num_hard=17 must lie in 1..16"),
        (lambda: call(q, q, queue, draws=draws, num_hard=3), "are ranks in 0..2"),
        (lambda: call(q, q, queue, draws=draws._replace(beta=draws.beta + 0.5)), "draws.beta must lie in [0, 0.5]"),
        (lambda: call(q, q, queue, draws=draws._replace(alpha=draws.alpha - 1)), "draws.alpha must lie in [0, 1]"),
        (lambda: call(q[:2], q[:2], queue, draws=draws), "must share a shape [2, n]"),
        (
            lambda: call(
                q, q, queue, draws=draws,
                negatives=~pairs.same_label(jnp.zeros(4, jnp.int32), jnp.where(jnp.arange(16) < 12, 0, 1)),
            ),
            "query 0 has only 4 negatives in the queue, fewer than num_hard=6",
        ),
    ]  # fmt: skip
    for function, words in refused:
        with pytest.raises(InputError, match=re.escape(words)):
            function()


def test_bad_input_of_the_objective_is_refused():
    q = unit(6, 5)
    objective = momentum_contrast(16, 5, mixing=MIXING)
    state = objective.init(jax.random.key(0))
    with pytest.raises(InputError, match="size=16 cannot be filled by batches of 6"):
        objective.apply(state, q, q, rng=jax.random.key(1))
    with pytest.raises(InputError, match="pass rng="):
        objective.apply(state, q[:4], q[:4])
    with pytest.raises(InputError, match="needs the labels"):
        momentum_contrast(16, 5, oracle=True).apply(state, q[:4], q[:4])
    with pytest.raises(InputError, match="must lie in"):
        ema_teacher(lambda *_, **__: None, momentum=1.5)
