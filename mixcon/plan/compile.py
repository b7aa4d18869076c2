"""Compiles a config's step for a topology, and reads from the program what it needs of a chip."""

from __future__ import annotations

import pathlib
import re
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from mixcon import config as configs
from mixcon.plan import flops
from mixcon.plan.activations import saved
from mixcon.plan.chips import Topology
from mixcon.plan.program import read_program
from mixcon.plan.stand_in import with_stand_ins
from mixcon.train import loop
from mixcon.train import mesh as meshes
from mixcon.train.state import PyTree, TrainState

UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Plan(NamedTuple):
    """What one step needs; bytes are of one chip, FLOPs of the whole machine, seconds are predictions."""

    config: str  # what was planned, as `mixcon train` would be given it
    topology: str
    chip: str
    chips: int
    mesh: Mapping[str, int]
    batch_size: int
    fits: bool
    memory: float | None  # bytes of a chip that a program may use
    params: float
    optimizer: float
    other_state: float
    batch: float
    activations: float | None  # of `temporaries`, what the forward pass keeps for the backward pass; as traced
    temporaries: float  # activations, gradients and workspace at their peak; as compiled
    flops: float  # as computed, recomputation included
    collectives: Mapping[str, Mapping[str, float]]  # kind -> count and bytes of a chip and step
    seconds: Mapping[str, float]  # by bound: compute, network, and the compiler's estimate; empty for this CPU
    utilization: float | None  # share of the peak at the slowest of these
    stand_ins: str
    compile_seconds: float

    @property
    def total(self) -> float:
        """Bytes of a chip at the peak."""
        return self.params + self.optimizer + self.other_state + self.batch + self.temporaries


def plan(config: ml_collections.ConfigDict, topology: Topology, *, name: str = "") -> Plan:
    """Compile one training step for a machine that need not be here.

    Args:
      config: resolved, as for training.
      topology: from `chips.topology`.
      name: how the config is called in the result.

    Returns:
      The plan, also when the program does not fit: then with what it would have needed.

    Raises:
      InputError: mesh, batch or config that training would refuse, too.

    Example:
      >>> plan(configs.load("configs/clip.py:l14"), chips.topology("v5e:16x16"))
    """
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        step = trace(config, topology, pathlib.Path(folder))
    mesh, state, batch, kept = step.mesh, step.state, step.batch, step.activations
    needed, text = compiled_size(step.lowered)
    program = read_program(text) if text else None
    sizes = {key: share(getattr(state, key)) for key in TrainState._fields}
    held = sum(sizes.values()) + share(batch)
    limit = usable_memory(topology)
    collectives = program.collectives if program else {}
    state_bytes = sum(sizes.values())
    touched = 2 * state_bytes + share(batch) + 2 * needed  # read and written at least once
    seconds = predicted(topology, step.flops, touched, collectives, program.cycles if program else 0.0)
    slowest = max(seconds.values(), default=0.0)
    peak = (topology.chip.flops or 0.0) * mesh.size
    return Plan(
        config=name,
        topology=topology.name,
        chip=topology.chip.name,
        chips=mesh.size,
        mesh=dict(mesh.shape),
        batch_size=config.batch_size,
        fits=text is not None and (limit is None or held + needed <= limit),
        memory=limit,
        params=sizes["params"],
        optimizer=sizes["opt_state"],
        other_state=sum(v for k, v in sizes.items() if k not in ("params", "opt_state")),
        batch=share(batch),
        activations=None if kept is None else min(kept, needed),
        temporaries=needed,
        flops=step.flops,
        collectives=collectives,
        seconds=seconds,
        utilization=step.flops / (peak * slowest) if peak and program else None,
        stand_ins=step.stand_ins,
        compile_seconds=round(time.perf_counter() - begin, 1),
    )


class Step(NamedTuple):
    """One training step, traced and lowered for a topology."""

    mesh: Mesh
    state: TrainState  # shapes and places
    batch: Mapping[str, PyTree]  # shapes and places
    lowered: Any
    flops: float
    activations: float | None  # bytes of a chip; None where the experiment does not tell its task
    stand_ins: str


def trace(config: ml_collections.ConfigDict, topology: Topology, workdir: pathlib.Path) -> Step:
    """The step that training would compile, for devices that need not be here.

    Example:
      >>> text = trace(config, topology, tmp_path).lowered.compile().as_text()
    """
    mesh = meshes.make_mesh(**config.mesh, devices=topology.devices)
    parts = config.gradient.get("parts", 1)
    meshes.check_batch(config.batch_size, mesh, parts=parts)
    ready, stand_ins = with_stand_ins(config, workdir)
    with jax.numpy_dtype_promotion("standard"):
        row = one_row(ready, workdir)
        experiment = loop.build(ready, workdir)
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        shapes, places = loop.state_layout(experiment, ready, mesh)
        state = loop.with_sharding(shapes, places)
        split = meshes.batch_sharding(mesh)
        rows = {
            key: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype, sharding=split)
            for key, x in row.items()
        }
        whole = meshes.replicated(mesh)
        fixed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), experiment.fixed)
        batch = rows | dict(fixed)
        traced = jax.jit(experiment.step, donate_argnums=0, out_shardings=(places, None)).trace(state, batch)
        lowered = traced.lower()
    kept = None
    if experiment.task and not fixed:
        with jax.numpy_dtype_promotion("standard"):
            kept = saved(experiment.task, state, rows, parts=parts) / mesh.shape["data"]
    return Step(mesh, state, batch, lowered, flops.count(traced.jaxpr), kept, stand_ins)


def one_row(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """A batch of one example: shapes and types of what the step will be given."""
    single = configs.from_json(configs.to_json(config))
    with single.unlocked():
        single.batch_size = 1
    return loop.device_part(next(loop.build(single, workdir).batches()))


def compiled_size(lowered: Any) -> tuple[float, str | None]:
    """Temporary bytes of a chip, and the program's text; no text when the compiler found that it does not fit."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        # "Used 21.4G of 15.7G hbm": arguments count as used, too
        temporary = re.search(r"(?:HLO temp|temporar)\w*\s*\(?([\d.]+)([BKMGT])", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) and temporary is None:
            raise
        used = temporary or re.search(r"Used ([\d.]+)([BKMGT])", str(error))
        return (float(used[1]) * UNITS[used[2]] if used else float("inf")), None
    return float(compiled.memory_analysis().temp_size_in_bytes), compiled.as_text()


def share(tree: PyTree) -> float:
    """Bytes of a tree that one chip holds."""
    return float(
        sum(
            np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=float) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def usable_memory(topology: Topology) -> float | None:
    """What a program may use: a part of a chip's memory is the system's own."""
    return None if topology.chip.memory is None else topology.chip.memory * 0.98


def predicted(
    topology: Topology, work: float, touched: float, collectives: Mapping[str, Mapping[str, float]], cycles: float
) -> dict[str, float]:
    """Seconds of a step by each bound alone."""
    chip, count = topology.chip, len(topology.devices)
    if chip.flops is None or chip.memory_rate is None or chip.link_rate is None or chip.clock is None:
        return {}
    moved = sum(kind["bytes"] for kind in collectives.values())
    found = {"compute": work / (chip.flops * count)}
    if not cycles:  # there is no program: it did not fit
        return found
    found |= {"memory": touched / chip.memory_rate, "network": moved / chip.link_rate}
    return found | {"compiler": cycles / chip.clock}
