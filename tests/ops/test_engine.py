"""The engine where it is easy to get wrong: shapes, extremes, precision, derivatives, memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixcon import ops
from mixcon.ops import pairs
from mixcon.ops.reference import Reduce


def features(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@functools.partial(jax.jit, static_argnames=("impl", "tile_size", "form"))
def loss_and_gradient(q, k, scale, labels, key_labels, impl, tile_size=None, form="out"):
    def loss(q, k, scale):
        ce = ops.contrastive_cross_entropy(
            q, k, scale=scale, positives=pairs.same_label(labels, key_labels), symmetric=True, form=form,
            impl=impl, tile_size=tile_size,
        )  # fmt: skip
        ramp = jnp.arange(q.shape[0], dtype=ce.rows.loss.dtype)
        return jnp.sum(ce.rows.loss * (1 + ramp)) + jnp.sum(ce.cols.loss), (ce.rows.without_positive, ce.rows.loss)

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, scale)


def assert_same(a, b, rtol=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * max(1e-3, float(np.max(np.abs(y)))))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 9),
    cols=st.integers(1, 9),
    width=st.sampled_from([1, 3]),
    tile=st.tuples(*[st.integers(1, 9)] * 2),
)
def test_any_shape_with_any_tile(rows, cols, width, tile):
    q, k = features(rows, rows, width), features(50 + cols, cols, width)
    y, yk = np.arange(rows) % 3, np.arange(cols) % 4
    want = loss_and_gradient(q, k, 2.0, y, yk, "dense")
    assert_same(loss_and_gradient(q, k, 2.0, y, yk, "tiled", tile), want)


EXTREMES = {
    "cold": (features(0, 12, 4) / 0.01, features(1, 12, 4), 1.0),
    "cold_spread": (features(0, 12, 4) * jnp.logspace(-3, 1.5, 12)[:, None], features(1, 12, 4) * 30, 1.0),
    "identical_rows": (jnp.ones((12, 4)), jnp.ones((12, 4)), 100.0),
    "zero_rows": (features(0, 12, 4).at[3].set(0), features(1, 12, 4).at[5].set(0), 10.0),
}


@pytest.mark.parametrize("case", EXTREMES)
def test_extremes_are_finite_and_equal(case):
    q, k, scale = EXTREMES[case]
    y = np.arange(12) % 5
    want = loss_and_gradient(q, k, scale, y, y, "dense", None, "in")
    got = loss_and_gradient(q, k, scale, y, y, "tiled", (5, 5), "in")
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(got))
    # Where every row is the same the exact gradient is zero, and what is left is rounding at logits of 400.
    np.testing.assert_allclose(got[0][0], want[0][0], rtol=1e-5)
    for x, y in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-3 if case == "identical_rows" else 1e-4 * np.abs(y).max())


def test_identical_rows_have_the_loss_of_chance():
    ones = jnp.ones((16, 3)) / np.sqrt(3)
    ce = ops.contrastive_cross_entropy(ones, ones, scale=100.0, symmetric=True, impl="tiled", tile_size=5)
    np.testing.assert_allclose(ce.rows.loss, np.log(16), rtol=1e-5)
    np.testing.assert_allclose(ce.cols.loss, np.log(16), rtol=1e-5)


def test_rows_without_a_positive_count_and_cost_nothing():
    q, k = features(0, 6, 3), features(1, 6, 3)
    y, yk = np.array([0, 1, 2, 9, 1, 9]), np.array([0, 1, 2, 2, 1, 0])
    (_, (count, loss)), (dq, _, _) = loss_and_gradient(q, k, 1.0, y, yk, "tiled", 4)
    assert count == 2
    assert loss[3] == loss[5] == 0
    assert np.all(np.isfinite(dq))


def test_an_empty_denominator_is_minus_infinity_with_zero_gradient():
    q, k = features(0, 5, 3), features(1, 5, 3)
    keep = pairs.valid(np.array([1, 1, 0, 1, 1]), np.ones(5))

    def total(q, impl):
        row, _ = ops.pair_statistics(q, k, denominator=keep, impl=impl, tile_size=2)
        return jnp.sum(jnp.where(jnp.isfinite(row.log_denominator), row.log_denominator, 0)), row.log_denominator

    for impl in ("dense", "tiled"):
        (_, value), dq = jax.value_and_grad(total, has_aux=True)(q, impl)
        assert value[2] == -jnp.inf
        assert np.all(dq[2] == 0)
        assert np.all(np.isfinite(dq))


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_padding_changes_nothing(impl):
    q, k = features(0, 7, 3), features(1, 7, 3)
    garbage = 1e3 * features(2, 4, 3)
    mask = np.arange(11) < 7

    def loss(q, k, mask):
        ce = ops.contrastive_cross_entropy(
            q, k, scale=3.0, symmetric=True, row_mask=mask, col_mask=mask, impl=impl, tile_size=4
        )
        return jnp.sum(ce.rows.loss) + jnp.sum(ce.cols.loss)

    want = jax.value_and_grad(loss, (0, 1))(q, k, None)
    padded = jnp.concatenate([q, garbage]), jnp.concatenate([k, garbage])
    value, (dq, dk) = jax.value_and_grad(loss, (0, 1))(*padded, mask)
    assert_same((value, (dq[:7], dk[:7])), want)
    assert np.all(dq[7:] == 0)
    assert np.all(dk[7:] == 0)


@pytest.mark.parametrize("form", ["out", "in"])
def test_gradients_match_float64_finite_differences(form):
    with jax.enable_x64(True):
        q, k = (features(i, 7, 3, dtype=np.float64) for i in (0, 1))
        inputs = {
            "q": q, "k": k, "row_scale": jnp.linspace(1.0, 3.0, 7), "col_scale": jnp.linspace(2.0, 0.5, 7),
            "bias": jnp.float64(0.3), "margin": jnp.float64(0.2),
            "target": jnp.abs(features(2, 7, 7, dtype=np.float64)),
            "weight": jnp.abs(features(3, 7, 7, dtype=np.float64)), "bank": features(4, 5, 3, dtype=np.float64),
            "own": features(5, 7, 2, 3, dtype=np.float64),
        }  # fmt: skip

        def loss(x):
            ce = ops.contrastive_cross_entropy(
                x["q"], x["k"], scale=x["row_scale"], col_scale=x["col_scale"], bias=x["bias"], margin=x["margin"],
                positives=pairs.dense(x["target"]), denominator=pairs.dense(x["weight"]), form=form, symmetric=True,
                banks=[ops.Bank(x["bank"])], row_keys=x["own"], impl="tiled", tile_size=(3, 4),
            )  # fmt: skip
            return jnp.sum(ce.rows.loss * jnp.arange(1.0, 8.0)) + jnp.sum(ce.cols.loss)

        f = jax.jit(loss)
        gradient = jax.jit(jax.grad(loss))(inputs)
        rng = np.random.default_rng(9)
        for name, x in inputs.items():
            direction = jnp.asarray(rng.normal(size=x.shape))
            step = 1e-5
            up, down = ({**inputs, name: x + sign * step * direction} for sign in (1, -1))
            numeric = (f(up) - f(down)) / (2 * step)
            np.testing.assert_allclose(jnp.vdot(gradient[name], direction), numeric, rtol=1e-6, atol=1e-7, err_msg=name)


def test_max_sends_its_gradient_to_the_first_maximum():
    q, k = features(0, 6, 3), features(1, 9, 3).at[7].set(features(1, 9, 3)[2])  # a tie in every row

    def total(q, k, impl):
        out = ops.pair_reduce(
            lambda s, row, col, shared: {"s": s}, q, k,
            {"row": Reduce("s", "max", "row"), "col": Reduce("s", "max", "col")}, impl=impl, tile_size=(4, 2),
        )  # fmt: skip
        return jnp.sum(out["row"]) + jnp.sum(out["col"]), out["row"]

    dense = jax.value_and_grad(total, (0, 1), has_aux=True)(q, k, "dense")
    np.testing.assert_allclose(dense[0][1], np.max(np.asarray(q) @ np.asarray(k).T, axis=1), rtol=1e-6)
    assert_same(jax.value_and_grad(total, (0, 1), has_aux=True)(q, k, "tiled"), dense)


def test_several_similarities_share_a_tile():
    a, b = (features(0, 6, 3), features(1, 6, 4)), (features(2, 8, 3), features(3, 8, 4))

    def total(a, b, impl):
        out = ops.pair_reduce(
            lambda s, row, col, shared: {"both": s[0] - jnp.square(s[1])}, a, b,
            {"x": Reduce("both", "logsumexp", "row"), "y": Reduce("both", "sum", "col")}, impl=impl, tile_size=(4, 3),
        )  # fmt: skip
        return jnp.sum(jnp.sin(out["x"])) + jnp.sum(jnp.cos(out["y"]))

    assert_same(
        jax.value_and_grad(total, (0, 1))(a, b, "tiled"), jax.value_and_grad(total, (0, 1))(a, b, "dense"), 1e-4
    )


def test_bfloat16_features_are_summed_in_float32():
    q, k = features(0, 300, 16), features(1, 300, 16)
    q, k = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
    y = np.arange(300) % 50
    low = q.astype(jnp.bfloat16), k.astype(jnp.bfloat16)
    exact = loss_and_gradient(low[0].astype(jnp.float32), low[1].astype(jnp.float32), 20.0, y, y, "dense")
    got = loss_and_gradient(*low, 20.0, y, y, "tiled", 128)
    assert got[1][0].dtype == jnp.bfloat16
    np.testing.assert_allclose(got[0][0], exact[0][0], rtol=1e-5)
    for a, b in zip(got[1][:2], exact[1][:2], strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=2e-2 * float(jnp.max(jnp.abs(b))))


def test_vmap_is_a_loop():
    q, k, y = features(0, 3, 6, 4), features(1, 3, 6, 4), np.arange(6) % 3
    call = functools.partial(loss_and_gradient, impl="tiled", tile_size=4)
    batched = jax.vmap(lambda q, k: call(q, k, 2.0, y, y))(q, k)
    for i in range(3):
        assert_same(jax.tree.map(lambda x, i=i: x[i], batched), call(q[i], k[i], 2.0, y, y))


def test_second_derivatives_match_the_dense_form():
    q, k, y = features(0, 6, 3), features(1, 6, 3), np.arange(6) % 3

    def curvature(impl):
        f = lambda q: loss_and_gradient(q, k, 2.0, y, y, impl, 4)[0][0]  # noqa: E731
        over_reverse = jax.jvp(jax.grad(f), (q,), (q,))[1]
        return over_reverse, jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), q))(q)

    assert_same(curvature("tiled"), curvature("dense"), 1e-4)


def test_forward_mode_alone_is_refused_in_words():
    q, k = features(0, 6, 3), features(1, 6, 3)

    def loss(q):
        return ops.contrastive_cross_entropy(q, k, impl="tiled", tile_size=4).rows.loss.sum()

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (q,), (q,))


def arrays(text):
    """Element counts of every array in a compiled program's text."""
    return [np.prod([int(d) for d in dims.split(",") if d]) for dims in re.findall(r"\w+\[([\d,]*)\]", text)]


def test_no_batch_by_batch_buffer_and_memory_grows_linearly():
    def program(size):
        x = jax.ShapeDtypeStruct((size, 8), jnp.float32)
        y = jax.ShapeDtypeStruct((size,), jnp.int32)
        s = jax.ShapeDtypeStruct((), jnp.float32)
        return loss_and_gradient.lower(x, x, s, y, y, "tiled", 128).compile()

    small, large = program(1024), program(2048)
    assert max(arrays(large.as_text())) < 2048 * 2048 / 8
    temporaries = [p.memory_analysis().temp_size_in_bytes for p in (small, large)]
    assert temporaries[1] <= 2 * temporaries[0]
    dense = loss_and_gradient.lower(
        *[jax.ShapeDtypeStruct((1024, 8), jnp.float32)] * 2, jax.ShapeDtypeStruct((), jnp.float32),
        *[jax.ShapeDtypeStruct((1024,), jnp.int32)] * 2, "dense",
    ).compile()  # fmt: skip
    assert max(arrays(dense.as_text())) >= 1024 * 1024  # the test can see such a buffer


def test_tiles_are_those_of_the_mesh_not_of_the_process_that_compiles():
    from mixcon.ops.pairs import Block
    from mixcon.ops.reference import Side
    from mixcon.ops.schedules import grid

    side = Side(jnp.ones((1, 1)), Block(jnp.arange(20_000, dtype=jnp.int32), None))
    tpu = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    assert grid(side, side, None).tile_rows <= 1024
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((4,), ("data",), abstract_device=tpu)):
        assert 2048 < grid(side, side, None).tile_rows <= 4096
