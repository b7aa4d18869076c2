"""Chips and topologies by name: published figures, and the devices that the compiler describes."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

import jax

from mixcon.config import nearest
from mixcon.errors import InputError


class Chip(NamedTuple):
    """Published figures of one chip; None where nothing is published or it would mean nothing."""

    name: str
    flops: float | None  # peak, bfloat16, 1/s
    memory: float | None  # bytes
    memory_rate: float | None  # bytes/s
    link_rate: float | None  # bytes/s over all links of a chip, both directions together
    clock: float | None  # 1/s, of the matrix units: peak over what they do in a cycle


# Cloud TPU documentation, "System architecture" of each version.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * 2**30, 1228e9, 300e9, 275e12 / (8 * 2 * 128**2)),
    "v5e": Chip("TPU v5e", 197e12, 16 * 2**30, 819e9, 200e9, 197e12 / (4 * 2 * 128**2)),
    "v5p": Chip("TPU v5p", 459e12, 95 * 2**30, 2765e9, 600e9, 459e12 / (8 * 2 * 128**2)),
    "v6e": Chip("TPU v6e", 918e12, 32 * 2**30, 1640e9, 448e9, 918e12 / (4 * 2 * 256**2)),
    "cpu": Chip("this CPU", None, None, None, None, None),
}


# So that the TPU compiler asks nobody about a TPU that is not there, and takes no lock on one that is.
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Topology(NamedTuple):
    """A named machine: its chip and its devices, none of which need be here."""

    name: str
    chip: Chip
    devices: list[Any]


def topology(name: str) -> Topology:
    """A machine by name.

    Args:
      name: `v5e:16x16`, `v5p:4x4x8`, `v6e:16x16`, `v4:4x4x4`; `cpu:8` is so many devices of this machine.

    Raises:
      InputError: unknown name, a shape that the chip does not come in, or no TPU compiler installed.

    Example:
      >>> len(topology("cpu:1").devices)
      1
    """
    kind, _, shape = name.partition(":")
    if kind.lower() in ("a100", "h100", "h200", "b200", "gpu", "cuda"):
        raise InputError(
            f"topology {name!r}: XLA's GPU compiler needs the CUDA plug-in and a GPU, or a description of one, to "
            "choose its kernels; mixcon plans for TPUs, and for cpu:N."
        )
    if kind not in CHIPS:
        raise InputError(f"unknown chip in topology {name!r}; {nearest(kind, CHIPS)} Write it like v5e:16x16.")
    if kind != "cpu" and not re.fullmatch(r"\d+(x\d+)*", shape):
        example = "16x16" if kind.endswith("e") else "4x4x4"
        raise InputError(f"topology {name!r} has no shape; write it like {kind}:{example}")
    if kind == "cpu":
        count = int(shape) if shape.isdigit() else 0
        if not 1 <= count <= jax.device_count():
            raise InputError(
                f"topology {name!r}: so many devices are not here (now: {jax.device_count()}); "
                "start it with XLA_FLAGS=--xla_force_host_platform_device_count=N for more"
            )
        return Topology(name, CHIPS[kind], jax.devices()[:count])
    for key, value in NO_TPU.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    try:
        found: Any = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # whatever libtpu, or its absence, raises
        import importlib.util

        if importlib.util.find_spec("libtpu") is None:
            raise InputError("the TPU compiler is not installed: pip install -e '.[tpu-plan]'") from error
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"the TPU compiler does not know topology {name!r} ({reason})") from error
    return Topology(name, CHIPS[kind], list(found.devices))
