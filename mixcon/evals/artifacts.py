"""What an evaluation leaves to be looked at: named arrays in `<workdir>/evals/<step>/<name>.npz`.

An artifact is a mapping of arrays with a `kind`, which tells the report how to draw it. The functions below build the
known kinds; any other mapping with a `kind` of its own is stored just as well, and the report lists it.
Nothing is pickled: text is a unicode array, and files are read with `allow_pickle=False`.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mixcon.errors import InputError

Artifact = Mapping[str, np.ndarray]
Evaluator = Callable[..., Iterator[tuple[str, float | Artifact]]]
"""Yields (name, value): a float is a metric and is logged, a mapping of arrays is an artifact and is saved."""

_NAME = re.compile(r"[A-Za-z0-9_@+=-][A-Za-z0-9_@+=.-]*(/[A-Za-z0-9_@+=-][A-Za-z0-9_@+=.-]*)*")


def _texts(values: Sequence[Any]) -> np.ndarray:
    return np.array([str(v) for v in values] or [], dtype=np.str_)


def _thumbnails(name: str, images: Any, *lead: int) -> np.ndarray:
    array = np.asarray(jax.device_get(images))
    fits = array.ndim == len(lead) + 3 and array.shape[-1] == 3 and array.shape[: len(lead)] == lead
    if array.dtype != np.uint8 or not fits:
        raise InputError(f"{name} must be uint8 {[*lead, 'h', 'w', 3]}; got {array.dtype} {list(array.shape)}.")
    return array


def _artifact(kind: str, title: str, caption: str, fields: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    head = {"kind": np.array(kind), "title": np.array(title), "caption": np.array(caption)}
    return head | {k: v for k, v in fields.items() if v is not None}


def retrieval_grid(
    *,
    result_correct: Any,
    query_images: Any = None,
    query_texts: Sequence[str] | None = None,
    result_images: Any = None,
    result_texts: Sequence[Sequence[str]] | None = None,
    truth_images: Any = None,
    truth_texts: Sequence[str] | None = None,
    ranks: Any = None,
    title: str = "",
    caption: str = "",
) -> dict[str, np.ndarray]:
    """Queries with their first K results, and the truth: kind `retrieval_grid`.

    Args:
      result_correct: [Q, K] bool.
      query_images, query_texts: One of the two: uint8 [Q, h, w, 3], or Q strings.
      result_images, result_texts: One of the two: uint8 [Q, K, h, w, 3], or Q sequences of K strings.
      truth_images, truth_texts: One of the two, of the results' kind: uint8 [Q, h, w, 3], or Q strings.
      ranks: [Q] rank of the truth, 1 being first; optional.
      title, caption: Of the picture.

    Raises:
      InputError: Both or neither of a pair, or shapes that do not fit.

    Example:
      >>> grid = retrieval_grid(query_texts=["a"], result_texts=[["a", "b"]], result_correct=[[True, False]],
      ...                       truth_texts=["a"])
      >>> str(grid["kind"]), grid["result_texts"].shape
      ('retrieval_grid', (1, 2))
    """
    correct = np.asarray(jax.device_get(result_correct))
    if correct.ndim != 2 or correct.dtype != np.bool_ or 0 in correct.shape:
        raise InputError(f"result_correct must be bool [Q, K]; got {correct.dtype} {list(correct.shape)}.")
    rows, columns = correct.shape
    fields: dict[str, np.ndarray | None] = {"result_correct": correct}
    for side, images, texts in (
        ("query", query_images, query_texts),
        ("result", result_images, result_texts),
        ("truth", truth_images, truth_texts),
    ):
        if (images is None) == (texts is None):
            raise InputError(f"Pass exactly one of {side}_images and {side}_texts.")
        lead = (rows, columns) if side == "result" else (rows,)
        if texts is None:
            fields[f"{side}_images"] = _thumbnails(f"{side}_images", images, *lead)
        else:
            flat = [t for row in texts for t in row] if side == "result" else list(texts)  # type: ignore[union-attr]
            if len(flat) != np.prod(lead):
                raise InputError(f"{side}_texts must hold {' × '.join(map(str, lead))} strings; got {len(flat)}.")
            fields[f"{side}_texts"] = _texts(flat).reshape(lead)
    if (result_images is None) != (truth_images is None):
        raise InputError("The truth must be of the results' kind: images with images, texts with texts.")
    if ranks is not None:
        fields["ranks"] = np.asarray(jax.device_get(ranks)).astype(np.int64).reshape(rows)
    return _artifact("retrieval_grid", title, caption, fields)


def confusion(matrix: Any, names: Sequence[str], *, title: str = "", caption: str = "") -> dict[str, np.ndarray]:
    """Counts [C, C] (row = truth, column = prediction) with class names: kind `confusion`.

    Example:
      >>> confusion([[3, 1], [0, 4]], ["cat", "dog"])["matrix"].shape
      (2, 2)
    """
    counts = np.asarray(jax.device_get(matrix))
    if counts.ndim != 2 or counts.shape != (len(names), len(names)) or not len(names):
        raise InputError(f"matrix must be [C, C] with C names; got {list(counts.shape)} and {len(names)} names.")
    return _artifact("confusion", title, caption, {"matrix": counts, "names": _texts(names)})


def embedding_map(
    image_xy: Any,
    text_xy: Any,
    *,
    labels: Any = None,
    names: Sequence[str] | None = None,
    thumbnails: Any = None,
    thumbnail_index: Any = None,
    title: str = "",
    caption: str = "",
) -> dict[str, np.ndarray]:
    """Images and their texts in a plane (`mixcon.evals.project`): kind `embedding_map`.

    Args:
      image_xy, text_xy: [N, 2]; row i of one is paired with row i of the other.
      labels: [N] integers, indices into `names`; optional.
      names: Names of the labels.
      thumbnails: uint8 [K, h, w, 3], drawn at the places of `thumbnail_index` [K]; optional.
      thumbnail_index: Row of each thumbnail; None means 0..K-1.
      title, caption: Of the picture.

    Example:
      >>> embedding_map([[0.0, 1.0]], [[1.0, 0.0]], labels=[0], names=["animals"])["image_xy"].shape
      (1, 2)
    """
    points = [np.asarray(jax.device_get(xy), np.float32) for xy in (image_xy, text_xy)]
    if any(p.ndim != 2 or p.shape[1] != 2 for p in points) or len(points[0]) != len(points[1]) or not len(points[0]):
        raise InputError(f"image_xy and text_xy must be [N, 2], row by row pairs; got {[p.shape for p in points]}.")
    fields: dict[str, np.ndarray | None] = {"image_xy": points[0], "text_xy": points[1]}
    if (labels is None) != (names is None):
        raise InputError("labels and names belong together: pass both or neither.")
    if labels is not None and names is not None:
        codes = np.asarray(jax.device_get(labels)).astype(np.int64)
        if codes.shape != (len(points[0]),) or codes.min() < 0 or codes.max() >= len(names):
            raise InputError(f"labels must be {len(points[0])} indices into the {len(names)} names.")
        fields |= {"labels": codes, "names": _texts(names)}
    if thumbnails is not None:
        count = len(thumbnails)
        index = np.arange(count) if thumbnail_index is None else np.asarray(thumbnail_index)
        if index.shape != (count,) or (count and not 0 <= index.min() <= index.max() < len(points[0])):
            raise InputError(f"thumbnail_index must be {count} rows below {len(points[0])}, one per thumbnail.")
        fields |= {"thumbnails": _thumbnails("thumbnails", thumbnails, count), "thumbnail_index": index}
    return _artifact("embedding_map", title, caption, fields)


def histogram(positive: Any, negative: Any, *, label: str = "cosine similarity", title: str = "", caption: str = ""
              ) -> dict[str, np.ndarray]:
    """Similarities of matching and of non-matching pairs, as values: kind `histogram`. Pass a sample of the negatives.

    Example:
      >>> histogram([0.9, 0.8], [0.1, 0.0, -0.1])["negative"].shape
      (3,)
    """
    values = [np.asarray(jax.device_get(v), np.float32).ravel() for v in (positive, negative)]
    if not all(v.size for v in values):
        raise InputError("A histogram of similarities needs at least one positive and one negative pair.")
    fields = {"positive": values[0], "negative": values[1], "label": np.array(label)}
    return _artifact("histogram", title, caption, fields)


def reliability(count: Any, confidence: Any, accuracy: Any, *, error: float, title: str = "", caption: str = ""
                ) -> dict[str, np.ndarray]:
    """Bins of a classifier's confidence with what came true in each: kind `reliability`.

    Args:
      count: [b] examples of each bin.
      confidence: [b] their mean confidence.
      accuracy: [b] share of them that was right.
      error: The calibration error that belongs to the picture.
      title, caption: Of the picture.

    Example:
      >>> reliability([1, 3], [0.4, 0.9], [0.0, 1.0], error=0.175)["count"].tolist()
      [1, 3]
    """
    bins = [np.asarray(jax.device_get(v), np.float64) for v in (count, confidence, accuracy)]
    if any(v.ndim != 1 or v.shape != bins[0].shape or not v.size for v in bins) or not bins[0].sum() > 0:
        raise InputError(f"count, confidence and accuracy must be [b], with an example; got {[v.shape for v in bins]}.")
    fields = {"count": bins[0].astype(np.int64), "confidence": bins[1], "accuracy": bins[2], "ece": np.array(error)}
    return _artifact("reliability", title, caption, fields)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "", caption: str = ""
          ) -> dict[str, np.ndarray]:
    """A table of text: kind `table`. Numbers are written as `str` gives them: format them first.

    Example:
      >>> table(["language", "R@10"], [["en", "0.41"]])["rows"].tolist()
      [['en', '0.41']]
    """
    if not columns or any(len(row) != len(columns) for row in rows):
        raise InputError(f"Every row of a table needs the {len(columns)} values of its columns.")
    cells = _texts([v for row in rows for v in row]).reshape(len(rows), len(columns))
    return _artifact("table", title, caption, {"columns": _texts(columns), "rows": cells})


def artifact_path(workdir: str | Path, step: int, name: str) -> Path:
    """Where artifact `name` of `step` lies; a name may hold `/` and becomes folders."""
    if not _NAME.fullmatch(name):
        raise InputError(f"An artifact's name is parts of letters, digits and _@+=.- joined by '/'; got {name!r}.")
    return Path(workdir) / "evals" / str(int(step)) / f"{name}.npz"


def save_artifact(workdir: str | Path, step: int, name: str, artifact: Mapping[str, Any]) -> Path:
    """Write an artifact whole or not at all (temporary file, flushed, renamed); overwrites that of an earlier try.

    Args:
      workdir: The run's folder.
      step: Training step.
      name: Such as `composition/image_to_text`.
      artifact: Arrays by name, with a `kind`. Nothing of dtype object.

    Returns:
      The file's path.

    Raises:
      InputError: No `kind`, a bad name, or an array that would need pickling.

    Example:
      >>> import tempfile
      >>> path = save_artifact(tempfile.mkdtemp(), 100, "similarities", histogram([0.9], [0.1]))
      >>> path.name, str(load_artifact(path)["kind"])
      ('similarities.npz', 'histogram')
    """
    path = artifact_path(workdir, step, name)
    arrays = {k: np.asarray(jax.device_get(v)) for k, v in artifact.items()}
    if "kind" not in arrays or arrays["kind"].ndim or arrays["kind"].dtype.kind != "U":
        raise InputError(f"Artifact {name!r} needs a `kind`, a single string that says how to draw it.")
    for key, value in arrays.items():
        if key in ("file", "allow_pickle"):
            raise InputError(f"Artifact {name!r}: {key!r} is an argument of numpy.savez; choose another name.")
        if value.dtype.hasobject:
            raise InputError(f"Artifact {name!r}: {key!r} has dtype object, which only pickle could store; pass text "
                             "as a unicode array and numbers as numbers.")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def load_artifact(path: str | Path) -> dict[str, np.ndarray]:
    """Read an artifact; never unpickles.

    Raises:
      InputError: Not a readable artifact.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # numpy, zipfile and zlib each have their own for a damaged file
        raise InputError(f"{path} is not a readable artifact: {error}") from error
    if "kind" not in arrays:
        raise InputError(f"{path} has no `kind`: it is not an artifact of an evaluation.")
    return arrays


def list_artifacts(workdir: str | Path) -> dict[str, dict[int, Path]]:
    """The artifacts of a run: {name: {step: path}}, steps rising."""
    root = Path(workdir) / "evals"
    found: dict[str, dict[int, Path]] = {}
    steps = sorted((int(p.name), p) for p in root.iterdir() if p.is_dir() and p.name.isdigit()) if root.is_dir() else []
    for step, folder in steps:
        for path in sorted(folder.rglob("*.npz")):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), {})[step] = path
    return found
