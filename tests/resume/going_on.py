"""One of several processes that go on with a run: whether it restored what lies there, and which examples it is given.

python going_on.py WORKDIR OUT COORDINATOR PROCESSES PROCESS [overrides...]
"""

import json
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from run_files import Watched, stored
from tiny import tiny_config

from mixcon.train import distributed, loop
from mixcon.train.checkpoint import Checkpoints

workdir, out, coordinator, processes, process, *overrides = sys.argv[1:]
build, restore = loop.build, Checkpoints.restore
order: list[list[int]] = []
compared: dict[str, bool] = {}


def watched(config, workdir):
    experiment = build(config, workdir)
    return experiment._replace(batches=lambda: Watched(experiment.batches(), order))


def compared_with_disk(self, like, *, step=None):
    found = restore(self, like, step=step)
    kept = stored(pathlib.Path(workdir), found.step)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found.state):
        name = "/".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path)
        mine = [np.array_equal(shard.data, kept[name][shard.index]) for shard in leaf.addressable_shards]
        compared[name] = bool(mine) and all(mine)
    return found


with distributed.joined(coordinator=coordinator, processes=int(processes), process=int(process)):
    loop.build, Checkpoints.restore = watched, compared_with_disk
    loop.train(tiny_config(*overrides), workdir, progress=False)
pathlib.Path(out).write_text(json.dumps({"order": order, "compared": compared}))
