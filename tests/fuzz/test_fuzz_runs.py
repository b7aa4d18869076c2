"""Damaged files of a run: a step is passed over and named, a page is drawn of what is left; never a traceback."""

import json
import shutil
import time

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from mutations import changed, mutated

from mixcon import cli, report
from mixcon.errors import InputError
from mixcon.train import mesh as meshes
from mixcon.train.checkpoint import Checkpoints
from mixcon.train.logbook import keep_lines_until
from mixcon.train.state import Health, TrainState


def state(step):
    params = {"a": jnp.full((4, 3), float(step)), "b": jnp.ones(2)}
    number = jnp.asarray(step, jnp.int32)
    return TrainState(number, jnp.uint32(7), params, {}, (), {}, params, Health(number * 0, number * 0 - 1))


def like(tree):
    shapes = jax.eval_shape(lambda: tree)
    places = meshes.shardings(shapes, meshes.make_mesh(data=1, devices=jax.devices()[:1]))
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(state(step), {"next_index": step}, {"config": {"seed": 0}})
    checkpoints.close()
    return folder


def fuzz_checkpoints(whole, tmp_path, count):
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file() and p.stat().st_size < 20_000)
    readable = [p for p in files if whole.joinpath(p).read_bytes()[:1] in (b"{", b"[")]
    assert len(readable) >= 8, "digests, metadata, provenance, data state"
    wanted = like(state(0))

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def fuzz(data):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        if digests_gone := data.draw(st.booleans()):  # then nothing but Orbax and the loop stand between
            shutil.rmtree(folder / "digests")
        chosen = data.draw(st.sampled_from([p for p in readable if (folder / p).exists()]))
        before = (folder / chosen).read_bytes()
        if data.draw(st.booleans()):
            after = json.dumps(data.draw(changed(json.loads(before)))).encode()
        else:
            after = data.draw(mutated([before]))
        (folder / chosen).write_bytes(after)
        start, found = time.monotonic(), None
        try:
            found = Checkpoints(folder).restore(wanted)
        except InputError:
            assert digests_gone or chosen.parts[0] == "digests"
        assert time.monotonic() - start < 10
        if found is not None:
            expected = state(found.step)
            jax.tree.map(np.testing.assert_array_equal, found.state.params, expected.params)
            assert isinstance(found.data, dict)
            assert isinstance(found.provenance, dict)
            assert found.step == 2 or found.warnings, "what was passed over is named"

    fuzz()


def test_damaged_metadata_of_a_checkpoint(whole, tmp_path):
    fuzz_checkpoints(whole, tmp_path, 15)


@pytest.mark.slow
def test_much_damaged_metadata_of_a_checkpoint(whole, tmp_path):
    fuzz_checkpoints(whole, tmp_path, 50)


LINES = [{"step": i, "time": 1.0 * i, "train/loss": 1.0 / i, "eval/x/image_to_text/R@10": 0.1} for i in range(1, 5)]
RUN = {
    "config.json": json.dumps({"steps": 4, "seed": 0, "model": {"width": 8}}).encode(),
    "run.json": json.dumps(
        {"argv": ["mixcon"], "versions": {"jax": "1"}, "device": {"kind": "cpu", "count": 1}}
    ).encode(),
    "goodput.json": json.dumps({"step": 1.5, "compile": 2.0}).encode(),
    "metrics.jsonl": b"".join(json.dumps(line).encode() + b"\n" for line in LINES),
}


def fuzz_run_files(tmp_path, count, draw_page):
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def fuzz(data):
        name = data.draw(st.sampled_from(sorted(RUN)))
        for other, content in RUN.items():
            (tmp_path / other).write_bytes(content)
        if name != "metrics.jsonl" and data.draw(st.booleans()):
            content = json.dumps(data.draw(changed(json.loads(RUN[name])))).encode()
        elif data.draw(st.booleans()):
            lines = [json.dumps(data.draw(changed(line))).encode() for line in LINES[:2]]
            content = b"\n".join([*lines, RUN[name]])
        else:
            content = data.draw(mutated([RUN[name]]))
        (tmp_path / name).write_bytes(content)
        report.summary_lines(tmp_path)
        if draw_page:
            report.write_report(tmp_path)
        keep_lines_until(tmp_path / "metrics.jsonl", 3)
        kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert all(isinstance(line, dict) and line["step"] <= 3 for line in kept)

    fuzz()


def test_damaged_logs(tmp_path):
    fuzz_run_files(tmp_path, 100, draw_page=False)


@pytest.mark.slow
def test_pages_of_damaged_runs(tmp_path):
    fuzz_run_files(tmp_path, 15, draw_page=True)


DAMAGED = [b"{", b"[]", b"null", b"{}", b"\xff", b'{"experiment": 3}', b'{"experiment": "a.b"}', b"[" * 10**5]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_run_whose_config_is_damaged_is_refused(capsys, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SystemExit) as left:
        cli.main(["eval", f"--workdir={tmp_path}"])
    said = capsys.readouterr().err
    assert left.value.code == 2, said
    assert said.count("\n") == 1
