"""Mistakes are refused before tracing, in words that name the argument and the way out."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from mixcon import mixers as m
from mixcon.errors import InputError

KEY = jax.random.key(0)
X = jnp.zeros((4, 16, 16, 3))
ODD = jnp.zeros((3, 16, 16, 3))
PLAN = m.make_plan(jnp.array([1, 0, 3, 2]), 0.5)
REGION = m.make_plan(jnp.array([1, 0, 3, 2]), 0.5, jnp.ones((1, 16, 16, 1)))
LOGITS = jnp.zeros((4, 5))
MAPS = jnp.ones((4, 16))

BAD = {
    "weight above one": (partial(m.mixup, KEY, X, weight=1.5), "weight"),
    "weight below zero": (partial(m.make_plan, jnp.array([1, 0]), -0.1), "weight"),
    "mask above one": (partial(m.make_plan, jnp.array([1, 0]), 0.5, jnp.full((1, 2, 2, 1), 2.0)), "mask"),
    "alpha zero": (partial(m.cutmix, KEY, X, alpha=0.0), "alpha"),
    "alpha zero in an array": (partial(m.mixup, KEY, X, alpha=jnp.float32(0.0)), "alpha"),
    "alpha not a number": (partial(m.mixup, KEY, X, alpha=float("nan")), "alpha"),
    "class out of range": (partial(m.mix_targets, PLAN, jnp.arange(4), num_classes=3), "num_classes"),
    "alpha negative": (partial(m.sample_weight, KEY, 4, alpha=-1.0), "alpha"),
    "bounds": (partial(m.sample_weight, KEY, 4, low=0.7, high=0.3), "low"),
    "odd batch per pair": (partial(m.mixup, KEY, ODD, per="pair"), "even"),
    "odd batch smmix": (partial(m.smmix, KEY, ODD, attention=jnp.ones((3, 16))), "even"),
    "explicit partner per pair": (partial(m.mixup, KEY, X, per="pair", partner=jnp.arange(4)), "pair"),
    "unknown per": (partial(m.mixup, KEY, X, per="sample"), "per"),
    "unknown partner": (partial(m.mixup, KEY, X, partner="shuffle"), "partner"),
    "partner of another length": (partial(m.mixup, KEY, X, partner=jnp.arange(3)), "partner"),
    "one example": (partial(m.mixup, KEY, X[:1]), "two examples"),
    "not images": (partial(m.cutmix, KEY, jnp.zeros((4, 8))), "images"),
    "smoothmix odd size": (partial(m.smoothmix, KEY, jnp.zeros((4, 15, 15, 3))), "even"),
    "smoothmix not square": (partial(m.smoothmix, KEY, jnp.zeros((4, 16, 8, 3))), "square"),
    "too many holes": (partial(m.gridmix, KEY, X, holes=(2, 6)), "holes"),
    "tiny miniature": (partial(m.resizemix, KEY, X, scope=(0.1, 0.8)), "scope"),
    "patch does not divide": (partial(m.token_cutmix, KEY, X, patch=5), "patch"),
    "grid does not divide": (partial(m.tokenmix, KEY, X, side=14), "side"),
    "blocks do not divide": (partial(m.puzzlemix, KEY, jnp.zeros((4, 12, 12, 3)), saliency=jnp.ones((4, 12, 12))),
    "block"),
    "blocks without whole patches": (partial(m.puzzlemix, KEY, jnp.zeros((4, 224, 224, 3)),
                                             saliency=jnp.ones((4, 224, 224)), block_nums=(16,)), "block_nums"),
    "block count": (partial(m.puzzlemix, KEY, X, saliency=jnp.ones((4, 16, 16)), block_nums=(3,)), "block_nums"),
    "saliency shape": (partial(m.saliencymix, KEY, X, saliency=jnp.ones((4, 8, 8))), "saliency"),
    "attention with a class token": (partial(m.transmix_relabel, REGION, jnp.ones((4, 17))), "attention"),
    "relabel without a mask": (partial(m.transmix_relabel, PLAN, MAPS), "mask"),
    "smmix grid": (partial(m.smmix, KEY, X, attention=jnp.ones((4, 49))), "divide"),
    "class indices alone": (partial(m.mix_targets, PLAN, jnp.arange(4)), "num_classes"),
    "smoothing of regression": (partial(m.mix_targets, PLAN, jnp.ones(4), smoothing=0.1), "smoothing"),
    "multi-hot into softmax": (partial(m.soft_cross_entropy, LOGITS, jnp.ones((4, 5), jnp.int32)), "multi-label"),
    "multi-label into softmax": (partial(m.soft_cross_entropy, LOGITS, jnp.ones((4, 5))), "binary_cross_entropy"),
    "mask on other places": (partial(m.mix, REGION, jnp.zeros((4, 8, 8, 3))), "mixers.at"),
    "mask on tokens": (partial(m.mix, REGION, jnp.zeros((4, 256, 3))), "mixers.at"),
    "grid of at": (partial(m.at, REGION, (5, 5)), "divide"),
    "plan for another batch": (partial(m.mix, PLAN, ODD), "plan for 4"),
    "partner outside the batch": (partial(m.mix, m.make_plan(jnp.array([1, 4, 3, 2]), 0.5), X), "partner"),
    "integer images": (partial(m.mix, REGION, X.astype(jnp.uint8)), "float"),
    "integers without a mask": (partial(m.mix, PLAN, jnp.zeros((4, 7), jnp.int32)), "mask"),
    "pairs of another batch": (partial(m.mix_pairs, PLAN, jnp.eye(3)), "pairs"),
    "side of pairs": (partial(m.mix_pairs, PLAN, jnp.eye(4), "left"), "side"),
    "bandwidth": (partial(m.cmixup, KEY, X, labels=jnp.ones(4), bandwidth=0.0), "bandwidth"),
    "labels not finite": (partial(m.cmixup, KEY, X, labels=jnp.array([0, 1, jnp.nan, 2]), bandwidth=1.0), "finite"),
    "no labels in the bank": (partial(m.label_kernel_logits, jnp.ones(4), jnp.ones(0), bandwidth=1.0), "empty"),
    "batch over bank": (partial(m.label_pool_partner, KEY, jnp.arange(4), jnp.ones(3), bandwidth=1.0), "bank"),
    "k of nearest": (partial(m.nearest_partner, KEY, MAPS, k=4), "k must"),
    "probabilities of switch": (partial(m.switch, KEY, X, [m.mixup, m.cutmix], (0.5, 0.6)), "probs"),
    "switch of a moving own": (
        lambda: m.switch(KEY, X, [m.mixup, partial(m.puzzlemix, saliency=jnp.ones((4, 16, 16)), block_nums=(2,))]),
        "switch",
    ),
    "prob": (partial(m.maybe, KEY, PLAN, 1.5), "prob"),
    "compose of a moved plan": (partial(m.compose, PLAN, REGION._replace(warp=(None, None))), "compose"),
    "hard negatives": (partial(m.mochi_draws, KEY, 4, num_hard=1, num_mix=2, num_query_mix=0), "replace"),
    "more hard negatives than rows": (partial(m.hardest, MAPS, MAPS, 5), "num_hard"),
    "window": (partial(m.anchor_exclusive, jnp.ones(4), 0.0), "window"),
    "policy logits": (partial(m.interval_weight, jnp.ones((4, 2)), jnp.ones(4)), "logits"),
    "two classes decoupled": (partial(m.decoupled_mixup, LOGITS[:, :2], jnp.arange(4) % 2, jnp.arange(4) % 2, 0.5),
    "3 classes"),
    "eta": (partial(m.decoupled_mixup, LOGITS, jnp.arange(4), jnp.arange(4), 0.5, eta=-1.0), "eta"),
    "rescale threshold": (partial(m.rescale_weight, jnp.ones(2), threshold=0.0), "threshold"),
    "temperature": (partial(m.mixed_info_nce, MAPS, MAPS, MAPS, PLAN, temperature=0.0), "temperature"),
    "float image for the detector": (partial(m.fine_grained_saliency, X), "uint8"),
    "augmix operation": (partial(m.augmix, KEY, X, ops=("blur",)), "blur"),
    "span of a picture": (partial(m.spanmix, KEY, X), "sequences"),
    "ssmix saliency": (partial(m.ssmix, KEY, jnp.zeros((4, 7), jnp.int32), saliency=MAPS), "saliency"),
    "ssmix share": (partial(m.ssmix, KEY, MAPS, saliency=MAPS, share=0.0), "share"),
    "mergemix attention": (partial(m.mergemix, KEY, X, attention=jnp.ones((4, 17))), "attention"),
    "smmix_loss without a mask": (partial(m.smmix_loss, PLAN, LOGITS, jnp.zeros((4, 16, 5)), LOGITS, jnp.arange(4)),
    "mask"),
    "slerp weight": (partial(m.slerp, MAPS, MAPS, 1.1), "weight"),
    "slerp of other lengths": (partial(m.slerp, 2 * jnp.eye(2), jnp.eye(2), 0.5), "unit length"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refused_in_words(name):
    call, word = BAD[name]
    with pytest.raises(InputError, match=word):
        call()


def test_shapes_are_refused_before_compilation():
    """The same mistakes are caught while tracing: nothing has been compiled yet."""
    with pytest.raises(InputError, match=r"mixers\.at"):
        jax.eval_shape(lambda x: m.mix(REGION, x), jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32))
    with pytest.raises(InputError, match="multi-label"):
        jax.eval_shape(m.soft_cross_entropy, LOGITS, jax.ShapeDtypeStruct((4, 5), jnp.int32))
