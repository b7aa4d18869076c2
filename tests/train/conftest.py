"""Optax's schedules and counters promote int to float, so the strict session setting is relaxed here."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield
