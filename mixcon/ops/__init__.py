"""Exact contrastive numerics in linear memory: tiled on one device, or around a ring of them.

    from mixcon import ops
    from mixcon.ops import pairs

    ce = ops.contrastive_cross_entropy(q, k, scale=10.0, positives=pairs.same_label(y), symmetric=True)

`pairs` describes which pairs are positives or belong to a denominator; `contrastive_cross_entropy` and its relatives
are functions of `pair_statistics`, which is one call of the primitive, `pair_reduce`.
"""

from mixcon.ops import pairs
from mixcon.ops.cross_entropy import (
    Bank,
    CrossEntropy,
    Direction,
    contrastive_cross_entropy,
    per_positive_cross_entropy,
)
from mixcon.ops.engine import pair_reduce
from mixcon.ops.pairs import Block, Pairs
from mixcon.ops.reference import Impl, Reduce, similarity
from mixcon.ops.selection import Kth, kth_largest
from mixcon.ops.sinkhorn import sinkhorn_knopp, sinkhorn_pairs
from mixcon.ops.statistics import Statistics, log_weighted, pair_statistics
from mixcon.ops.sums import gaussian_potential, pairwise_sigmoid
from mixcon.ops.topk import TopK, best_keys, top_k

__all__ = [
    "Bank",
    "Block",
    "CrossEntropy",
    "Direction",
    "Impl",
    "Kth",
    "Pairs",
    "Reduce",
    "Statistics",
    "TopK",
    "best_keys",
    "contrastive_cross_entropy",
    "gaussian_potential",
    "kth_largest",
    "log_weighted",
    "pair_reduce",
    "pair_statistics",
    "pairs",
    "pairwise_sigmoid",
    "per_positive_cross_entropy",
    "similarity",
    "sinkhorn_knopp",
    "sinkhorn_pairs",
    "top_k",
]
