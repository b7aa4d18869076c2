"""Runs what a study still lacks, one run after the other or a few side by side, and keeps every finished one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import math
import multiprocessing
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.reproduce.study import Arm, Study, Table
from mixcon.train.checkpoint import write_atomically

Record = dict[str, Any]


class Job(NamedTuple):
    """One run of a study."""

    slug: str
    table: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.table} / {self.arm} / seed {self.seed}"


def reproduce(
    slug: str,
    *,
    results: str | pathlib.Path = "results",
    tables: Sequence[str] = (),
    arms: Sequence[str] = (),
    seeds: int | None = None,
    jobs: int = 1,
    scratch: str | pathlib.Path = "runs/reproduce",
    progress: bool = True,
) -> list[Record]:
    """Run every arm and seed of a study that `results/<slug>.json` does not hold yet.

    Args:
      slug: name of the config file, "cmixup" for `configs/cmixup.py`.
      results: folder of the result files.
      tables, arms: only these; all when empty.
      seeds: at most so many of each arm.
      jobs: runs at a time, each in a process of its own.
      scratch: folder of the runs under way; what was interrupted there is resumed.
      progress: draw a bar.

    Returns:
      The records of the study that are there now: table, arm, seed, command, seconds, `last` (metrics of the last
      evaluation), and with `select` `best` and `best_step`.

    Raises:
      InputError: no such study, table or arm; or what a run refuses.

    Example:
      >>> records = reproduce("cmixup", tables=["airfoil"], seeds=1)
    """
    if seeds is not None and seeds < 1:
        raise InputError(f"seeds={seeds} must be at least 1")
    study = load_study(slug)
    for kind, asked, known in (
        ("table", tables, list(study.tables)),
        ("arm", arms, list(dict.fromkeys(arm for table in study.tables.values() for arm in table.arms))),
    ):
        for name in asked:
            if name not in known:
                raise InputError(f"{slug} has no {kind} {name!r}; {configs.nearest(name, known)}")
    path = pathlib.Path(results) / f"{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = [
        Job(slug, name, arm, seed)
        for name, table in study.tables.items()
        for arm in table.arms
        for seed in table.seeds_of(arm)
        if (not tables or name in tables) and (not arms or arm in arms) and (seeds is None or seed < seeds)
    ]
    done = {job_of(slug, record): record["digest"] for record in read_records(path)}
    lacking = [job for job in wanted if done.get(job) != digest(study.tables[job.table].arms[job.arm], job)]
    with tqdm(total=len(wanted), initial=len(wanted) - len(lacking), unit="run", disable=not progress) as bar:
        for records in run_all(side_by_side(lacking, study), pathlib.Path(scratch), jobs):
            for record in records:
                keep(path, record)
                bar.update(1)
                bar.set_postfix_str(f"{job_of(slug, record)}: {record['seconds']:.0f} s")
    return [record for record in read_records(path) if record["table"] in study.tables]


def load_study(slug: str) -> Study:
    """What `get_study()` of `configs/<slug>.py` returns."""
    module = configs.read_module(str(config_file(slug)))
    if not hasattr(module, "get_study"):
        raise InputError(f"configs/{slug}.py has no get_study(): there is nothing to reproduce")
    return module.get_study()


def config_file(slug: str) -> pathlib.Path:
    """`configs/<slug>.py`, here or in the checkout."""
    found = [root / "configs" / f"{slug}.py" for root in (pathlib.Path.cwd(), configs.CODE)]
    for path in found:
        if path.is_file():
            return path
    there = sorted(p.stem for p in found[-1].parent.glob("*.py"))
    raise InputError(f"there is no configs/{slug}.py; {configs.nearest(slug, there)}")


def job_of(slug: str, record: Record) -> Job:
    """Which run a record is of."""
    return Job(slug, record["table"], record["arm"], record["seed"])


def command(arm: Arm, job: Job) -> list[str]:
    """Arguments of `mixcon train` that repeat a run."""
    config = f"configs/{job.slug}.py:{arm.config}" if arm.config else f"configs/{job.slug}.py"
    return [f"--config={config}", *(f"--config.{each}" for each in arm.overrides), f"--config.seed={job.seed}"]


def resolved(arm: Arm, job: Job) -> Any:
    """The config of a run."""
    first, *overrides = command(arm, job)
    file = config_file(job.slug)
    return configs.load(str(file.parent.parent / first.removeprefix("--config=")), overrides)


def digest(arm: Arm, job: Job) -> str:
    """Changes with whatever the run would compute as far as its config says it; `stand_in` is for plans."""
    said = {key: value for key, value in configs.plain(resolved(arm, job)).items() if key != "stand_in"}
    return hashlib.sha256(f"{arm.measure}{configs.to_json(said)}".encode()).hexdigest()[:16]


def side_by_side(wanted: Sequence[Job], study: Study) -> list[list[Job]]:
    """What runs as one: the seeds of an arm where its table has them together, else every job alone."""
    groups: dict[tuple, list[Job]] = {}
    for job in wanted:
        table = study.tables[job.table]
        alone = not table.together or table.arms[job.arm].measure
        groups.setdefault((job.table, job.arm, job.seed if alone else "all"), []).append(job)
    return list(groups.values())


def run_all(wanted: Sequence[list[Job]], scratch: pathlib.Path, jobs: int) -> Iterator[list[Record]]:
    """The records of each group of jobs, as they finish."""
    if jobs < 1:
        raise InputError(f"jobs={jobs} must be at least 1")
    if jobs == 1:
        yield from (run(group, scratch) for group in wanted)
        return
    fresh = multiprocessing.get_context("spawn")  # JAX does not survive a fork
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=fresh) as pool:
        under_way = [pool.submit(run, group, scratch) for group in wanted]
        try:
            for future in concurrent.futures.as_completed(under_way):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def run(group: Sequence[Job], scratch: pathlib.Path) -> list[Record]:
    """One run, of one seed or of several side by side, from its config to its records."""
    import jax

    from mixcon.train import loop, seeds

    job = group[0]
    several = [each.seed for each in group] if len(group) > 1 else []
    table = load_study(job.slug).tables[job.table]
    arm = table.arms[job.arm]
    config = resolved(arm, job)
    name = "-".join((job.table, job.arm, *(str(each.seed) for each in group), digest(arm, job)))
    workdir = scratch / job.slug / re.sub(r"[^\w.-]+", "-", name)
    workdir.mkdir(parents=True, exist_ok=True)
    before = time.perf_counter()
    try:
        if arm.measure:
            configs.make_importable()
            history = [{"step": 0, **configs.resolve(arm.measure)(config, workdir)}]
        else:
            with quiet():
                loop.train(seeds.with_seeds(config, several) if several else config, workdir, progress=False)
            history = evaluations(workdir)
    except InputError as error:
        raise InputError(f"{', '.join(map(str, group))}: {error}") from error
    finally:
        jax.clear_caches()  # the next run is another program: its seed is part of it
    seconds = (time.perf_counter() - before) / len(group)
    records = [
        {
            **each._asdict(),
            "digest": digest(arm, each),
            "command": [*([arm.measure] if arm.measure else ["mixcon", "train"]), *command(arm, each)],
            "seconds": round(seconds, 1),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            **({"together": several} if several else {}),
            **outcome(of_seed(history, each.seed) if several else history, table),
        }
        for each in group
    ]
    shutil.rmtree(workdir)
    return records


def of_seed(history: Sequence[Record], seed: int) -> list[Record]:
    """The lines of one of several seeds, by the names that it has alone."""
    from mixcon.train.seeds import seed_and_metric

    found = []
    for line in history:
        named = {seed_and_metric(key): value for key, value in line.items() if key != "step"}
        found.append({metric: value for (own, metric), value in named.items() if own == seed} | {"step": line["step"]})
    return found


def evaluations(workdir: pathlib.Path) -> list[Record]:
    """Lines of evaluation in the order of their steps."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    found = [
        {key: float(value) for key, value in line.items() if key.startswith("eval/")} | {"step": line["step"]}
        for line in lines
        if any(key.startswith("eval/") for key in line)
    ]
    if not found:
        raise InputError("the run made no evaluation; set eval_every")
    return found


def outcome(history: Sequence[Record], table: Table) -> Record:
    """The last evaluation and, with `select`, the best one (the earliest of equals)."""
    used = set(table.columns.values())
    missing = [name for name in used if name not in history[-1]]
    if missing:
        raise InputError(f"no metric {missing[0]!r} was logged; {configs.nearest(missing[0], history[-1])}")

    def chosen(line: Record) -> Record:
        return {key: line[key] for key in line if key in used}

    found = {"step": history[-1]["step"], "last": chosen(history[-1])}
    if table.select:
        metric, sign = table.select.removeprefix("-"), -1 if table.select.startswith("-") else 1
        ranked = [line for line in history if math.isfinite(line.get(metric, math.nan))]
        if not ranked:
            raise InputError(f"no evaluation has {metric!r}; {configs.nearest(metric, history[-1])}")
        best = max(ranked, key=lambda line: sign * line[metric])
        found |= {"best_step": best["step"], "best": chosen(best)}
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps a run's own lines out of the bar of the study."""
    with contextlib.redirect_stderr(_Dropped()):
        yield


class _Dropped:
    """A stream that forgets; its file number is the real one's, for native code that asks."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        return sys.__stderr__.fileno() if sys.__stderr__ else 2


def read_records(path: pathlib.Path) -> list[Record]:
    """What a results file holds; nothing when it is not there."""
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text())["runs"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it to start over") from error


def keep(path: pathlib.Path, record: Record) -> None:
    """Add a record, or put it in place of the one of the same run; several processes may write."""
    with path.with_suffix(".lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        mine = job_of(record["slug"], record)
        others = [each for each in read_records(path) if job_of(record["slug"], each) != mine]
        runs = sorted([*others, record], key=lambda each: (each["table"], each["arm"], each["seed"]))
        lines = ",\n".join(json.dumps(each, sort_keys=True) for each in runs)
        write_atomically(path, f'{{"runs": [\n{lines}\n]}}\n')
