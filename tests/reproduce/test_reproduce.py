"""Studies: what is missing is run and kept, what is there is not run again, and the page says what the files hold."""

import json
import subprocess
import sys
import textwrap

import jax
import pytest

from mixcon import cli
from mixcon.errors import InputError
from mixcon.reproduce import Arm, Study, Table
from mixcon.reproduce import document as pages
from mixcon.reproduce import run as runner

CONFIG = '''
"""A line through the diabetes data: `small`."""
import ml_collections
from mixcon.reproduce import Arm, Study, Table

def get_config(arg="small"):
    c = ml_collections.ConfigDict()
    c.experiment = "experiments.line"
    c.seed, c.steps, c.batch_size, c.log_every, c.eval_every = 0, 8, 32, 8, 2
    c.ema, c.nonfinite = 0.0, "stop"
    c.mesh = dict(data=1, model=1)
    c.sharding = dict(fsdp=False, rules=())
    c.checkpoint = dict(every=8, keep=1, keep_every=0)
    c.gradient = dict(name="mixcon.train.gradients.standard")
    c.schedule = dict(peak=0.1, decay="constant")
    c.optimizer = dict(name="sgd")
    c.data = dict(max_bad_share=0.0, threads=1, prefetch=1)
    c.slope = True
    return c

def get_study():
    exact = Arm("small", measure="experiments.line.exact", seeds=1)
    arms = {"mean": Arm("small", ("slope=False",)), "line": Arm("small"), "exact": exact}
    table = Table(
        "Diabetes", arms, {"RMSE": "eval/test/rmse"}, seeds=2, baseline="mean", select="-eval/test/rmse",
        paper={"line": {"RMSE": 0.7}}, claim="A line beats the mean.", found="It does.",
    )
    return Study("A line (Gauss, 1809)", {"diabetes": table})
'''

EXPERIMENT = """
import jax
import jax.numpy as jnp
import numpy as np
from mixcon import data
from mixcon.train.assemble import assemble
from mixcon.train.state import Task

def standard(side):
    columns = data.sources.sklearn_set("diabetes", side).columns
    return {"x": columns["features"].astype(np.float32), "y": ((columns["target"] - 152) / 77).astype(np.float32)}

def build(config, workdir):
    train, test = standard("train"), standard("test")
    scale = 20.0 if config.slope else 0.0

    def predict(params, x):
        return scale * x @ params["w"] + params["b"]

    def encode(params, extra, batch, *, key, train):
        return predict(params, batch["x"]), extra

    def objective(params, state, reps, batch, *, key, step):
        return jnp.mean((reps - batch["y"]) ** 2), {}, state

    def evaluate(state):
        yield "rmse", float(np.sqrt(np.mean((predict(state.params, test["x"]) - test["y"]) ** 2)))

    return assemble(
        config,
        init=lambda key: ({"w": jax.random.normal(key, (10,)), "b": jnp.zeros(())}, {}, {}),
        task=Task(lambda batch, *, key, step: batch, encode, objective),
        source=data.sources.Arrays(train),
        evals={"test": evaluate},
    )

def exact(config, workdir):
    train, test = standard("train"), standard("test")
    weights, *_ = np.linalg.lstsq(train["x"], train["y"], rcond=None)
    return {"eval/test/rmse": float(np.sqrt(np.mean((test["x"] @ weights - test["y"]) ** 2)))}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    for room, text in (("configs", CONFIG), ("experiments", EXPERIMENT)):
        (root / room).mkdir()
        (root / room / "line.py").write_text(textwrap.dedent(text))
    return root


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_what_is_missing_is_run_and_what_is_there_is_not(folder, monkeypatch):
    records = runner.reproduce("line", seeds=1, progress=False)
    assert [(r["arm"], r["seed"]) for r in records] == [("exact", 0), ("line", 0), ("mean", 0)]
    ran = []
    original = runner.run
    monkeypatch.setattr(runner, "run", lambda group, scratch: ran.extend(group) or original(group, scratch))
    records = runner.reproduce("line", progress=False)
    assert [(job.arm, job.seed) for job in ran] == [("mean", 1), ("line", 1)]
    assert len(records) == 5
    assert not list((folder / "runs" / "reproduce" / "line").iterdir())  # finished runs leave nothing behind
    found = {(r["arm"], r["seed"]): r for r in records}
    assert found["line", 0]["last"]["eval/test/rmse"] < found["mean", 0]["last"]["eval/test/rmse"]
    assert found["line", 0]["best"]["eval/test/rmse"] <= found["line", 0]["last"]["eval/test/rmse"]
    assert found["line", 0] != found["line", 1]
    ran.clear()
    configs = folder / "configs" / "line.py"
    text = configs.read_text()
    configs.write_text(text.replace("peak=0.1", "peak=0.05"))
    assert "line †" in pages.document()
    runner.reproduce("line", arms=["line"], progress=False)  # the config is another one: its runs are repeated
    configs.write_text(text)
    assert [(job.arm, job.seed) for job in ran] == [("line", 0), ("line", 1)]
    runner.reproduce("line", arms=["line"], progress=False)


def test_seeds_side_by_side_give_what_each_gives_alone(folder, monkeypatch):
    (folder / "configs" / "together.py").write_text(CONFIG.replace("baseline=", "together=True, baseline="))
    groups, original = [], runner.run
    monkeypatch.setattr(runner, "run", lambda group, scratch: groups.append(group) or original(group, scratch))
    alone = runner.reproduce("line", progress=False, results=folder / "alone")
    groups.clear()
    together = runner.reproduce("together", progress=False)
    assert [(group[0].arm, len(group)) for group in groups] == [("mean", 2), ("line", 2), ("exact", 1)]
    assert len(together) == len(alone) == 5
    for mine, theirs in zip(together, alone, strict=True):
        assert (mine["arm"], mine["seed"]) == (theirs["arm"], theirs["seed"])
        assert mine["best_step"] == theirs["best_step"]
        for key, value in theirs["last"].items():
            assert mine["last"][key] == pytest.approx(value, rel=1e-5)
        assert mine.get("together", []) == ([] if mine["arm"] == "exact" else [0, 1])
    text = "\n".join(
        pages.commands_of("together", "diabetes", runner.load_study("together").tables["diabetes"], together)
    )
    assert "mixcon reproduce together --table diabetes --arm line" in text
    (folder / "configs" / "together.py").unlink()
    (folder / "results" / "together.json").unlink()


def test_the_command_prints_the_table_and_writes_the_page(folder, capsys):
    cli.main(["reproduce", "line", "--no-progress", "--document", "page.md"])
    said = capsys.readouterr().out
    page = (folder / "page.md").read_text()
    runs = json.loads((folder / "results/line.json").read_text())["runs"]
    values = [{r["arm"]: r["last"]["eval/test/rmse"] for r in runs if r["seed"] == seed} for seed in (0, 1)]
    gains = [values[seed]["line"] - values[seed]["mean"] for seed in (0, 1)]
    mean, error = sum(gains) / 2, abs(gains[0] - gains[1]) / 2
    digits = 3 if values[0]["line"] + values[1]["line"] < 2 else 2  # as many as the figure itself has
    for text in (said, page):
        assert "A line (Gauss, 1809)" in text
        assert f"({mean:+.{digits}f} ± {error:.{digits}f})" in text
        assert "*line, in the paper*" in text
        assert "mixcon train --config=configs/line.py:small --config.slope=False --config.seed=0" in text
        assert "Found: It does." in text


def test_several_runs_at_a_time_give_the_same(folder):
    one = runner.reproduce("line", results="one", seeds=1, arms=["line", "mean"], progress=False)
    two = runner.reproduce("line", results="two", seeds=1, arms=["line", "mean"], jobs=2, progress=False)
    assert [r["last"] for r in one] == [r["last"] for r in two]


def test_an_interrupted_study_goes_on(folder):
    """Two processes write into one file; each finds what the other has done."""
    code = "from mixcon import cli; cli.main(['reproduce', 'line', '--results=shared', '--no-progress', '--arm={}'])"
    both = [subprocess.Popen([sys.executable, "-c", code.format(arm)], cwd=folder) for arm in ("line", "mean")]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert len(runner.read_records(folder / "shared" / "line.json")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "lime"], "no configs/lime.py"),
        (["reproduce", "line", "--table", "diabetis"], "no table 'diabetis'"),
        (["reproduce", "line", "--arm", "lines"], "no arm 'lines'"),
        (["reproduce"], "name a study"),
    ],
)
def test_misspelt_studies_are_refused_in_words(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_metric_that_no_evaluation_logs_is_named():
    table = Table("T", {"a": Arm("small")}, {"F1": "eval/test/f1"}, seeds=1)
    with pytest.raises(InputError, match="no metric 'eval/test/f1'"):
        runner.outcome([{"step": 1, "eval/test/F1": 0.5}], table)
    with pytest.raises(InputError, match="no arm of"):
        Table("T", {"a": Arm("small")}, {"F1": "x"}, seeds=1, baseline="b")
    with pytest.raises(InputError, match="no column of"):
        Table("T", {"a": Arm("small")}, {"F1": "x"}, seeds=1, scale={"F2": 100.0})
    assert Study("S", {"t": table}).tables["t"].seeds_of("a") == range(1)


def test_what_only_a_plan_reads_makes_no_run_out_of_date():
    job = runner.Job("cwcl", "few", "CWCL", 0)
    same, other = (runner.digest(Arm("small", (change,)), job) for change in ("stand_in=()", "steps=7"))
    assert same == runner.digest(Arm("small"), job) != other
