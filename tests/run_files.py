"""What a run was given, what it left on disk, and whether two runs are the same."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp


def stored(workdir, step):
    """Everything in a checkpoint, as a flat dict of host arrays; on whatever devices it was written."""
    folder = workdir / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        arrays = reader.metadata(folder).item_metadata.tree
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), arrays)
        return ocp.tree.to_flat_dict(reader.restore(folder, restore_args=on_host), sep="/")


def measured(workdir):
    """The metric lines without what the clock says."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("timing/")} for line in lines]


def assert_same_run(workdir, reference, step):
    ours, theirs = stored(workdir, step), stored(reference, step)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    data = [json.loads((w / "checkpoints" / str(step) / "data" / "metadata").read_text()) for w in (workdir, reference)]
    assert data[0] == data[1]
    assert measured(workdir) == measured(reference)


def forget_steps_after(workdir, step):
    """Remove every checkpoint that is newer than `step`, as if the run had been killed right after it."""
    for folder in (workdir / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) > step:
            shutil.rmtree(folder)
            (workdir / "digests" / f"{folder.name}.json").unlink()


class Watched:
    """An iterator of batches that writes down which examples it hands out."""

    def __init__(self, iterator, order):
        self.iterator, self.order = iterator, order
        self.get_state, self.set_state = iterator.get_state, iterator.set_state

    def __next__(self):
        batch = next(self.iterator)
        self.order.append(batch["index"].tolist())
        return batch
