"""Errors of regression against plain loops and the original code's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from mixcon.errors import InputError
from mixcon.evals.regression import mape, pearson_r, regression_report, rmse, worst_group

RNG = np.random.default_rng(0)
Y, PRED = RNG.normal(size=(2, 12, 3)).astype(np.float32)
Y[3, 1] = 0


def test_values_of_the_original_code():
    with np.load("tests/golden/cmixup.npz") as arrays:
        case = {key[3:]: arrays[key] for key in arrays.files if key.startswith("c4/")}
    found = regression_report(case["in/pred"], case["in/y"])
    assert_allclose(found["rmse"] ** 2, case["out/mse"], rtol=1e-5)
    for name in ("rmse", "mape", "r"):
        assert_allclose(found[name], case[f"out/{name}"], rtol=1e-5)
    assert_allclose(found["r"] ** 2, case["out/r^2"], rtol=1e-5)


def test_loops_give_the_same():
    squares = [(p - y) ** 2 for p, y in zip(PRED.ravel(), Y.ravel(), strict=True)]
    assert_allclose(jax.jit(rmse)(PRED, Y), (sum(squares) / len(squares)) ** 0.5, rtol=1e-5)
    shares = [abs(p - y) / abs(y) for p, y in zip(PRED.ravel(), Y.ravel(), strict=True) if y != 0]
    assert len(shares) == Y.size - 1
    assert_allclose(jax.jit(mape)(PRED, Y), 100 * sum(shares) / len(shares), rtol=1e-5)
    columns = [np.corrcoef(PRED[:, d], Y[:, d])[0, 1] for d in range(3)]
    assert_allclose(jax.jit(pearson_r)(PRED, Y), np.mean(columns), rtol=1e-5)


def test_outputs_whose_targets_do_not_vary_are_left_out_of_the_correlation():
    constant = Y.copy()
    constant[:, 2] = 4
    columns = [np.corrcoef(PRED[:, d], Y[:, d])[0, 1] for d in (0, 1)]
    assert_allclose(pearson_r(PRED, constant), np.mean(columns), rtol=1e-5)
    assert np.isnan(pearson_r(PRED, np.ones_like(Y)))
    assert pearson_r(np.ones_like(Y), Y) == 0


def test_the_worst_group_is_the_highest_error_or_the_lowest_correlation():
    group = np.array([5, 2, 2, 5, 2, 5, 9, 9, 9, 9, 2, 5])
    errors = [np.sqrt(((PRED[group == g] - Y[group == g]) ** 2).mean()) for g in (2, 5, 9)]
    assert_allclose(jax.jit(lambda p, y: worst_group(rmse, p, y, group))(PRED, Y), max(errors), rtol=1e-5)
    assert_allclose(regression_report(PRED, Y, group)["worst_rmse"], max(errors), rtol=1e-5)
    lows = [pearson_r(PRED[group == g], Y[group == g]) for g in (2, 5, 9)]
    assert_allclose(worst_group(pearson_r, PRED, Y, group, worst="lowest"), min(lows), rtol=1e-5)


def test_gradients_are_finite_at_zero_labels_and_constant_columns():
    flat = jnp.asarray(Y).at[:, 0].set(0.0)
    for metric in (mape, pearson_r):
        assert np.isfinite(jax.grad(lambda p, m=metric: m(p, flat))(jnp.asarray(PRED))).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rmse(PRED, Y[:5]), "one shape"),
        (lambda: mape(PRED[:0], Y[:0]), "not empty"),
        (lambda: worst_group(rmse, PRED, Y, np.zeros(3)), r"group must be \[12\]"),
        (lambda: worst_group(rmse, PRED, Y, np.zeros(12), worst="largest"), "highest"),
        (lambda: jax.jit(lambda g: worst_group(rmse, PRED, Y, g))(np.zeros(12)), "before tracing"),
    ],
)
def test_bad_input_is_said_in_words(call, words):
    with pytest.raises(InputError, match=words):
        call()
