"""Notebooks run top to bottom, answer a control within half a second, and are kept as readable text."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

for needed in ("plotly", "ipywidgets", "anywidget"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'mixcon[notebooks]'")
jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed: pip install 'mixcon[notebooks]'")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py") if p.read_text().startswith("# ---\n# jupyter:"))
ANSWER = 0.5  # seconds, on two cores that nobody else uses


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_with_a_paragraph_and_a_picture_and_is_short(name):
    notebook = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", first.source)
    assert len(pictures) == 1
    assert (FOLDER / pictures[0]).resolve().is_file()
    code = [line for c in notebook.cells if c.cell_type == "code" for line in c.source.splitlines() if line.strip()]
    assert len(code) < 150


@pytest.mark.parametrize("name", NAMES)
def test_text_becomes_a_notebook_and_comes_back_the_same(name):
    text = (FOLDER / f"{name}.py").read_text()
    notebook = jupytext.reads(jupytext.writes(jupytext.reads(text, "py:percent"), "ipynb"), "ipynb")
    cells = [written.split("\n# ---\n", 1)[1].strip() for written in (text, jupytext.writes(notebook, "py:percent"))]
    assert cells[0] == cells[1]  # the header may say which jupytext wrote it


def test_no_outputs_and_no_machine_paths_are_kept():
    ignored = (ROOT / ".gitignore").read_text().split()
    assert "/notebooks/*.ipynb" in ignored, "notebooks are made from their text; outputs would be kept in git"
    for path in FOLDER.glob("*.py"):
        assert not re.search(r"/(root|home|work|tmp|Users)/", path.read_text()), path


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "img" / "notebooks").glob("*.png"))
    assert {p.stem for p in pictures} == set(NAMES)
    assert max(p.stat().st_size for p in pictures) <= 150_000


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """All notebooks, run and played with in one process; training, where a notebook saves a run, is short."""
    short = {"MIXCON_RUNS": str(tmp_path_factory.mktemp("runs")), "MIXCON_STEPS": "8"}
    done = subprocess.run(
        [sys.executable, "-m", "notebooks.play", "--json"],
        cwd=ROOT, env=os.environ | short, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {line["name"]: line["controls"] for line in map(json.loads, done.stdout.strip().splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_every_control_changes_the_figure_in_time(name, played):
    assert played[name]
    for control, moved in played[name].items():
        assert moved["changed"], f"{control} changes nothing"
        assert moved["median"] < ANSWER, f"{control} answers in {moved['median']:.2f} s"
        assert moved["longest"] < 3 * ANSWER, f"{control} once took {moved['longest']:.2f} s"  # CI has other work, too


@pytest.mark.slow
@pytest.mark.skipif(bool(shutil.which("chromium") or shutil.which("google-chrome")), reason="test_browser.py does more")
def test_a_kernel_runs_one():
    from nbclient import NotebookClient

    notebook = jupytext.read(FOLDER / "temperature.py", fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(FOLDER)}}).execute()
    shown = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert any("application/vnd.jupyter.widget-view+json" in out.get("data", {}) for out in shown)
