"""What is saved comes back, on any topology; what is damaged is put aside and named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixcon.errors import InputError
from mixcon.train import mesh as meshes
from mixcon.train.checkpoint import Checkpoints, damage, digests
from mixcon.train.state import Health, TrainState

TX = optax.adamw(1e-3)


def state(step, width=32):
    params = {
        "mlp": {"kernel": jnp.arange(16.0 * width).reshape(16, width) + step, "bias": jnp.full((width,), 1.0 * step)}
    }
    number = jnp.asarray(step, jnp.int32)
    seed = jnp.uint32(7)
    return TrainState(number, seed, params, {"mean": jnp.ones(3)}, TX.init(params), {"queue": jnp.ones((4, 2))}, params,
                      Health(number * 0, number * 0 - 1))  # fmt: skip


def like(tree, mesh=None, fsdp=False):
    shapes = jax.eval_shape(lambda: tree)
    places = meshes.shardings(shapes, mesh or meshes.make_mesh(data=1, devices=jax.devices()[:1]), fsdp=fsdp)
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of steps 1, 2 and 3."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(state(step), {"next_index": step}, {"config": {"seed": 0}})
    checkpoints.close()
    return tmp_path


def restore(run, **kwargs):
    return Checkpoints(run).restore(like(state(0)), **kwargs)


def test_everything_comes_back(run):
    found = restore(run)
    assert (found.step, found.data, found.provenance, found.warnings) == (
        3,
        {"next_index": 3},
        {"config": {"seed": 0}},
        [],
    )
    assert jax.tree.structure(found.state) == jax.tree.structure(state(3))
    jax.tree.map(np.testing.assert_array_equal, found.state, state(3))


@pytest.mark.parametrize(("data", "model"), [(8, 1), (4, 2), (2, 1)])
def test_restores_onto_another_number_of_devices(run, data, model, monkeypatch):
    monkeypatch.setattr(meshes, "FSDP_MIN_SIZE", 1)
    mesh = meshes.make_mesh(data=data, model=model, devices=jax.devices()[: data * model])
    found = Checkpoints(run).restore(like(state(0), mesh, fsdp=True))
    jax.tree.map(np.testing.assert_array_equal, found.state, state(3))
    assert found.state.opt_state[0].mu["mlp"]["kernel"].sharding.shard_shape((16, 32)) == (16, 32 // data)
    assert found.state.step.sharding.is_fully_replicated


def test_a_named_step_and_a_missing_one(run):
    assert restore(run, step=2).step == 2
    with pytest.raises(InputError, match=r"no checkpoint of step 9 .*\[1, 2, 3\]"):
        restore(run, step=9)


def test_no_checkpoint_is_no_error(tmp_path):
    assert restore(tmp_path) is None


def files(run, step=3):
    return sorted(p for p in (run / "checkpoints" / str(step)).rglob("*") if p.is_file())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("hurt", [flip, lambda p: p.write_bytes(b""), lambda p: p.write_bytes(p.read_bytes()[:-1]),
                                  lambda p: p.unlink()], ids=["flip", "empty", "truncate", "delete"])  # fmt: skip
def test_a_damaged_newest_step_is_put_aside_and_named(run, hurt):
    for number, _ in enumerate(files(run)):
        victim = files(run)[number]
        kept = victim.read_bytes()
        hurt(victim)
        reason = damage(run / "checkpoints" / "3", run / "digests" / "3.json")
        assert reason is not None, victim
        assert victim.name in reason
        victim.write_bytes(kept)
    hurt(files(run)[-1])
    found = restore(run)
    assert found.step == 2
    assert "checkpoint of step 3 was passed over" in found.warnings[0]
    jax.tree.map(np.testing.assert_array_equal, found.state, state(2))
    assert [p.name for p in (run / "quarantine").iterdir()] == ["3-0"]
    again = Checkpoints(run)  # the number is free again
    again.save(state(3), {"next_index": 3}, {})
    again.close()
    assert restore(run).step == 3


def test_without_digests_a_truncated_array_is_still_not_trusted(run):
    (run / "digests" / "3.json").unlink()
    for path in files(run):
        if path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert restore(run).step == 2


def test_an_uncommitted_step_is_not_a_step(run):
    (run / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
    assert restore(run).step == 3


def test_nothing_readable_is_an_error_not_a_fresh_start(run):
    for step in (1, 2, 3):
        files(run, step)[0].write_bytes(b"")
    for _ in range(2):  # the second start finds what the first one found
        with pytest.raises(InputError, match=r"no checkpoint in .* can be read"):
            restore(run)
    assert not (run / "quarantine").exists()


def test_what_was_put_aside_before_is_not_in_the_way(run):
    (run / "quarantine" / "3-0").mkdir(parents=True)
    (run / "quarantine" / "3-2").mkdir()
    files(run, 3)[0].write_bytes(b"")
    assert restore(run).step == 2
    assert (run / "quarantine" / "3-1").is_dir()


def test_another_model_is_told_by_its_shapes(run):
    with pytest.raises(InputError, match=r"another model.*kernel: checkpoint \(16, 32\), model \(16, 8\)"):
        Checkpoints(run).restore(like(state(0, width=8)))
    assert restore(run).step == 3, "a mismatch must not cost a checkpoint"


def test_retention_keeps_the_newest_and_every_nth(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(1, 10):
        checkpoints.save(state(step), {"next_index": step}, {})
    checkpoints.close()
    assert checkpoints.steps() == [4, 8, 9]
    assert sorted(int(p.stem) for p in (tmp_path / "digests").glob("*.json")) == [4, 8, 9]


def test_digests_cover_every_file(run):
    found = digests(run / "checkpoints" / "3")
    assert len(found) == len(files(run))
    assert json.loads((run / "digests" / "3.json").read_text()) == found
