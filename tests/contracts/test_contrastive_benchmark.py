"""The contrastive benchmark's own gate, on its JAX rows: what it times is right."""

import pathlib
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from benchmarks.contrastive import Jax, passes
from benchmarks.contrastive_rows import ROWS, Row, inputs

MINE = [row for row in ROWS if row.loss or row.gradient]


@pytest.fixture(scope="module")
def side() -> Jax:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax is not strict
        side = Jax("float32", None)
        side.load(inputs(48, 8))
        return side


@pytest.mark.parametrize("row", MINE, ids=lambda row: f"{row.task}: {row.name}")
def test_the_row_meets_the_float64_truth(side: Jax, row: Row) -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert passes(side, row, inputs(48, 8), 1e-4) is None
        assert side.memory(row) > 0
