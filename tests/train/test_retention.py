"""Which steps stay, what is committed with them, and that no clock decides it."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.train import checkpoint
from mixcon.train.checkpoint import Checkpoints, damage, digest_file_of


def state(step):
    """All that `Checkpoints` asks of a state: a step and arrays."""
    return Tiny(jnp.asarray(step, jnp.int32), jnp.full((8,), step, jnp.float32))


class Tiny(checkpoint.NamedTuple):
    step: jax.Array
    weights: jax.Array


def like():
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state(0))


def save(checkpoints, steps):
    for step in steps:
        checkpoints.save(state(step), {"next_index": step}, {})
    checkpoints.close()


@pytest.fixture
def backwards(monkeypatch):
    """Every look at the clock is an hour earlier than the one before."""
    hours, now = itertools.count(), time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(hours))
    monkeypatch.setattr(time, "time_ns", lambda: int((now - 3600 * next(hours)) * 1e9))


@pytest.mark.parametrize(("keep", "keep_every", "stay"), [(1, None, [9]), (3, None, [7, 8, 9]), (2, 4, [4, 8, 9]),
                                                          (1, 0, [9]), (1, 3, [3, 6, 9])])  # fmt: skip
def test_the_newest_steps_stay_although_the_clock_goes_backwards(tmp_path, backwards, keep, keep_every, stay):
    checkpoints = Checkpoints(tmp_path, keep=keep, keep_every=keep_every)
    save(checkpoints, range(1, 10))
    assert checkpoints.steps() == stay
    assert sorted(int(p.stem) for p in (tmp_path / "digests").iterdir()) == stay


def test_a_later_session_with_an_earlier_clock_goes_on_from_the_highest_step(tmp_path, backwards):
    save(Checkpoints(tmp_path, keep=2), [1, 2, 3])
    later = Checkpoints(tmp_path, keep=2)
    assert later.restore(like()).step == 3
    save(later, [4])
    assert later.steps() == [3, 4]
    np.testing.assert_array_equal(Checkpoints(tmp_path).restore(like()).state.weights, np.full(8, 4.0))


def test_digests_are_on_disk_before_the_step_is(tmp_path, monkeypatch):
    """Killed between the two, a save leaves no step that nothing vouches for."""
    seen = []
    commit = checkpoint.atomicity.AtomicRenameTemporaryPath.finalize

    async def look_then_commit(self):
        if self.get_final().name == "5":  # the step; its items are committed before, inside of it
            step = tmp_path / "checkpoints" / "5"
            seen.append((step.exists(), checkpoint.readable(digest_file_of(step))))
        await commit(self)

    monkeypatch.setattr(checkpoint.atomicity.AtomicRenameTemporaryPath, "finalize", look_then_commit)
    save(Checkpoints(tmp_path), [5])
    ((there, found),) = seen
    assert not there
    assert any(name.startswith("state/") and "/d/" in name for name in found), "arrays are vouched for"
    assert {"provenance/metadata", "data/metadata"} <= found.keys()
    step = tmp_path / "checkpoints" / "5"
    assert damage(step, digest_file_of(step)) is None


def test_a_save_cut_off_after_its_digests_is_no_step_and_is_named(tmp_path, monkeypatch):
    save(Checkpoints(tmp_path), [1])

    commit = checkpoint.atomicity.AtomicRenameTemporaryPath.finalize

    async def killed(self):
        if self.get_final().name == "2":
            raise RuntimeError("killed")
        await commit(self)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.atomicity.AtomicRenameTemporaryPath, "finalize", killed)
        with pytest.raises(RuntimeError, match="killed"):
            save(Checkpoints(tmp_path), [2])
    assert (tmp_path / "digests" / "2.json").exists()
    again = Checkpoints(tmp_path)
    assert again.unfinished() == [2]
    assert again.restore(like()).step == 1
    save(again, [2])
    assert (again.steps(), again.unfinished()) == ([1, 2], [])
    assert Checkpoints(tmp_path).restore(like()).warnings == []


@pytest.mark.parametrize("lost", ["missing", "cut"])
def test_a_step_without_checksums_is_used_with_a_warning(tmp_path, lost):
    save(Checkpoints(tmp_path), [1, 2])
    digest_file = tmp_path / "digests" / "2.json"
    digest_file.unlink() if lost == "missing" else digest_file.write_text(digest_file.read_text()[:20])
    found = Checkpoints(tmp_path).restore(like())
    assert (found.step, found.warnings) == (2, ["checkpoint of step 2 has no checksums"])


def test_processes_share_the_check_and_together_miss_no_file(tmp_path):
    save(Checkpoints(tmp_path), [1])
    step = tmp_path / "checkpoints" / "1"
    for victim in (p for p in sorted(step.rglob("*")) if p.is_file()):
        whole = victim.read_bytes()
        victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        found = [damage(step, digest_file_of(step), share=(i, 3)) for i in range(3)]
        assert sum(reason is not None for reason in found) == 1, victim
        victim.write_bytes(whole)


def test_asking_twice_for_one_step_writes_it_once(tmp_path):
    save(Checkpoints(tmp_path), [1, 1, 2, 2])
    assert Checkpoints(tmp_path).steps() == [1, 2]
