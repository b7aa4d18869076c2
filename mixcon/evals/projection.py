"""Two-dimensional maps of two sets of embeddings, for pictures.

Shapes: N images, M texts, D features.
"""

from typing import Any

import numpy as np

from mixcon.errors import InputError
from mixcon.evals.tiles import matrix


def project(
    image: Any,
    text: Any,
    *,
    method: str = "pca",
    center_modalities: bool = False,
    perplexity: float = 30.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of images and texts in one common plane.

    Args:
      image: [N, D].
      text: [M, D].
      method: "pca" (linear, exact, keeps the modality gap as it is) or "tsne" (neighbourhoods; some seconds per
        thousand points).
      center_modalities: Subtract each modality's mean first, so that the map shows meaning rather than the gap.
      perplexity: Of t-SNE; reduced for few points.
      seed: Of t-SNE.

    Returns:
      [N, 2] and [M, 2] float32. Axes are oriented so that the largest coordinate is positive: equal input gives an
      equal picture.

    Raises:
      InputError: Fewer than three points in all, one feature only, or an unknown method.

    Example:
      >>> a, b = project([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
      >>> a.shape, b.shape
      ((2, 2), (1, 2))

    Reference:
      van der Maaten and Hinton, "Visualizing Data using t-SNE", 2008.
    """
    image_ND = matrix("image", image)
    text_MD = matrix("text", text, columns=image_ND.shape[1])
    if center_modalities:
        image_ND, text_MD = image_ND - image_ND.mean(0), text_MD - text_MD.mean(0)
    both = np.concatenate([image_ND, text_MD])
    if len(both) < 3 or both.shape[1] < 2:
        raise InputError(f"A map needs at least three points and two features; got {both.shape}.")
    if method == "pca":
        centred = both - both.mean(0)
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        plane = centred @ axes[:2].T
    elif method == "tsne":
        from sklearn.manifold import TSNE  # here: scikit-learn takes a second to import
        from threadpoolctl import threadpool_limits

        perplexity = min(perplexity, (len(both) - 1) / 3)
        with threadpool_limits(limits=1):  # a few hundred points: threads would spend their time waiting for each other
            plane = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, metric="cosine").fit_transform(both)
    else:
        raise InputError(f"method must be 'pca' or 'tsne'; got {method!r}.")
    plane = plane * np.sign(plane[np.abs(plane).argmax(0), [0, 1]] + 1e-30)
    return plane[: len(image_ND)].astype(np.float32), plane[len(image_ND) :].astype(np.float32)
