"""Dense, tiled, ring and gather give one answer, value and gradient, for every kind of pairs and every reduction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from mixcon import ops
from mixcon.ops import pairs
from mixcon.ops.reference import Reduce

B, N, D = 22, 37, 5  # no tile, and no number of devices, divides them
RNG = np.random.default_rng(1)
Q = jnp.asarray(RNG.normal(size=(B, D)), jnp.float32)
K = jnp.asarray(RNG.normal(size=(N, D)), jnp.float32)


def above(similarity):
    return similarity > 0.3


def bell(distance):
    return jnp.exp(-jnp.square(distance))


def all_kinds():
    """name -> Pairs [B, N], built from fresh arrays."""
    rng = np.random.default_rng(2)

    def w(*shape):
        return rng.uniform(0.1, 1.0, shape).astype(np.float32)

    y, yk = rng.integers(0, 4, B), rng.integers(0, 4, N)
    many, many_k = rng.integers(0, 2, (B, 6)), rng.integers(0, 2, (N, 6))
    ids, key_ids = rng.integers(0, 9, (B, 2)), rng.integers(0, 9, (N, 3))
    frozen, frozen_k = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rng.normal(size=(B, 3)), rng.normal(size=(N, 3)))
    )
    frozen, frozen_k = frozen.astype(np.float32), frozen_k.astype(np.float32)
    return {
        "everything": pairs.everything(),
        "identity": pairs.identity(),
        "offset": pairs.identity(9),
        "not_self": pairs.not_self(),
        "block": pairs.block(2),
        "block_queries": pairs.block(3, "queries"),
        "same_label": pairs.same_label(y, yk),
        "same_label_not_self": pairs.same_label(y, yk) & pairs.not_self(),
        "negatives": ~pairs.same_label(y, yk),
        "multi_label": pairs.multi_label(many, many_k),
        "multi_label_count": pairs.multi_label(many, many_k, "count"),
        "multi_label_jaccard": pairs.multi_label(many, many_k, "jaccard"),
        "mixed": pairs.mixed(rng.integers(0, N, B), w(B)),
        "mixed_k": pairs.mixed(rng.integers(0, N, (B, 3)), w(B, 3)),
        "mixed_keys": pairs.mixed(rng.integers(0, B, N), w(N), side="keys"),
        "slots": pairs.slots(ids, w(B, 2), key_ids, w(N, 3)),
        "affine": pairs.similarity(frozen, frozen_k),
        "threshold": pairs.similarity(frozen, frozen_k, above),
        "soft": pairs.similarity(frozen, frozen_k, bell, frozen=False),
        "label_distance": pairs.label_distance(w(B), w(N), bell),
        "label_distance_vectors": pairs.label_distance(w(B, 2), w(N, 2), bell),
        "dense": pairs.dense(w(B, N)),
        "dense_transposed": pairs.dense(w(N, B)).T,
        "valid": pairs.valid(rng.uniform(size=B) < 0.8, rng.uniform(size=N) < 0.8),
        "combined": (pairs.same_label(y, yk) | pairs.identity()) & pairs.valid(np.ones(B), np.arange(N) < 30),
        "smoothed": 0.9 * pairs.identity() + pairs.everything() * 0.01,
        "masked_weights": pairs.dense(w(B, N)) * ~pairs.identity(),
    }


def kinds_tile(rules, sim, row, col, shared):
    channels = {"plain": sim * 2}
    for name, rule in rules.items():
        tile = rule(pairs.Block(row.position, row.data[name]), pairs.Block(col.position, col.data[name]), shared[name])
        channels[f"{name}/sum"] = pairs.weights(tile) * sim
        channels[f"{name}/lse"] = ops.log_weighted(sim, tile)
    return channels


@functools.partial(
    jax.jit, static_argnames=("impl", "tile_size"), compiler_options={"xla_llvm_disable_expensive_passes": True}
)
def reduce_kinds(q, k, kinds, cotangents, impl, tile_size=None):
    """Every reduction of every kind, and the gradient of their weighted sum."""
    rules = {name: p.rule for name, p in kinds.items()}
    reductions = {"max/row": Reduce("plain", "max", "row"), "max/col": Reduce("plain", "max", "col")}
    for i, name in enumerate(kinds):  # one direction each, in turn: half the work to compile
        per, other = ("row", "col") if i % 2 else ("col", "row")
        reductions[f"{name}/sum/{per}"] = Reduce(f"{name}/sum", "sum", per)
        reductions[f"{name}/lse/{other}"] = Reduce(f"{name}/lse", "logsumexp", other)

    def total(q, k, kinds):
        out = ops.pair_reduce(
            functools.partial(kinds_tile, rules), q, k, reductions,
            rows={n: p.rows for n, p in kinds.items()}, cols={n: p.cols for n, p in kinds.items()},
            shared={n: p.shared for n, p in kinds.items()}, impl=impl, tile_size=tile_size,
        )  # fmt: skip
        weight = {name: cotangents[reductions[name].per] for name in out}
        return sum(jnp.sum(jnp.where(jnp.isfinite(x), x, 0) * weight[name]) for name, x in out.items()), out

    (_, out), gradient = jax.value_and_grad(total, (0, 1, 2), has_aux=True, allow_int=True)(q, k, kinds)
    return out, gradient


def close(got, want, rtol=2e-5):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        if a.dtype == jax.dtypes.float0:
            continue
        scale = np.max(np.abs(np.where(np.isfinite(b), b, 0)), initial=1e-3)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale, err_msg=jax.tree_util.keystr(path))


COTANGENTS = {"row": jnp.linspace(-1, 2, B), "col": jnp.linspace(1.5, -1, N)}


@pytest.fixture(scope="module")
def kinds():
    return all_kinds()


@pytest.fixture(scope="module")
def reference(kinds):
    return reduce_kinds(Q, K, kinds, COTANGENTS, "dense")


def test_dense_is_the_matrix(kinds, reference):
    """The reference itself, against numpy on the materialised pair matrices."""
    sim = np.asarray(Q, np.float64) @ np.asarray(K, np.float64).T
    out, _ = reference
    for name, kind in kinds.items():
        matrix = np.asarray(kind.matrix(B, N), np.float64)
        with np.errstate(divide="ignore"):
            wanted = {"sum": matrix * sim, "lse": matrix * np.exp(sim)}
            for key in [key for key in out if key.startswith(f"{name}/")]:
                _, what, per = key.split("/")
                total = wanted[what].sum(1 if per == "row" else 0)
                np.testing.assert_allclose(out[key], np.log(total) if what == "lse" else total, rtol=1e-4, atol=1e-4)


def test_tiled_equals_dense(kinds, reference):
    close(reduce_kinds(Q, K, kinds, COTANGENTS, "tiled", (7, 10)), reference)


@pytest.mark.parametrize("impl", ["ring", "gather"])
def test_distributed_equals_dense(kinds, reference, impl):
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        close(reduce_kinds(Q, K, kinds, COTANGENTS, impl, 4), reference)
