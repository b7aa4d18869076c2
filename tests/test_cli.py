"""The command: quick to start, and plain about mistakes."""

import subprocess
import sys
import time

import pytest
from tiny import OVERRIDES

from mixcon import cli

TRAIN = ["train", "--config", "configs/clip.py:small", *OVERRIDES]


def refused(capsys, *arguments):
    """What the command says when it refuses; never a traceback."""
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code != 0
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "unexpected error" not in said
    assert said.count("\n") == 1, "one paragraph"
    return said


@pytest.mark.parametrize(("arguments", "limit"), [(["--help"], 1.0), (["list"], 3.0)])
def test_startup_is_quick(arguments, limit):
    def seconds():
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "mixcon", *arguments], capture_output=True, text=True, check=True)
        assert done.stdout
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < limit


def test_list_names_configs_and_methods(capsys):
    cli.main(["list"])
    said = capsys.readouterr().out
    assert "clip" in said
    assert "siglip" in said
    assert "Radford" in said


def test_a_misspelt_key_is_named_with_its_neighbour(capsys, tmp_path):
    said = refused(capsys, *TRAIN, f"--workdir={tmp_path}", "--config.batchsize=128")
    assert "'batchsize'" in said
    assert "did you mean batch_size" in said


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--config.batch_size=many"], "batch_size"),
        (["--config.mesh.data=8", "--config.batch_size=20"], "try 16 or 24"),
        (["--config.optimizer.name=adamv"], "did you mean adam"),
        (["--config.objective.name=mixcon.objectives.clap"], "did you mean clip"),
        (["--config.model.image.width=33"], "width"),
        (["--config.data.train.split=nosuch"], "composition"),
        (["--config.tokenizer.path=absent.json"], "there is no file absent.json"),
        (["--config.schedule.decay=cosin"], "did you mean cosine"),
        (["--config.mesh.data=9"], "8 devices"),
        (["--config.checkpoint.every=0"], "checkpoint.every=0 must be at least 1"),
        (["--config.ema=1.5"], "between 0 and 1"),
        (["--config.nonfinite=ignore"], "valid names: skip, stop"),
        (["--config.optimizer.name=sgd"], "takes no arguments b1, b2, eps"),
        (["--config.gradient.name=mixcon.train.gradients.grad_cache"], "missing a required argument: 'parts'"),
        (
            ["--config.gradient.name=mixcon.train.gradients.grad_cache", "--config.gradient.parts=0"],
            "parts=0 must be a whole number of at least 1",
        ),
        (
            ["--config.gradient.name=mixcon.train.gradients.grad_cache", "--config.gradient.parts=3"],
            "data axis of 1 times 3 micro-batches; try 15 or 18",
        ),
        (["--config.logit_scale_range=(100.0,)"], "logit_scale_range=(100.0,) must be two numbers"),
        (["--config.logit_scale_range=(100.0, 1.0)"], "the least value and the greatest"),
        (["--config.init_from=nowhere"], "No safetensors at nowhere"),
    ],
)
def test_bad_values_are_refused_before_compilation(capsys, tmp_path, overrides, expected):
    assert expected in refused(capsys, *TRAIN, f"--workdir={tmp_path}", *overrides)
    assert not (tmp_path / "checkpoints").exists()


def test_a_missing_dataset_says_where_to_get_it_and_where_to_put_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path / "data"))
    said = refused(capsys, "train", "--config", "configs/clip.py:b32", f"--workdir={tmp_path}", "--config.batch_size=8")
    assert "image_text/train-*.arrayrecord" in said
    assert "MIXCON_DATA" in said


def test_commands_on_a_folder_that_is_no_run(capsys, tmp_path):
    assert "no config.json" in refused(capsys, "eval", f"--workdir={tmp_path}")
    assert str(tmp_path) in refused(capsys, "report", str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "is damaged" in refused(capsys, "eval", f"--workdir={tmp_path}")


def test_only_some_of_the_process_flags(capsys, tmp_path):
    assert "belong together" in refused(capsys, *TRAIN, f"--workdir={tmp_path}", "--processes=2")


def test_a_workdir_that_cannot_be_written(capsys):
    assert "cannot be written" in refused(capsys, *TRAIN, "--workdir=/proc/nowhere")


def test_data_list_names_every_set(capsys):
    cli.main(["data", "list"])
    said = capsys.readouterr().out
    assert all(name in said for name in ("emoji", "cifar10_jpeg", "digits", "rosmap"))


def test_mixers_are_drawn(capsys, tmp_path):
    cli.main(["mixers", f"--out={tmp_path / 'sheet.png'}", "--only", "mixup"])
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert "unknown" in refused(capsys, "mixers", f"--out={tmp_path / 'sheet.png'}", "--only", "mixupp")


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="batchsize"):
        cli.main([*TRAIN, f"--workdir={tmp_path}", "--config.batchsize=1", "--debug"])


def test_an_interrupted_command_says_so_without_a_traceback(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "list", interrupted)
    assert "the same command goes on" in refused(capsys, "list")


def test_from_another_folder_the_configs_of_the_source_tree_are_offered(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, "train", "--config", "configs/clip.py:small", "--workdir=x")
    assert str(cli.ROOT / "configs" / "clip.py") in said
