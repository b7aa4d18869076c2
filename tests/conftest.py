"""Session-wide settings: eight virtual devices, a compiler in a hurry, and JAX at its strictest."""

import gc
import os

from compiler import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags(devices=8)

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_finish() -> None:
    """What has been imported stays: a full collection, at most a second and dozens of times, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory():
    """Compiled programs of one file are not kept while the others run: each is some memory maps, of which Linux
    gives a process 65,530."""
    yield
    jax.clear_caches()
