"""Losses over representations, thin on top of `mixcon.ops`: functions, and `Objective(init, apply)` pairs.

Every one takes features and targets of the whole batch, and gives the same value and gradient on any mesh:

    >>> from mixcon.objectives import clip
    >>> loss = clip(image, text, logit_scale=jnp.exp(log_scale))
"""

from mixcon.objectives.batch import l2_normalize
from mixcon.objectives.clip import clip
from mixcon.objectives.cwcl import cwcl
from mixcon.objectives.fastclip import fastclip
from mixcon.objectives.feature_bank import FeatureBank, feature_bank
from mixcon.objectives.gap import clip_alignment_uniformity, cyclic
from mixcon.objectives.geodesic import geodesic_mixup, m2mix, m3mix, sample_lams, vlmix
from mixcon.objectives.hard_pairs import (
    Drawn,
    draw_matches,
    draw_matches_in_blocks,
    hard_negative_weights,
    positive_language_weights,
)
from mixcon.objectives.hardness import hard_info_nce, hard_simple_contrastive, simple_contrastive
from mixcon.objectives.hypersphere import alignment, uniformity
from mixcon.objectives.instance import decoupled, info_nce, nt_xent
from mixcon.objectives.isogclr import isogclr, isogclr_clip, sogclr, sogclr_clip
from mixcon.objectives.matching import masked_tokens, pair_matching
from mixcon.objectives.memory import Queue, cross_batch_memory, empty_queue, push, random_queue
from mixcon.objectives.metric import circle, contrastive, multi_similarity
from mixcon.objectives.mixed_clip import mixed_clip
from mixcon.objectives.momentum import Mixing, mochi, momentum_contrast
from mixcon.objectives.multimodal import m3co, multimodal_pairs, soft_clip
from mixcon.objectives.multiview import (
    PairedViews,
    barlip,
    multiview_clip,
    negative_cosine,
    siamlip,
    swalip,
    swapped_assignment,
)
from mixcon.objectives.negatives import debiased, hard_negative_reweighted
from mixcon.objectives.objective import Objective
from mixcon.objectives.one_to_k import one_to_k, soft_id_info_nce
from mixcon.objectives.proxies import proxy_anchor, proxy_nca
from mixcon.objectives.ranking import multiple_negatives_ranking, n_pairs
from mixcon.objectives.redundancy import barlow_twins, vicreg
from mixcon.objectives.siglip import siglip
from mixcon.objectives.supervised import multi_positive, supcon
from mixcon.objectives.triplet import triplet
from mixcon.objectives.weighted import (
    PairMlp,
    adaptive_weighted_info_nce,
    cluster_weighted_info_nce,
    pair_mlp,
    prototype_nce,
    weighted_info_nce,
)

__all__ = [
    "LINEAR_MEMORY",
    "Drawn",
    "FeatureBank",
    "Mixing",
    "Objective",
    "PairMlp",
    "PairedViews",
    "Queue",
    "adaptive_weighted_info_nce",
    "alignment",
    "barlip",
    "barlow_twins",
    "circle",
    "clip",
    "clip_alignment_uniformity",
    "cluster_weighted_info_nce",
    "contrastive",
    "cross_batch_memory",
    "cwcl",
    "cyclic",
    "debiased",
    "decoupled",
    "draw_matches",
    "draw_matches_in_blocks",
    "empty_queue",
    "fastclip",
    "feature_bank",
    "geodesic_mixup",
    "hard_info_nce",
    "hard_negative_reweighted",
    "hard_negative_weights",
    "hard_simple_contrastive",
    "info_nce",
    "isogclr",
    "isogclr_clip",
    "l2_normalize",
    "m2mix",
    "m3co",
    "m3mix",
    "masked_tokens",
    "mixed_clip",
    "mochi",
    "momentum_contrast",
    "multi_positive",
    "multi_similarity",
    "multimodal_pairs",
    "multiple_negatives_ranking",
    "multiview_clip",
    "n_pairs",
    "negative_cosine",
    "nt_xent",
    "one_to_k",
    "pair_matching",
    "pair_mlp",
    "positive_language_weights",
    "prototype_nce",
    "proxy_anchor",
    "proxy_nca",
    "push",
    "random_queue",
    "sample_lams",
    "siamlip",
    "siglip",
    "simple_contrastive",
    "soft_clip",
    "soft_id_info_nce",
    "sogclr",
    "sogclr_clip",
    "supcon",
    "swalip",
    "swapped_assignment",
    "triplet",
    "uniformity",
    "vicreg",
    "vlmix",
    "weighted_info_nce",
]

LINEAR_MEMORY: dict[str, str] = {
    "adaptive_weighted_info_nce": "through the engine",
    "alignment": "always",
    "barlip": "always: its matrix is features × features",
    "barlow_twins": "always: its matrix is features × features",
    "circle": "through the engine",
    "clip": "through the engine",
    "clip_alignment_uniformity": "through the engine",
    "cluster_weighted_info_nce": "through the engine",
    "contrastive": "through the engine",
    "cross_batch_memory": "through the engine, beside the queue itself",
    "cwcl": "through the engine, unless weights is a dense matrix; its affine weights need no pair",
    "cyclic": "always: its matrix is features × features",
    "debiased": "through the engine",
    "decoupled": "through the engine",
    "fastclip": "through the engine, beside the memory of every example",
    "feature_bank": "through the engine, beside the memory of every example",
    "hard_info_nce": "through the engine, whatever number of negatives is kept",
    "hard_negative_reweighted": "through the engine",
    "hard_simple_contrastive": "as hard_info_nce",
    "info_nce": "through the engine",
    "m2mix": "through the engine",
    "m3co": "through the engine",
    "masked_tokens": "always: no pairs of examples",
    "m3mix": "through the engine",
    "mochi": "through the engine, beside the queue; mixtures as numbers, not vectors",
    "momentum_contrast": "as mochi",
    "isogclr": "through the engine, beside the memory of every example",
    "isogclr_clip": "through the engine, beside the memory of every example",
    "multi_positive": "through the engine, unless positives is a dense matrix",
    "multi_similarity": "through the engine",
    "multiple_negatives_ranking": "through the engine",
    "multiview_clip": "through the engine",
    "n_pairs": "through the engine",
    "negative_cosine": "always",
    "nt_xent": "through the engine",
    "one_to_k": "through the engine",
    "pair_matching": "always: so many pairs an example",
    "prototype_nce": "always: its matrix is samples × prototypes",
    "proxy_anchor": "always: its matrix is samples × classes",
    "proxy_nca": "always: its matrix is samples × classes",
    "simple_contrastive": "always: the sum over negatives is a product with their sum",
    "siamlip": "always",
    "siglip": "through the engine",
    "soft_clip": "through the engine",
    "soft_id_info_nce": "through the engine",
    "sogclr": "through the engine, beside the memory of every example",
    "sogclr_clip": "through the engine, beside the memory of every example",
    "supcon": "through the engine",
    "swalip": "through the engine, its targets too",
    "swapped_assignment": "always: its matrices are samples × prototypes",
    "triplet": "through the engine for mining='hard'; 'semi_hard' and 'all' are quadratic",
    "uniformity": "through the engine",
    "vicreg": "always: its matrix is features × features",
    "vlmix": "through the engine",
    "weighted_info_nce": "through the engine, unless weights is a dense matrix",
}
"""Which objectives claim memory linear in the batch ("through the engine": when `impl` is not "dense"), and why."""
