"""What a dual encoder is judged by: retrieval, geometry, and pictures of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from mixcon.evals import artifacts
from mixcon.evals.gap import gap_report
from mixcon.evals.geometry import alignment, uniformity
from mixcon.evals.knn import knn
from mixcon.evals.probe import linear_probe
from mixcon.evals.projection import project
from mixcon.evals.retrieval import image_text_retrieval, ranks
from mixcon.evals.tiles import top_k
from mixcon.evals.zero_shot import confusion_matrix, predict, zero_shot, zero_shot_weights

Yielded = Iterator[tuple[str, float | Mapping[str, np.ndarray]]]
RESULTS = 5  # shown for each query
QUERIES = 8  # rows of a grid
MAPPED = 200  # pairs in an embedding map
THUMBNAILS = 40  # of them drawn as pictures
THUMBNAIL = 64  # pixels
NEGATIVES = 2_000  # sampled for the histogram


def retrieval_report(image_ND: np.ndarray, text_ND: np.ndarray, records: Sequence[Mapping], *, name: str) -> Yielded:
    """Retrieval in both directions with grids of examples, alignment, uniformity, the modality gap, similarities.

    Args:
      image_ND, text_ND: unit rows; row i of one belongs to row i of the other.
      records: N of them, random access, with `image` (uint8 [h, w, 3]) and `text`. Equal texts are positives of
        each other: no caption can tell their images apart.
      name: of the set, for titles.

    Yields:
      `(metric, float)` and `(artifact, arrays)`.
    """
    texts = np.asarray([record["text"] for record in records])
    _, captions = np.unique(texts, return_inverse=True)
    yield from image_text_retrieval(image_ND, text_ND, image_ids=captions, text_ids=captions).items()
    yield "alignment", alignment(image_ND, text_ND)
    for side, rows in (("image", image_ND), ("text", text_ND)):
        yield f"uniformity/{side}", uniformity(rows)
    yield from ((f"gap/{key}", value) for key, value in gap_report(image_ND, text_ND).items())

    chosen = spaced(len(records), QUERIES)
    note = f"{len(records)} candidates; queries spread evenly over the set."
    for side, query, corpus in (("image_to_text", image_ND, text_ND), ("text_to_image", text_ND, image_ND)):
        best = top_k(query[chosen], corpus, min(RESULTS, len(corpus)))[1]
        images = {
            "query_images": thumbnails(records, chosen),
            "result_texts": texts[best],
            "truth_texts": texts[chosen],
        }
        if side == "text_to_image":
            found = thumbnails(records, best.ravel())
            images = {
                "query_texts": texts[chosen],
                "result_images": found.reshape(*best.shape, *found.shape[1:]),
                "truth_images": thumbnails(records, chosen),
            }
        yield (
            f"grid/{side}",
            artifacts.retrieval_grid(
                **images,
                result_correct=captions[best] == captions[chosen][:, None],
                ranks=ranks(query[chosen], corpus, relevant=(captions[chosen], captions)),
                title=f"{side.replace('_', ' ').capitalize()}, {name}",
                caption=note,
            ),
        )
    left, right = np.random.default_rng(0).integers(0, len(records), (2, NEGATIVES))
    other = captions[left] != captions[right]
    yield (
        "similarities",
        artifacts.histogram(
            (image_ND * text_ND).sum(1),
            (image_ND[left] * text_ND[right]).sum(1)[other],
            title=f"Cosine of image and text, {name}",
            caption="Matching pairs against pairs drawn at random.",
        ),
    )


def map_report(
    image_ND: np.ndarray, text_ND: np.ndarray, records: Sequence[Mapping], *, label: str, name: str
) -> Yielded:
    """One plane with images and texts, coloured by a field of the records."""
    rows = spaced(len(records), MAPPED)
    image_xy, text_xy = project(image_ND[rows], text_ND[rows], method="tsne", center_modalities=True)
    names, labels = np.unique([records[row][label] for row in rows], return_inverse=True)
    shown = spaced(len(rows), THUMBNAILS)
    yield (
        "map",
        artifacts.embedding_map(
            image_xy,
            text_xy,
            labels=labels,
            names=list(names),
            thumbnails=thumbnails(records, rows[shown]),
            thumbnail_index=shown,
            title=f"Images and texts in one plane, {name}",
            caption="t-SNE of both; each modality's mean is taken out first.",
        ),
    )


def zero_shot_report(
    image_ND: np.ndarray, prompts_CTD: np.ndarray, labels_N: Sequence[str], names: Sequence[str], *, name: str
) -> Yielded:
    """Zero-shot accuracy with its confusion matrix, over the images whose label is among the names.

    Args:
      image_ND: unit rows.
      prompts_CTD: embedded prompts, T for each class.
      labels_N: label of each image.
      names: C class names.
      name: of the task.
    """
    codes = {label: code for code, label in enumerate(names)}
    rows = [row for row, label in enumerate(labels_N) if label in codes]
    truth = np.asarray([codes[labels_N[row]] for row in rows])
    yield from zero_shot(image_ND[rows], prompts_CTD, truth).items()
    predicted = predict(image_ND[rows], zero_shot_weights(prompts_CTD))[:, 0]
    counts = confusion_matrix(predicted, truth, classes=len(names))
    yield "confusion", artifacts.confusion(counts, names, title=f"Zero-shot {name}", caption=f"{len(rows)} images.")


def probe_report(
    image_ND: np.ndarray, labels_N: Sequence[str], train_ND: np.ndarray, train_labels_N: Sequence[str]
) -> Yielded:
    """Nearest neighbours and a closed-form linear probe from known images to held-out ones, on classes of both."""
    names = sorted(set(labels_N) & set(train_labels_N))
    codes = {label: code for code, label in enumerate(names)}
    here, there = ([row for row, label in enumerate(labels) if label in codes] for labels in (labels_N, train_labels_N))
    if len(names) < 2:
        return
    truth, known = np.asarray([codes[labels_N[r]] for r in here]), np.asarray([codes[train_labels_N[r]] for r in there])
    sets = (train_ND[there], known, image_ND[here], truth)
    yield from ((f"knn/{key}", value) for key, value in knn(*sets).items())
    yield from ((f"probe/{key}", value) for key, value in linear_probe(*sets, method="ridge").items())


def thumbnails(records: Sequence[Mapping], rows: np.ndarray) -> np.ndarray:
    """uint8 [len(rows), 64, 64, 3] of the records' images."""
    side = (THUMBNAIL, THUMBNAIL)
    return np.stack([np.asarray(Image.fromarray(np.asarray(records[int(row)]["image"])).resize(side)) for row in rows])


def spaced(total: int, wanted: int) -> np.ndarray:
    """`wanted` indices spread evenly over `range(total)`: the same at every evaluation."""
    return np.unique(np.linspace(0, total - 1, min(wanted, total)).astype(int))
