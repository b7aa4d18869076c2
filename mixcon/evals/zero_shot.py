"""Zero-shot classification: class names put into sentences, embedded, and compared with images.

Shapes: N images, C classes, T templates, D features.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mixcon.errors import InputError
from mixcon.evals.tiles import labels_of, matrix, top_k

PLAIN = ("{}",)
PHOTO = ("a photo of a {}.",)
# The subset of CLIP's ImageNet prompts that its authors found to do almost as well as all eighty.
CLIP_SEVEN = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def prompts(names: Sequence[str], templates: Sequence[str] = PLAIN) -> list[str]:
    """Every name in every template, class by class: a list of C·T sentences, to be embedded and reshaped to [C, T, D].

    Raises:
      InputError: No names, no templates, or a template without exactly one `{}`.

    Example:
      >>> prompts(["cat", "dog"], ["a {}.", "the {}."])
      ['a cat.', 'the cat.', 'a dog.', 'the dog.']
    """
    if not names or not templates:
        raise InputError("prompts needs at least one class name and one template.")
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"A prompt template must hold {{}} exactly once, for the class name; got {template!r}.")
    # Not str.format: a class name or template may hold braces of its own.
    return [template.replace("{}", name) for name in names for template in templates]


def zero_shot_weights(text: Any) -> np.ndarray:
    """A classifier from embedded prompts: `w_c = unit(mean_t unit(e_ct))`, one column per class.

    Args:
      text: Raw or unit embeddings [C, T, D] of T prompts for each class.

    Returns:
      [D, C] float32, unit columns.

    Raises:
      InputError: Not [C, T, D]; non-finite or zero embeddings, or templates that cancel.

    Example:
      >>> zero_shot_weights([[[2.0, 0.0]], [[0.0, 3.0]]]).tolist()
      [[1.0, 0.0], [0.0, 1.0]]

    Reference:
      Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section 3.1.4.
    """
    text_CTD = np.asarray(jax.device_get(text))
    if text_CTD.ndim != 3 or 0 in text_CTD.shape:
        raise InputError(f"text must be the embeddings [classes, templates, D] of all prompts; shape {text_CTD.shape}.")
    text_CTD = text_CTD.astype(np.float64)
    lengths = np.linalg.norm(text_CTD, axis=-1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise InputError("text holds a zero or non-finite embedding, which has no direction.")
    mean_CD = np.mean(text_CTD / lengths, axis=1)
    norms = np.linalg.norm(mean_CD, axis=-1, keepdims=True)
    if (norms < 1e-8).any():
        raise InputError(f"The templates of class {int(norms.argmin())} cancel: their mean embedding is zero.")
    return (mean_CD / norms).T.astype(np.float32)


def predict(image: Any, weights: Any, *, k: int = 1) -> np.ndarray:
    """The k best classes of each image, best first; equal scores in order of class.

    Args:
      image: [N, D]; its length does not matter.
      weights: [D, C], from `zero_shot_weights` or any linear classifier without a bias.
      k: How many classes.

    Returns:
      [N, k] int32.

    Example:
      >>> predict([[1.0, 0.1]], [[1.0, 0.0], [0.0, 1.0]]).tolist()
      [[0]]
    """
    weights_DC = matrix("weights", weights)
    return top_k(matrix("image", image, columns=weights_DC.shape[0]), weights_DC.T, k)[1]


def accuracy(predicted: Any, labels: Any, *, classes: int) -> dict[str, float]:
    """Share of rows whose label is the first, or among the first five, of the predicted classes.

    Args:
      predicted: [N] or [N, k] classes, best first.
      labels: [N] integers in 0..classes-1.
      classes: C; chance is 1/C and min(5, C)/C.

    Returns:
      `top1`, `top1/chance`, and with k ≥ 5 and more than five classes `top5`, `top5/chance`; `mean_per_class` (of the
      classes that occur), shares.

    Raises:
      InputError: Shapes or labels that do not fit.

    Example:
      >>> accuracy([0, 1, 1, 1], [0, 1, 1, 0], classes=2)["top1"]
      0.75
    """
    ranked_Nk = np.asarray(jax.device_get(predicted))
    ranked_Nk = ranked_Nk[:, None] if ranked_Nk.ndim == 1 else ranked_Nk
    if ranked_Nk.ndim != 2 or 0 in ranked_Nk.shape:
        raise InputError(f"predicted must be classes [N] or [N, k], at least one; its shape is {ranked_Nk.shape}.")
    label_N = labels_of("labels", labels, len(ranked_Nk), classes)
    hit_Nk = ranked_Nk == label_N[:, None]
    counts_C = np.bincount(label_N, minlength=classes)
    right_C = np.bincount(label_N[hit_Nk[:, 0]], minlength=classes)
    seen_C = counts_C > 0
    result = {"top1": float(hit_Nk[:, 0].mean()), "top1/chance": 1 / classes}
    if ranked_Nk.shape[1] >= 5 and classes > 5:
        result |= {"top5": float(hit_Nk[:, :5].any(1).mean()), "top5/chance": 5 / classes}
    return result | {"mean_per_class": float((right_C[seen_C] / counts_C[seen_C]).mean())}


def confusion_matrix(predicted: Any, labels: Any, *, classes: int) -> np.ndarray:
    """Counts [C, C]: row = true class, column = predicted class.

    Example:
      >>> confusion_matrix([0, 1, 1], [0, 0, 1], classes=2).tolist()
      [[1, 1], [0, 1]]
    """
    count = np.shape(labels)[0]
    predicted_N = labels_of("predicted", predicted, count, classes)
    label_N = labels_of("labels", labels, count, classes)
    return np.bincount(label_N * classes + predicted_N, minlength=classes * classes).reshape(classes, classes)


def zero_shot(image: Any, text: Any, labels: Any) -> dict[str, float]:
    """Zero-shot accuracy of images against embedded prompts: `zero_shot_weights`, `predict`, `accuracy` in one.

    Args:
      image: [N, D].
      text: [C, T, D].
      labels: [N] integers in 0..C-1.

    Returns:
      See `accuracy`.

    Example:
      >>> zero_shot([[1.0, 0.0]], [[[1.0, 0.0]], [[0.0, 1.0]]], [0])["top1"]
      1.0

    Reference:
      Radford et al., 2021, section 3.1.
    """
    weights_DC = zero_shot_weights(text)
    classes = weights_DC.shape[1]
    return accuracy(predict(image, weights_DC, k=min(5, classes)), labels, classes=classes)
