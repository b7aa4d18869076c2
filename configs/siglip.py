"""SigLIP: an independent logistic loss on every pair of image and text (Zhai et al. 2023).

`b16`, `l16`: as published, on ArrayRecord shards. `small`: emoji, minutes on two CPU cores.
"""

import ml_collections

from configs import clip

PUBLISHED = {
    "b16": dict(size="B/16", embed_dim=768, text_width=768, text_heads=12, peak=1e-3),
    "l16": dict(size="L/16", embed_dim=1024, text_width=1024, text_heads=16, peak=1e-3),
}


def get_config(arg: str = "b16") -> ml_collections.ConfigDict:
    """The config of a variant: `b16`, `l16` or `small`."""
    if arg != "small" and arg not in PUBLISHED:
        raise ValueError(f"configs/siglip.py has no variant {arg!r}; it has small, {', '.join(PUBLISHED)}")
    config = clip.small() if arg == "small" else published(arg)
    config.objective = dict(name="mixcon.objectives.siglip")
    config.model.logit_scale = 10.0  # initial multiplier of the cosines
    config.model.logit_bias = -10.0  # initial additive bias: nearly all pairs are negatives
    config.logit_scale_range = ()  # no clamp in the paper's code
    return config


def published(variant: str) -> ml_collections.ConfigDict:
    """Full size: 32,768 pairs a batch, 9 billion seen."""
    config = clip.published(**PUBLISHED[variant])
    config.steps = 274_658  # 9 B pairs
    config.tokenizer.vocab_size = 32_000
    config.image_mean = config.image_std = (0.5, 0.5, 0.5)  # pixels in [-1, 1]
    image, text = config.model.image, config.model.text
    image.pool, image.pre_norm, image.patch_bias = "map", False, True
    image.activation = text.activation = "gelu_tanh"
    image.norm_eps = text.norm_eps = 1e-6
    text.causal, text.pool, text.context_length = False, "last", 64
    config.model.text_projection = "linear_bias"
    config.model.image_projection = "none"
    config.optimizer = dict(
        name="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=1e-4, clip_norm=1.0,
        overrides=((r"bias$|scale$|logit_scale", dict(weight_decay=0.0)),),
    )  # fmt: skip
    config.schedule.warmup_steps = 10_000
    return config
