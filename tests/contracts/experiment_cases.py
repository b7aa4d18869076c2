"""Every experiment, cut down until a test can train it: a new one joins by one line.

`<config>:<argument>` -> overrides (what follows `--config.`) that make a run of six steps cheap.
"""

CASES = {
    "mixup_classification:small": (  # looks at the network
        "mixer.name=snapmix",
        "batch_size=8",
        "model.widths=(4, 8)",
        "model.strides=(2, 2)",
        "ema=0.9",
        "robustness={}",
    ),
    "mixup_classification:small_vit": (  # labels that follow the attention
        "mixer.name=transmix",
        "batch_size=8",
        "model.width=12",
        "model.depth=1",
        "schedule.warmup_steps=2",
        "robustness={}",
    ),
    "adautomix:small": (
        "data.train.train_size=40",
        "data.test.train_size=1700",
        "batch_size=10",
        "model.backbone.widths=(4, 4)",
        "model.backbone.strides=(2, 1)",
        "tap=stage1",
        "methods.adautomix.rule.random_count=True",
    ),
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
    "m3col:small": (
        """data.train={'name': 'mixcon.data.multimodal.feature_groups', 'side': 'train'}""",
        """data.evals.test={'name': 'mixcon.data.multimodal.feature_groups', 'side': 'test'}""",
        "batch_size=64",
        *(
            f"encoders.{name}.{key}"
            for name in ("mrna", "methylation", "mirna")
            for key in ("in_features=10", "hidden=8")
        ),
        "contrast.mix_at=input",
        "contrast.partner=mixed",
    ),
    "m3col:n24news": (
        """data.train={'name': 'mixcon.data.multimodal.emoji_groups', 'side': 'train'}""",
        """data.evals={'test': {'name': 'mixcon.data.multimodal.emoji_groups', 'side': 'test'}}""",
        "batch_size=16",
        "gradient.parts=2",
        "tokenizer={'path': '', 'vocab_size': 300}",
        "encoders.image={'name': 'vit', 'width': 32, 'depth': 1, 'patch': 16, 'image_size': 64}",
        "encoders.text={'name': 'text_transformer', 'width': 32, 'depth': 1, 'context_length': 12, 'causal': False, "
        "'pool': 'cls'}",
        "heads.num_classes=10",
        "plateau.every=2",
        "contrast.form=soft_clip",
    ),
    "cmixup:small": (),
    "cmixup:crime": ("mixer.partner=representation",),
    "cmixup:sinusoid": ("data.test.num_tasks=20", "gradient.inner_steps=1"),
    "mochi:small": (  # the warm-up ends within the run, the queue goes round
        "batch_size=32",
        "objective.size=128",
        "mixer.num_hard=16",
        "mixer.num_mix=4",
        "mixer.num_query_mix=4",
        "mixer.warmup_epochs=0.1",
        "model.backbone.widths=(64, 16, 16)",
        "data.evals={}",
    ),
    "meow:small": (
        "graph.nodes=400",
        "views.neighbors=(20,30)",
        "views.ties=random",
        "model.width=8",
        "model.projection=8",
        "clusters=(5,)",
        "kmeans={'iters': 3, 'restarts': 2}",
        "probe={'learning_rate': 0.03, 'steps': 5, 'repeats': 2}",
        "probe_labels=(20,)",
        "cluster_runs=1",
    ),
    "isogclr:small": (),
    "isogclr:cifar10": (
        """data.train={'name': 'mixcon.data.emoji.Emoji', 'split': 'concept', 'side': 'train'}""",
        "data.evals={}",
        "batch_size=8",
        "schedule.warmup_steps=2",
        "augment=({'name': 'mixcon.data.augment.horizontal_flip'},)",
        "towers.image.backbone={'name': 'relu_mlp', 'widths': (12288, 8)}",
        "towers.image.embed_dim=8",
        "towers.image.hidden=8",
    ),
    "isogclr:cc3m": (
        """data.train={'name': 'mixcon.data.emoji.Emoji', 'split': 'both', 'side': 'train', 'languages': ('en',)}""",
        "data.evals={}",
        "batch_size=8",
        "schedule.warmup_steps=2",
        "tokenizer={'path': '', 'vocab_size': 300}",
        "model.embed_dim=16",
        "model.dtype=float32",
        "model.image={'name': 'vit', 'width': 32, 'depth': 1, 'patch': 16, 'image_size': 64}",
        "model.text.width=32",
        "model.text.heads=2",
        "model.text.depth=1",
        "model.text.context_length=12",
        "model.scan_layers=False",
    ),
}

# Further forms of a paper whose first form is above: they take part in the slow tests only.
FURTHER = (
    "mixup_classification:small_vit",
    "cmixup:crime",
    "cmixup:sinusoid",
    "isogclr:cifar10",
    "isogclr:cc3m",
    "m3col:n24news",
)
