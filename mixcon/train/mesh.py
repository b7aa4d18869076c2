"""The device mesh, and where every array lives on it.

Axes: `data` (the batch, and parameters when fully sharded) and `model` (tensor parallel, by rule).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.models.functional import map_with_path
from mixcon.train.gradients import check_parts
from mixcon.train.state import PyTree

Rules = Sequence[tuple[str, tuple[str | None, ...]]]
FSDP_MIN_SIZE = 2**12  # smaller parameters cost more to gather than to keep


def make_mesh(*, data: int = -1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with axes `(data, model)`; -1 takes all devices that the other axis leaves.

    A single process may use fewer devices than it has; several processes use all of them.

    Raises:
      InputError: the axes do not multiply to a number of devices that there are.

    Example:
      >>> mesh = make_mesh(data=-1, model=2)
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data == -1 and model > 0 and count % model == 0:
        data = count // model
    wanted = data * model
    if data < 1 or model < 1 or wanted > count or (jax.process_count() > 1 and wanted != count):
        raise InputError(f"mesh data={data} × model={model} does not fit the {count} devices here; use data=-1")
    return jax.make_mesh((data, model), ("data", "model"), (AxisType.Auto, AxisType.Auto), devices=devices[:wanted])


def shardings(tree: PyTree, mesh: Mesh, *, rules: Rules = (), fsdp: bool = False) -> PyTree:
    """A sharding for every leaf of a state.

    Optimiser moments and averages carry the parameter's path inside their own, so one rule serves all.

    Args:
      tree: arrays or shapes.
      mesh: from `make_mesh`.
      rules: pairs `(regex, axes)`, the first regex found in a leaf's path decides; axes such as
        `(None, "model")` belong to the leaf's last dimensions.
      fsdp: also split each large leaf over `data`, along its largest dimension that divides.

    Raises:
      InputError: a rule whose axis does not divide the dimension.
    """
    configs.check_pairs("sharding.rules", rules, Sequence)

    def place(path: str, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes: list[str | None] = [None] * leaf.ndim
        rule = next((r for r in rules if re.search(r[0], path) and len(r[1]) <= leaf.ndim), None)
        if rule is not None:
            axes[leaf.ndim - len(rule[1]) :] = rule[1]
        for size, axis in zip(leaf.shape, axes, strict=True):
            if axis is not None and axis not in mesh.shape:
                raise InputError(f"sharding rule {rule} names axis {axis!r}; the mesh has {', '.join(mesh.shape)}")
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"sharding rule {rule}: {path} {leaf.shape} is not divisible by {axis}={mesh.shape[axis]}"
                )
        if fsdp and np.prod(leaf.shape, dtype=int) >= FSDP_MIN_SIZE and "data" not in axes:
            free = [d for d in range(leaf.ndim) if axes[d] is None and leaf.shape[d] % mesh.shape["data"] == 0]
            if free:
                axes[max(free, key=lambda d: leaf.shape[d])] = "data"
        return NamedSharding(mesh, PartitionSpec(*axes))

    return map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis of every batch array over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Refuse a batch that the data axis (or its micro-batches) cannot share equally."""
    check_parts(parts)
    data = mesh.shape["data"]
    if batch_size < 1 or batch_size % (data * parts):
        step = data * parts
        lower = max(batch_size // step * step, step)
        what = f"data axis of {data}" + (f" times {parts} micro-batches" if parts > 1 else "")
        raise InputError(f"batch_size={batch_size} is not divisible by the {what}; try {lower} or {lower + step}")


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows of a host batch → global arrays."""
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)  # all arrays in one call: for tiny steps the call is what costs
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
