"""Every experiment, cut down until a test can train it: a new one joins by one line.

`<config>:<argument>` -> overrides (what follows `--config.`) that make a run of six steps cheap.
"""

CASES = {
    "clip:small": (
        "batch_size=16",
        "schedule.warmup_steps=2",
        "tokenizer.vocab_size=300",
        "model.embed_dim=16",
        "model.image.width=32",
        "model.image.depth=1",
        "model.image.patch=16",
        "model.text.width=32",
        "model.text.depth=1",
        "model.text.context_length=12",
        "ema=0.9",
        "data.evals={}",
        "zero_shot=()",
        "probes=()",
    ),
    "cmixup:small": (),
    "cmixup:crime": ("mixer.partner=representation",),
}
