"""A dual encoder small enough to train in a test, on the real emoji, from the real config."""

import ml_collections

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


def tiny_config(*overrides: str, name: str = "clip") -> ml_collections.ConfigDict:
    """`configs/<name>.py:small`, smaller; later overrides win."""
    return configs.load(f"configs/{name}.py:small", [*OVERRIDES, *overrides])
