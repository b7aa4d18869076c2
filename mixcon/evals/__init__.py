"""Evaluations of embeddings: pure functions of arrays, in tiles where pairs would not fit."""

from mixcon.evals.artifacts import Artifact, Evaluator, load_artifact, save_artifact
from mixcon.evals.calibration import (
    adaptive_ece,
    bins_of,
    brier,
    calibration_report,
    classwise_ece,
    ece,
    nll,
    reliability,
    temperature_scale,
)
from mixcon.evals.corruptions import corrupt
from mixcon.evals.gap import explained_variance, gap_report, linear_separability, modality_gap
from mixcon.evals.geodesic import negative_hardness, simat_score
from mixcon.evals.geometry import (
    alignment,
    cross_uniformity,
    neighbor_profile,
    relative_alignment,
    tolerance,
    uniformity,
)
from mixcon.evals.knn import knn, knn_predict
from mixcon.evals.multilingual import (
    mean_rank_variance,
    multilingual_report,
    ranks_of_scores,
    recall_at_k,
    reranked,
)
from mixcon.evals.penalty import (
    hard_negatives,
    infinite_temperature_limit,
    penalty_entropy,
    relative_penalty,
    similarity_gradient,
    zero_temperature_limit,
)
from mixcon.evals.probe import LinearProbe, fit_logistic, fit_ridge, fit_sgd, linear_probe, r2
from mixcon.evals.projection import project
from mixcon.evals.retrieval import chance_recall, combined_query, image_text_retrieval, ranks, retrieval
from mixcon.evals.robustness import fgsm, mean_corruption_error, occlude, pgd
from mixcon.evals.tiles import normalized, top_k
from mixcon.evals.zero_shot import accuracy, confusion_matrix, predict, prompts, zero_shot, zero_shot_weights

__all__ = [
    "Artifact",
    "Evaluator",
    "LinearProbe",
    "accuracy",
    "adaptive_ece",
    "alignment",
    "bins_of",
    "brier",
    "calibration_report",
    "chance_recall",
    "classwise_ece",
    "combined_query",
    "confusion_matrix",
    "corrupt",
    "cross_uniformity",
    "ece",
    "explained_variance",
    "fgsm",
    "fit_logistic",
    "fit_ridge",
    "fit_sgd",
    "gap_report",
    "hard_negatives",
    "image_text_retrieval",
    "infinite_temperature_limit",
    "knn",
    "knn_predict",
    "linear_probe",
    "linear_separability",
    "load_artifact",
    "mean_corruption_error",
    "mean_rank_variance",
    "modality_gap",
    "multilingual_report",
    "negative_hardness",
    "neighbor_profile",
    "nll",
    "normalized",
    "occlude",
    "penalty_entropy",
    "pgd",
    "predict",
    "project",
    "prompts",
    "r2",
    "ranks",
    "ranks_of_scores",
    "recall_at_k",
    "relative_alignment",
    "relative_penalty",
    "reliability",
    "reranked",
    "retrieval",
    "save_artifact",
    "simat_score",
    "similarity_gradient",
    "temperature_scale",
    "tolerance",
    "top_k",
    "uniformity",
    "zero_shot",
    "zero_shot_weights",
    "zero_temperature_limit",
]
