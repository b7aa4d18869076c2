"""The `mixcon` command. Heavy imports wait until a subcommand needs them."""

from __future__ import annotations

import argparse
import ast
import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from mixcon import __version__
from mixcon.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parent.parent


def parser() -> argparse.ArgumentParser:
    """All subcommands and their arguments."""
    top = argparse.ArgumentParser("mixcon", description="Mixup and contrastive learning in JAX.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"mixcon {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False, epilog=epilog)
        added.add_argument("--debug", action="store_true", help="show tracebacks")
        return added

    train = command(
        "train",
        "train a config, or go on where its workdir stands",
        epilog="Any config value can be set: --config.batch_size=128. A piece (what has a name) takes more arguments "
        "of its function, --config.gradient.parts=4, or is replaced whole: --config.optimizer=\"{'name': 'sgd'}\".",
    )
    train.add_argument("--config", required=True, metavar="FILE[:ARG]", help="e.g. configs/clip.py:small")
    train.add_argument("--workdir", required=True, help="folder of the run; an existing run is resumed")
    train.add_argument("--allow-config-change", action="store_true", help="resume under a changed config")
    train.add_argument("--no-progress", action="store_true", help="no progress bar")
    train.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, where no cluster is detected")
    train.add_argument("--processes", type=int, help="number of processes")
    train.add_argument("--process", type=int, help="index of this process")

    evaluate = command("eval", "evaluate a checkpoint of a run")
    evaluate.add_argument("--workdir", required=True)
    evaluate.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")

    export = command("export", "write a dual encoder as a folder that transformers loads (CLIP or SigLIP)")
    export.add_argument("--workdir", required=True, help="folder of the run")
    export.add_argument("--to", required=True, metavar="FOLDER", help="config.json, model.safetensors, tokenizer.json")
    export.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")

    listing = command("list", "methods and configs that there are")
    listing.add_argument("--configs", default=None, help="folder of configs (default: ./configs)")

    mixers = command("mixers", "a picture of what every mixing policy does to real images")
    mixers.add_argument("--out", required=True, help="PNG or PDF file")
    mixers.add_argument("--only", nargs="+", metavar="NAME", help="only these policies")
    mixers.add_argument("--seed", type=int, default=0)

    report = command("report", "one HTML page and pictures from a run")
    report.add_argument("workdir")

    plan = command(
        "plan",
        "what a config needs on a machine that is not here: compiled, never run",
        epilog="Any config value can be set, as for train. TPU topologies need the extra tpu-plan.",
    )
    plan.add_argument("--config", required=True, nargs="+", metavar="FILE[:ARG]", help="e.g. configs/clip.py:l14")
    plan.add_argument("--topology", required=True, nargs="+", metavar="NAME", help="e.g. v5e:16x16; cpu:1")
    plan.add_argument("--batch", nargs="+", type=int, metavar="SIZE", help="global batch sizes (default: the config's)")
    plan.add_argument("--sweep", action="store_true", help="all combinations, as one table")
    plan.add_argument("--no-advice", action="store_true", help="do not look for changes that make it fit")
    plan.add_argument("--out", help="folder for plan.json, plan.md and, with --sweep, plan.png")

    reproduce = command("reproduce", "measure a paper's claims; finished runs are kept, interrupted ones resumed")
    reproduce.add_argument("slug", nargs="?", metavar="name", help="of a config with a study; none: only --document")
    reproduce.add_argument("--table", nargs="+", default=[], help="only these tables")
    reproduce.add_argument("--arm", nargs="+", default=[], help="only these arms")
    reproduce.add_argument("--seeds", type=int, help="at most so many seeds of each arm")
    reproduce.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    reproduce.add_argument("--results", default="results", help="folder of the result files (default: results)")
    reproduce.add_argument("--no-progress", action="store_true", help="no progress bar")
    reproduce.add_argument("--document", nargs="?", const="docs/results.md", metavar="FILE", help="page of all")

    data = command("data", "datasets: list, fetch, verify, pack")
    verbs = data.add_subparsers(dest="verb", required=True, metavar="verb")
    verbs.add_parser("list", help="known datasets, where they come from, whether they are here")
    for verb, text in (("fetch", "download with checksum"), ("verify", "compare files with their checksums")):
        verbs.add_parser(verb, help=text).add_argument("dataset", metavar="name")
    pack = verbs.add_parser("pack", help="image-text tars or tables to ArrayRecord; resumes when interrupted")
    pack.add_argument("inputs", nargs="+", help="tars, or tables (CSV, TSV, JSON lines, parquet) of paths and captions")
    pack.add_argument("--out", required=True, help="folder of the ArrayRecord shards")
    pack.add_argument("--image-column", default="image", help="of a table: paths of images (default: image)")
    pack.add_argument("--text-column", default="text", help="of a table: captions (default: text)")
    pack.add_argument("--languages", nargs="+", default=[], metavar="CODE", help="keep text_CODE of each, too: en de")
    pack.add_argument("--clean", nargs="*", metavar="RULE=N", help="ALIGN's rules of cleaning; min_side=64 changes one")
    pack.add_argument("--held-out", nargs="+", default=[], metavar="SHARD", help="with --clean: leave out their images")
    return top


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, dispatch, and turn bad input into one paragraph and exit code 2."""
    arguments, rest = parser().parse_known_args(argv)
    if rest and arguments.command not in ("train", "plan"):
        parser().error(f"unknown argument {rest[0]}")
    if not arguments.debug:  # what these would say about a failed save is said in our own words
        for noisy in ("absl", "asyncio", "concurrent.futures"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        sys.unraisablehook = lambda _: None  # and what their native threads would add
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # and XLA's warnings, such as of a SIGTERM
    try:
        COMMANDS[arguments.command](arguments, rest)
    except InputError as error:
        if arguments.debug:
            raise
        print(f"mixcon: error: {error}", file=sys.stderr)
        leave(2)
    except KeyboardInterrupt:
        print("mixcon: interrupted; the same command goes on where this one stood", file=sys.stderr)
        leave(130)
    except BrokenPipeError:  # `mixcon list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if arguments.debug:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"mixcon: error: {where}{error.strerror or error}", file=sys.stderr)
        leave(2)
    except Exception as error:
        if arguments.debug:
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:600]
        print(f"mixcon: unexpected error: {reason} (run again with --debug for the traceback)", file=sys.stderr)
        leave(1)


def leave(code: int) -> NoReturn:
    """Exit. One of several processes goes at once: an orderly goodbye would wait for the others."""
    distributed = sys.modules.get("mixcon.train.distributed")
    if distributed is not None and distributed.several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """`mixcon train`."""
    from mixcon import config as configs

    config = configs.load(arguments.config, overrides)
    from mixcon.train import distributed, loop

    place = {"coordinator": arguments.coordinator, "processes": arguments.processes, "process": arguments.process}
    with distributed.joined(**place):
        loop.train(
            config,
            arguments.workdir,
            progress=not arguments.no_progress,
            allow_config_change=arguments.allow_config_change,
        )


def run_eval(arguments: argparse.Namespace, _: list[str]) -> None:
    """`mixcon eval`."""
    from mixcon.train import evaluate

    step, values = evaluate.evaluate(pathlib.Path(arguments.workdir), step=arguments.step)
    width = max(map(len, values), default=0)
    print(f"checkpoint of step {step}")
    for name, value in values.items():
        print(f"  {name:<{width}}  {value:.4f}")


def run_export(arguments: argparse.Namespace, _: list[str]) -> None:
    """`mixcon export`."""
    from mixcon.train import evaluate

    print(evaluate.export(pathlib.Path(arguments.workdir), pathlib.Path(arguments.to), step=arguments.step))


def run_list(arguments: argparse.Namespace, _: list[str]) -> None:
    """`mixcon list`: read from the source text, so that nothing heavy is imported."""
    here = pathlib.Path("configs")
    folder = pathlib.Path(arguments.configs) if arguments.configs else here if here.is_dir() else ROOT / "configs"
    print("configs")
    for path in sorted(folder.glob("*.py")):
        print(f"  {path.stem:<24} {summary(path)}")
    for room in ("objectives", "mixers"):
        print(room)
        print("  " + ", ".join(public_names(ROOT / "mixcon" / room / "__init__.py")))


def summary(path: pathlib.Path) -> str:
    """First line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def public_names(path: pathlib.Path) -> list[str]:
    """`__all__` of a module, without importing it."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def run_report(arguments: argparse.Namespace, _: list[str]) -> None:
    """`mixcon report`."""
    from mixcon import report

    report.write_report(arguments.workdir)
    print("\n".join(report.summary_lines(arguments.workdir)))


def run_plan(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """`mixcon plan`."""
    from mixcon.plan import command

    command.run(
        arguments.config,
        arguments.topology,
        arguments.batch or [None],
        overrides,
        sweep=arguments.sweep,
        advice=not arguments.no_advice,
        out=arguments.out,
    )


def run_reproduce(arguments: argparse.Namespace, _: list[str]) -> None:
    """`mixcon reproduce`."""
    from mixcon.reproduce import document
    from mixcon.reproduce import run as runner

    if not arguments.slug and not arguments.document:
        raise InputError("name a study, or ask for the page with --document")
    if arguments.slug:
        records = runner.reproduce(
            arguments.slug,
            results=arguments.results,
            tables=arguments.table,
            arms=arguments.arm,
            seeds=arguments.seeds,
            jobs=arguments.jobs,
            progress=not arguments.no_progress,
        )
        shown = [record for record in records if not arguments.table or record["table"] in arguments.table]
        print(document.study_text(arguments.slug, runner.load_study(arguments.slug), shown))
    if arguments.document:
        pathlib.Path(arguments.document).write_text(document.document(arguments.results))
        print(f"written: {arguments.document}")


def run_mixers(arguments: argparse.Namespace, _: list[str]) -> None:
    """`mixcon mixers`."""
    from mixcon.mixers import sheet

    figure = sheet.draw_sheet(seed=arguments.seed, only=arguments.only, progress=lambda name: print(name, flush=True))
    try:
        figure.savefig(arguments.out)
    except (OSError, ValueError) as error:
        raise InputError(f"{arguments.out} cannot be written: {error}") from error
    print(f"drawn: {arguments.out}")


def run_data(arguments: argparse.Namespace, _: list[str]) -> None:
    """`mixcon data`."""
    from mixcon.data import catalog, cleaning, pack

    if arguments.verb == "list":
        print(catalog.table())
    elif arguments.verb == "fetch":
        print(catalog.fetch(arguments.dataset))
    elif arguments.verb == "verify":
        print(catalog.verify(arguments.dataset))
    else:
        print(
            pack.pack(
                arguments.inputs,
                arguments.out,
                image_column=arguments.image_column,
                text_column=arguments.text_column,
                languages=arguments.languages,
                clean=None if arguments.clean is None else cleaning.parse_rules(arguments.clean),
                held_out=arguments.held_out,
            )
        )


COMMANDS = {
    "train": run_train,
    "eval": run_eval,
    "export": run_export,
    "list": run_list,
    "mixers": run_mixers,
    "plan": run_plan,
    "reproduce": run_reproduce,
    "report": run_report,
    "data": run_data,
}

if __name__ == "__main__":
    main()
