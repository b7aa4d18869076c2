"""CLIP: symmetric softmax contrast of images and texts (Radford et al. 2021).

`b32`, `b16`, `l14`: as published, on ArrayRecord shards. `small`: emoji, minutes on two CPU cores.
"""

from typing import Any

import ml_collections

# name: vision width, depth, patch; embedding; text width, heads (section 2.5 of the paper's specification)
PUBLISHED = {
    "b32": dict(size="B/32", embed_dim=512, text_width=512, text_heads=8, peak=5e-4),
    "b16": dict(size="B/16", embed_dim=512, text_width=512, text_heads=8, peak=5e-4),
    "l14": dict(size="L/14", embed_dim=768, text_width=768, text_heads=12, peak=4e-4),
}
WEIGHTS = ("init_from", "init_parts", "init_options", "text_init_from")  # keys that say what a run starts from


def get_config(arg: str = "b32") -> ml_collections.ConfigDict:
    """The config of a variant: `b32`, `b16`, `l14` or `small`."""
    if arg != "small" and arg not in PUBLISHED:
        raise ValueError(f"configs/clip.py has no variant {arg!r}; it has small, {', '.join(PUBLISHED)}")
    config = small() if arg == "small" else published(**PUBLISHED[arg])
    config.objective = dict(name="mixcon.objectives.clip")  # how a batch of pairs is scored
    config.model.logit_scale = 1 / 0.07  # initial multiplier of the cosines
    return config


def base() -> ml_collections.ConfigDict:
    """What both sizes share; every key that the experiment and the loop read."""
    config = ml_collections.ConfigDict()
    config.experiment = "experiments.clip"  # module with build(config, workdir)
    config.seed = 0  # of initialisation, data order, augmentation and dropout
    config.init_from = ""  # folder or file of pretrained weights: CLIP, SigLIP or a plain ViT, safetensors
    config.init_parts = ()  # which of image, text, image_projection, text_projection, logit_scale; () takes all of it
    config.init_options = {}  # what its files do not say: activation, image_heads, text_heads, eos_id
    config.text_init_from = ""  # folder of a BERT as the text tower, where model.text.name is "bert"
    config.ema = 0.0  # decay of the parameter average; 0 keeps none
    config.nonfinite = "stop"  # "skip" leaves out steps whose loss is not finite, and counts them
    config.log_every = 10  # steps between lines of metrics
    config.mesh = dict(data=-1, model=1)  # devices along each axis; -1 takes the rest
    config.sharding = dict(
        fsdp=False,  # split large parameters over the data axis, too
        rules=(  # regex on a parameter path -> axes of its last dimensions
            (r"(qkv|fc1)/kernel$", (None, "model")),
            (r"(out|fc2)/kernel$", ("model", None)),
        ),
    )
    config.gradient = dict(name="mixcon.train.gradients.standard")  # or accumulate, grad_cache (with parts=)
    config.zero_shot = ()  # tasks: on which held-out set, which label, and the prompts of each class
    config.image_id = ""  # field that is equal in records of one picture; "" goes by the file's name (docs/data.md)
    config.probes = ()  # on which held-out set, which label, and the set that is known
    config.logit_scale_range = (1.0, 100.0)  # clamped after each update; () does not clamp
    return config


def in_memory(name: str, **arguments: Any) -> dict:
    """Data of which `name(side="train", ...)` is learned and `name(side="test", ...)` held out, all of it at hand."""
    train, test = (dict(name=name, **arguments, side=side) for side in ("train", "test"))
    return dict(train=train, evals=dict(test=test), max_bad_share=0.0, threads=1, prefetch=2)


def published(*, size: str, embed_dim: int, text_width: int, text_heads: int, peak: float) -> ml_collections.ConfigDict:
    """Full size: 32,768 pairs a batch, 32 epochs of 400 million."""
    config = base()
    config.batch_size = 32_768  # global
    config.steps = 390_625  # 32 epochs of 400 M pairs
    config.eval_every = 5_000  # in steps, and at the end; 0 only at the end, -1 never
    config.checkpoint = dict(every=1_000, keep=3, keep_every=50_000)  # in steps; keep_every=0 keeps only the newest
    pairs = "mixcon.data.sources.array_record"  # what `mixcon data pack` writes
    config.data = dict(
        train=dict(name=pairs, pattern="image_text/train-*.arrayrecord", size=(224, 224)),
        evals=dict(heldout=dict(name=pairs, pattern="image_text/val-*.arrayrecord", size=(224, 224))),
        max_bad_share=0.01,  # unreadable images and empty captions are skipped and counted up to this share
        threads=16,  # that read ahead
        prefetch=4,  # batches
    )
    config.tokenizer = dict(path="clip_tokenizer.json", vocab_size=49_408)  # a tokenizer.json; "" trains one
    config.keyword_share = 0.0  # share of captions replaced by the record's keywords
    config.image_mean = (0.48145466, 0.4578275, 0.40821073)
    config.image_std = (0.26862954, 0.26130258, 0.27577711)
    config.augment = (dict(name="mixcon.data.augment.random_resized_crop", scale=(0.9, 1.0), ratio=(1.0, 1.0)),)
    config.model = dict(
        name="dual_encoder",
        embed_dim=embed_dim,
        dtype="bfloat16",  # of the computation; parameters stay float32
        remat=True,
        scan_layers=True,
        image=dict(
            name="vit",
            size=size,
            image_size=224,
            pool="cls",
            pre_norm=True,
            patch_bias=False,
            activation="quick_gelu",
            norm_eps=1e-5,
        ),
        text=dict(
            name="text_transformer",
            width=text_width,
            heads=text_heads,
            depth=12,
            context_length=77,
            causal=True,
            pool="eos",
            activation="quick_gelu",
            norm_eps=1e-5,
        ),
    )
    config.schedule = dict(peak=peak, warmup_steps=2_000, decay="cosine", end=0.0)
    config.optimizer = dict(
        name="adamw", b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2,
        overrides=((r"bias$|scale$|logit_scale", dict(weight_decay=0.0)),),
    )  # fmt: skip
    return config


def small() -> ml_collections.ConfigDict:
    """Emoji and their English names: a few minutes on two CPU cores."""
    config = base()
    config.batch_size = 128
    config.steps = 300
    config.eval_every = 150
    config.checkpoint = dict(every=50, keep=3, keep_every=0)
    emoji = "mixcon.data.emoji.Emoji"
    config.data = dict(
        train=dict(name=emoji, split="both", side="train", languages=("en",)),
        evals=dict(
            composition=dict(name=emoji, split="composition", side="test"),
            concept=dict(name=emoji, split="concept", side="test"),
        ),
        max_bad_share=0.01,
        threads=1,
        prefetch=2,
    )
    tones = ("light", "medium-light", "medium", "medium-dark", "dark")
    groups = {  # three words for each group of Unicode's emoji list
        "Smileys & Emotion": ("grinning face", "cat face", "heart"),
        "People & Body": ("person", "woman", "hand"),
        "Animals & Nature": ("animal", "bird", "flower"),
        "Food & Drink": ("food", "fruit", "drink"),
        "Travel & Places": ("building", "car", "clock"),
        "Activities": ("sport", "ball", "game"),
        "Objects": ("tool", "clothing", "musical instrument"),
        "Symbols": ("button", "arrow", "sign"),
        "Flags": ("flag", "flag: country", "flag: island"),
    }
    config.zero_shot = (
        dict(on="composition", label="tone", prompts=tuple(
            (tone, tuple(f"{who}: {tone} skin tone" for who in ("person", "woman", "man", "hand"))) for tone in tones
        )),
        dict(on="concept", label="group", prompts=tuple(groups.items())),
    )  # fmt: skip
    config.probes = (dict(on="concept", label="group", train=dict(name=emoji, split="concept", side="train")),)
    config.tokenizer = dict(path="", vocab_size=1_000)
    config.keyword_share = 0.3
    config.image_mean = (0.5, 0.5, 0.5)
    config.image_std = (0.5, 0.5, 0.5)
    # No flip: mirrored flags and arrows mean something else. No jitter: skin tones are colours.
    config.augment = (dict(name="mixcon.data.augment.random_resized_crop", scale=(0.6, 1.0), ratio=(0.8, 1.25)),)
    config.model = dict(
        name="dual_encoder",
        embed_dim=128,
        dtype="float32",
        remat=False,
        scan_layers=False,
        image=dict(name="vit", width=128, depth=4, heads=2, patch=8, image_size=64, pool="mean"),
        text=dict(name="text_transformer", width=128, depth=2, heads=2, context_length=24, causal=False, pool="mean"),
    )
    config.schedule = dict(peak=2e-3, warmup_steps=30, decay="cosine", end=0.0)
    config.optimizer = dict(
        name="adamw", b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1, clip_norm=1.0,
        overrides=((r"bias$|scale$|logit_scale|embed$", dict(weight_decay=0.0)),),
    )  # fmt: skip
    return config
