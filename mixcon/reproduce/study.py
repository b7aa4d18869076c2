"""How a paper's claims are measured, as data: tables of arms and seeds that anyone can run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mixcon.errors import InputError


@dataclass(frozen=True)
class Arm:
    """One row of a table.

    Args:
      config: argument of the config file, "airfoil" for `configs/cmixup.py:airfoil`.
      overrides: what follows `--config.` on the command line, ("mixer.name=none",).
      measure: dotted name of `measure(config, workdir) -> {metric: value}`, for what is not trained by the loop
        (a classical baseline, a test of a property); empty trains the config.
      seeds: how many seeds, when not the table's.
    """

    config: str
    overrides: tuple[str, ...] = ()
    measure: str = ""
    seeds: int | None = None


@dataclass(frozen=True)
class Table:
    """Arms, run over the same seeds 0, 1, ..., and compared in the same columns.

    Args:
      title: heading.
      arms: rows by name.
      columns: heading -> metric as it is logged, {"RMSE": "eval/test/rmse"}.
      seeds: how many.
      baseline: arm from which the others' paired differences are taken; "" pairs none.
      select: metric of the evaluation that is shown as "best" beside the last; a leading "-" prefers low values.
        "" shows the last alone.
      scale: by column, factor of what is shown (100 for per cent).
      together: the seeds of an arm run side by side under `vmap`: for steps so small that this is faster. Each seed's
        figures are then those of its own run but for rounding, which a long run at a high learning rate amplifies.
      paper: arm -> column -> figure as published, as shown (after scaling).
      claim: what the paper says.
      found: what the figures say, written by whoever looked at them.
    """

    title: str
    arms: Mapping[str, Arm]
    columns: Mapping[str, str]
    seeds: int
    baseline: str = ""
    select: str = ""
    scale: Mapping[str, float] = field(default_factory=dict)
    together: bool = False
    paper: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)
    claim: str = ""
    found: str = ""

    def __post_init__(self) -> None:
        for name, given in (("baseline", [self.baseline] if self.baseline else []), ("paper", list(self.paper))):
            unknown = [arm for arm in given if arm not in self.arms]
            if unknown:
                raise InputError(f"{self.title}: {name} names {unknown[0]!r}, which is no arm of {list(self.arms)}")
        for name in (*self.scale, *(column for row in self.paper.values() for column in row)):
            if name not in self.columns:
                raise InputError(f"{self.title}: {name!r} is no column of {list(self.columns)}")

    def seeds_of(self, arm: str) -> range:
        """Seeds of an arm."""
        own = self.arms[arm].seeds
        return range(self.seeds if own is None else own)


@dataclass(frozen=True)
class Study:
    """All tables of a paper.

    Args:
      title: method and venue, "C-Mixup (Yao et al., NeurIPS 2022)".
      tables: by a short name that is used on the command line and in the results file.

    Example:
      >>> erm, cmixup = Arm("airfoil", ("method=erm",)), Arm("airfoil")
      >>> table = Table("Airfoil", {"ERM": erm, "C-Mixup": cmixup}, {"RMSE": "eval/test/rmse"}, seeds=5, baseline="ERM")
      >>> study = Study("C-Mixup (Yao et al., NeurIPS 2022)", {"airfoil": table})
    """

    title: str
    tables: Mapping[str, Table]
