"""What a dual encoder is judged by: retrieval, geometry, and pictures of both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from mixcon.errors import InputError
from mixcon.evals import artifacts
from mixcon.evals.gap import gap_report
from mixcon.evals.geometry import alignment, uniformity
from mixcon.evals.knn import knn
from mixcon.evals.probe import linear_probe
from mixcon.evals.projection import project
from mixcon.evals.retrieval import image_text_retrieval, ranks
from mixcon.evals.tiles import top_k
from mixcon.evals.zero_shot import accuracy, confusion_matrix, predict

Yielded = Iterator[tuple[str, float | Mapping[str, np.ndarray]]]
RESULTS = 5  # shown for each query
QUERIES = 8  # rows of a grid
MAPPED = 200  # pairs in an embedding map
THUMBNAILS = 40  # of them drawn as pictures
THUMBNAIL = 64  # pixels
NEGATIVES = 2_000  # sampled for the histogram


def retrieval_report(
    image_ND: np.ndarray,
    text_ND: np.ndarray,
    records: Sequence[Mapping],
    *,
    name: str,
    image_id: str = "",
    ks: Sequence[int] = (1, 5, 10),
) -> Yielded:
    """Retrieval in both directions with grids of examples, alignment, uniformity, the modality gap, similarities.

    An image with several captions, each in a record of its own, is one candidate, and one query to which any of its
    captions is right. So is any other caption of the same words: nothing can tell them apart.

    Args:
      image_ND, text_ND: unit rows; row i of one belongs to row i of the other.
      records: N of them, random access, with `image` (uint8 [h, w, 3]) and `text`.
      name: of the set, for titles.
      image_id: see `pictures`.
      ks: see `retrieval`.

    Yields:
      `(metric, float)` and `(artifact, arrays)`.
    """
    texts = np.asarray([record["text"] for record in records])
    _, words_N = np.unique(texts, return_inverse=True)
    shown_N = pictures(records, image_id)
    _, first_G = np.unique(shown_N, return_index=True)  # the row that stands for each image
    words_GP = _lists(shown_N, words_N)
    gallery_GD = image_ND[first_G]
    yield from image_text_retrieval(gallery_GD, text_ND, image_ids=words_GP, text_ids=words_N, ks=ks).items()
    yield "alignment", alignment(image_ND, text_ND)
    for side, rows in (("image", gallery_GD), ("text", text_ND)):
        yield f"uniformity/{side}", uniformity(rows)
    yield from ((f"gap/{key}", value) for key, value in gap_report(gallery_GD, text_ND[first_G]).items())

    asked, spoken = spaced(len(first_G), QUERIES), spaced(len(records), QUERIES)
    note = "{} candidates; queries spread evenly over the set."
    best = top_k(gallery_GD[asked], text_ND, min(RESULTS, len(text_ND)))[1]
    yield (
        "grid/image_to_text",
        artifacts.retrieval_grid(
            query_images=thumbnails(records, first_G[asked]),
            result_texts=texts[best],
            truth_texts=texts[first_G[asked]],
            result_correct=(words_GP[asked][:, None] == words_N[best][:, :, None]).any(-1),
            ranks=ranks(gallery_GD[asked], text_ND, relevant=(words_GP[asked], words_N)),
            title=f"Image to text, {name}",
            caption=note.format(len(text_ND)),
        ),
    )
    best = top_k(text_ND[spoken], gallery_GD, min(RESULTS, len(gallery_GD)))[1]
    found = thumbnails(records, first_G[best.ravel()])
    yield (
        "grid/text_to_image",
        artifacts.retrieval_grid(
            query_texts=texts[spoken],
            result_images=found.reshape(*best.shape, *found.shape[1:]),
            truth_images=thumbnails(records, spoken),
            result_correct=(words_N[spoken][:, None, None] == words_GP[best]).any(-1),
            ranks=ranks(text_ND[spoken], gallery_GD, relevant=(words_N[spoken], words_GP)),
            title=f"Text to image, {name}",
            caption=note.format(len(gallery_GD)),
        ),
    )
    left, right = np.random.default_rng(0).integers(0, len(records), (2, NEGATIVES))
    other = ~(words_GP[shown_N[left]] == words_N[right][:, None]).any(-1)
    yield (
        "similarities",
        artifacts.histogram(
            (image_ND * text_ND).sum(1),
            (image_ND[left] * text_ND[right]).sum(1)[other],
            title=f"Cosine of image and text, {name}",
            caption="Matching pairs against pairs drawn at random.",
        ),
    )


def pictures(records: Sequence[Mapping], image_id: str = "") -> np.ndarray:
    """Which picture each record shows, numbered as they first occur: [N] int.

    Args:
      records: N of them.
      image_id: a field, equal in records of the same picture. "" takes the name of the file, which `image_folder` and
        `mixcon data pack` leave (`file`, `key`), where the pixels are the same, too (shards may number alike); without
        it every record is a picture of its own.

    Raises:
      InputError: records without that field.

    Example:
      >>> pictures([{"id": 7}, {"id": 7}, {"id": 3}], "id").tolist()
      [0, 0, 1]
    """

    def identity(row: int, record: Mapping) -> object:
        if image_id:
            if image_id not in record:
                raise InputError(f"image_id: records have no field {image_id!r}; they have {', '.join(sorted(record))}")
            return record[image_id]
        file = record.get("file", record.get("key"))
        return row if file is None else (file, hashlib.blake2b(np.asarray(record["image"]).tobytes()).digest())

    numbers: dict[object, int] = {}
    return np.asarray([numbers.setdefault(identity(row, record), len(numbers)) for row, record in enumerate(records)])


def _lists(group_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
    """The values of each group, [G, P] padded with -1."""
    order = np.argsort(group_N, kind="stable")
    sizes_G = np.bincount(group_N)
    lists_GP = np.full((len(sizes_G), sizes_G.max()), -1)
    lists_GP[np.arange(sizes_G.max()) < sizes_G[:, None]] = value_N[order]
    return lists_GP


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
    image_ND: np.ndarray, weights_DC: np.ndarray, labels_N: Sequence[str], names: Sequence[str], *, name: str
) -> Yielded:
    """Zero-shot accuracy with its confusion matrix, over the images whose label is among the names.

    Args:
      image_ND: unit rows.
      weights_DC: a classifier from prompts, such as `zero_shot_weights` gives.
      labels_N: label of each image.
      names: C class names.
      name: of the task.
    """
    codes = {label: code for code, label in enumerate(names)}
    rows = [row for row, label in enumerate(labels_N) if label in codes]
    truth = np.asarray([codes[labels_N[row]] for row in rows])
    predicted = predict(image_ND[rows], weights_DC, k=min(5, len(names)))
    yield from accuracy(predicted, truth, classes=len(names)).items()
    counts = confusion_matrix(predicted[:, 0], truth, classes=len(names))
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
