"""Golden vectors: arrays that the methods' original code produced."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

GOLDEN = Path(__file__).parent.parent / "golden"


def load_cases(name):
    """Cases of one golden file: dictionaries `c.inp` and `c.out` of arrays, keyed by name."""
    cases = {}
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        for full in arrays.files:
            case, side, key = full.split("/", 2)
            entry = cases.setdefault(case, SimpleNamespace(inp={}, out={}))
            (entry.inp if side == "in" else entry.out)[key] = arrays[full]
    return [cases[k] for k in sorted(cases, key=lambda c: int(c[1:]))]


@pytest.fixture(scope="module", autouse=True)
def _quick_compiles():
    """Small arrays, many programs: compiling is the cost here. (The battery compiles some with all optimisations.)"""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def golden():
    return load_cases


@pytest.fixture(scope="session")
def nhwc():
    """[N, C, H, W] of the originals to our [N, H, W, C]."""
    return lambda a: np.moveaxis(np.asarray(a), 1, -1)


@pytest.fixture(scope="session")
def close():
    """The house rule for golden values: 1e-5 relative to the largest value of the array."""

    def check(actual, expected, tolerance=1e-5):
        actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        assert actual.shape == expected.shape, (actual.shape, expected.shape)
        scale = max(float(np.abs(expected).max(initial=0.0)), 1e-12)
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale)

    return check
