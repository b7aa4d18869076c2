"""`mixcon plan`: one plan with advice, or a sweep; text, JSON and a plot."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from mixcon.errors import InputError


def run(
    paths: Sequence[str],
    names: Sequence[str],
    batches: Sequence[int | None],
    overrides: Sequence[str],
    *,
    sweep: bool,
    advice: bool,
    out: str | None,
) -> None:
    """Plan every combination of config, topology and batch size, and print it."""
    cases = list(itertools.product(paths, names, batches))
    if len(cases) > 1 and not sweep:
        raise InputError(f"{len(cases)} combinations of config, topology and batch: add --sweep to plan them all")
    # Before JAX starts: nothing is run, so a chip that is here is not taken, and the compiler's log is not wanted.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from mixcon import config as configs
    from mixcon.plan import chips, compile, show
    from mixcon.plan.advice import advise

    plans, folder = [], pathlib.Path(out) if out else None
    for path, name, batch in cases:
        given = [*overrides, *([] if batch is None else [f"--config.batch_size={batch}"])]
        config, topology = configs.load(path, given), chips.topology(name)
        print(f"compiling {path} for {name}, batch {config.batch_size:,}", file=sys.stderr)
        file, _, argument = path.partition(":")
        found = compile.plan(config, topology, name=f"{pathlib.Path(file).stem}:{argument}".rstrip(":"))
        plans.append(found)
        if not sweep:
            print(show.text(found))
            if advice and not found.fits:
                print("\nwhat makes it fit:")
                say = lambda text: print(text, file=sys.stderr)  # noqa: E731
                for change, tried in advise(config, topology, found, say=say):
                    flags = " ".join(configs.typed(f"--config.{each}") for each in change)
                    print(f"  {flags}\n    {tried.total / show.GIB:.2f} GiB{show.verdict(tried)}")
        if folder:  # at once: a sweep takes long
            folder.mkdir(parents=True, exist_ok=True)
            rows = [each._asdict() | {"total": each.total} for each in plans]
            (folder / "plan.json").write_text(json.dumps(rows, indent=1) + "\n")
            (folder / "plan.md").write_text(show.table(plans))
    if sweep:
        print(show.table(plans))
        if folder:
            show.plot(plans, folder / "plan.png")
            print(f"drawn: {folder / 'plan.png'}")
