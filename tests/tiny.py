"""A dual encoder small enough to train in a test, on the real emoji, from the real config."""

import os
import tempfile

import ml_collections
from compiler import xla_flags

from mixcon import config as configs

OVERRIDES = (
    "--config.mesh.data=1",
    "--config.steps=6",
    "--config.batch_size=16",
    "--config.log_every=1",
    "--config.eval_every=-1",
    "--config.checkpoint.every=1",
    "--config.schedule.warmup_steps=2",
    "--config.tokenizer.vocab_size=300",
    "--config.model.embed_dim=16",
    "--config.model.image.width=32",
    "--config.model.image.depth=1",
    "--config.model.image.patch=16",
    "--config.model.text.width=32",
    "--config.model.text.depth=1",
    "--config.model.text.context_length=12",
)


# Child processes compile the same step again and again: let them find what the first of them has compiled. (Not the
# session itself: little of what it compiles comes again, and a cache would save it some two per cent.)
_cache = tempfile.TemporaryDirectory(prefix="mixcon-compiled-")


def child_environment(devices: int = 1) -> dict[str, str]:
    """Environment of a training process that a test starts."""
    return {
        **os.environ,
        "XLA_FLAGS": xla_flags(devices),
        "JAX_COMPILATION_CACHE_DIR": _cache.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }


def tiny_config(*overrides: str, name: str = "clip") -> ml_collections.ConfigDict:
    """`configs/<name>.py:small`, smaller; later overrides win."""
    return configs.load(f"configs/{name}.py:small", [*OVERRIDES, *overrides])
