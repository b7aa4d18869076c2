"""Session-wide settings: eight virtual devices, and JAX at its strictest."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Resumed runs and child processes compile the same steps again: let them find what the session has compiled.
_cache = tempfile.TemporaryDirectory(prefix="mixcon-compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
