"""A run's folder, read leniently: whatever is there is shown, whatever is missing is said."""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixcon.errors import InputError
from mixcon.evals.artifacts import list_artifacts, load_artifact

FILES = ("config.json", "run.json", "metrics.jsonl", "goodput.json")


class Series(NamedTuple):
    """One metric over the run, steps rising."""

    steps: np.ndarray  # [n] int
    values: np.ndarray  # [n] float, may hold nan

    @property
    def last(self) -> float:
        return float(self.values[-1])


class Picture(NamedTuple):
    """The newest artifact of a name."""

    name: str
    step: int
    arrays: dict[str, np.ndarray]

    @property
    def kind(self) -> str:
        return str(self.arrays["kind"])


class Headline(NamedTuple):
    """A metric beside what chance would give."""

    key: str
    value: float
    chance: float
    step: int

    @property
    def ratio(self) -> float:
        return self.value / self.chance if self.chance > 0 else math.inf


class Run(NamedTuple):
    """What a run left."""

    workdir: Path
    config: dict[str, Any]
    info: dict[str, Any]
    series: dict[str, Series]
    times: tuple[float, float] | None  # of the first and the last logged line, seconds since 1970
    goodput: dict[str, float]
    pictures: list[Picture]
    notes: list[str]  # what is missing or unreadable, in sentences

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return max((int(s.steps[-1]) for s in self.series.values()), default=0)

    @property
    def total(self) -> int | None:
        """The step at which the run would be complete, if the config says."""
        steps = self.config.get("steps")
        return int(steps) if isinstance(steps, int | float) and not isinstance(steps, bool) else None

    @property
    def finished(self) -> bool:
        return self.total is not None and self.step >= self.total

    @property
    def headlines(self) -> list[Headline]:
        """Every metric that has a sibling `<key>/chance`."""
        found = []
        for key, series in self.series.items():
            chance = self.series.get(f"{key}/chance")
            if chance is not None and math.isfinite(series.last):
                found.append(Headline(key, series.last, chance.last, int(series.steps[-1])))
        return found


def load_run(workdir: str | Path) -> Run:
    """Read a run's folder.

    Args:
      workdir: As given to `mixcon train`.

    Returns:
      The run, with a note for everything that is missing.

    Raises:
      InputError: Not a folder, or nothing of a run in it.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"{workdir} is not a folder; pass the --workdir of a run.")
    if not any((workdir / name).exists() for name in (*FILES, "evals")):
        raise InputError(f"{workdir} holds no run: none of {', '.join(FILES)} or evals/ is there. "
                         "Pass the --workdir of `mixcon train`.")
    notes: list[str] = []
    config, info, goodput = (_json(workdir / name, notes) for name in ("config.json", "run.json", "goodput.json"))
    series, times = _metrics(workdir / "metrics.jsonl", notes)
    pictures = _pictures(workdir, notes)
    if not pictures and not any(key.startswith("eval/") for key in series):
        notes.append("No evaluation has run yet.")
    seconds = {k: float(v) for k, v in goodput.items() if isinstance(v, int | float)}
    run = Run(workdir, config, info, series, times, seconds, pictures, notes)
    if series and run.total is not None and not run.finished:
        notes.insert(0, f"The run stands at step {run.step:,} of {run.total:,}: it is still going, or was interrupted.")
    return run


def _json(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        when = " (it is written when a session ends)" if path.name == "goodput.json" else ""
        notes.append(f"{path.name} is missing{when}.")
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read: {error}.")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.name} does not hold a JSON object.")
        return {}
    return value


def _number(value: Any) -> float | None:
    """JSON has no nan: writers put it as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _metrics(path: Path, notes: list[str]) -> tuple[dict[str, Series], tuple[float, float] | None]:
    try:
        lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    except OSError:
        notes.append("metrics.jsonl is missing: nothing was logged yet.")
        return {}, None
    points: dict[str, dict[int, float]] = {}
    times: list[float] = []
    broken: list[int] = []
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, TypeError, KeyError):
            if line.strip():
                broken.append(number)
            continue
        for key, raw in entry.items():
            value = _number(raw)
            if key == "time" and value is not None:
                times.append(value)
            elif key not in ("step", "time") and value is not None:
                points.setdefault(key, {})[step] = value  # a resumed run repeats steps: the later line counts
    if broken and broken[-1] == len(lines) - 1:
        notes.append("The last line of metrics.jsonl is cut short (killed while writing) and is left out.")
        broken.pop()
    if broken:
        notes.append(f"{len(broken)} unreadable line(s) of metrics.jsonl are left out (first: line {broken[0] + 1}).")
    if not points:
        notes.append("metrics.jsonl holds no metrics yet.")
    series = {}
    for key, values in points.items():
        steps = sorted(values)
        series[key] = Series(np.array(steps), np.array([values[s] for s in steps], np.float64))
    return series, (times[0], times[-1]) if times else None


def _pictures(workdir: Path, notes: list[str]) -> list[Picture]:
    pictures = []
    for name, by_step in list_artifacts(workdir).items():
        for step, path in sorted(by_step.items(), reverse=True):
            try:
                pictures.append(Picture(name, step, load_artifact(path)))
                break
            except InputError as error:
                notes.append(f"evals/{step}/{name}.npz is left out: {error}")
    return pictures


def group_of(key: str) -> str:
    """`eval/composition/image_to_text/R@10` → `composition · image → text`, for people."""
    parts = key.split("/")[:-1]
    parts = parts[1:] if len(parts) > 1 and parts[0] == "eval" else parts
    return " · ".join(pretty(p) for p in parts)


def pretty(name: str) -> str:
    """A key's part for people."""
    return re.sub(r"\btop(\d+|k)\b", r"top-\1", name.replace("_to_", " → ").replace("_", " "))


def percent(share: float) -> str:
    """Two or three significant digits: 0.42 %, 4.2 %, 42.0 %."""
    value = 100 * share
    if 0 < abs(value) < 0.01:
        return f"{value:.0e} %".replace("e-0", "e-")
    return f"{value:.0f} %" if value >= 99.95 or value == 0 else f"{value:.{1 if value >= 1 else 2}f} %"


def times_chance(ratio: float) -> str:
    """`32×`, `1.4×`."""
    return "∞×" if math.isinf(ratio) else f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.1f}×"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    left, parts = round(seconds), list[str]()
    for unit, size in units:
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
