"""What a checkpoint was made with: recorded in each, compared when a run goes on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from mixcon import config as configs
from mixcon.errors import InputError

PACKAGES = ("mixcon", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
FLAGS = ("jax_default_matmul_precision", "jax_default_prng_impl", "jax_enable_x64", "jax_threefry_partitionable")
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# What may change between a checkpoint and its resumption without changing what is computed.
FREE_KEYS = ("mesh", "log_every", "eval_every", "checkpoint")
# What a run stands on: the same numbers up to rounding on another ground, the same bits only on the same.
GROUND = ("versions", "device", "mesh", "processes", "flags", "git")


def provenance(config_text: str, mesh: Mesh) -> dict[str, Any]:
    """Resolved config, versions, devices, mesh, flags and git state, as a checkpoint keeps them.

    Example:
      >>> provenance(configs.to_json(config), meshes.make_mesh())["device"]["kind"]
      'cpu'
    """
    device = jax.devices()[0]
    return {
        "config": json.loads(config_text),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        "device": {
            "kind": device.device_kind,
            "platform": device.platform,
            "count": jax.device_count(),
            "processor": processor() if device.platform == "cpu" else "",  # it decides which instructions XLA takes
        },
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
        "flags": {
            **{name: os.environ.get(name, "") for name in VARIABLES},
            **{f: getattr(jax.config, f) for f in FLAGS},
        },
        "git": git_state(),
    }


def ground_changes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """`what: now ..., checkpoint ...` for whatever besides the config may change bits; parts not recorded are left out.

    Example:
      >>> ground_changes({"versions": {"jax": "0.12.0"}}, {"versions": {"jax": "0.10.2"}})
      ["versions.jax: now '0.12.0', checkpoint '0.10.2'"]
    """
    both = [part for part in GROUND if part in ours and part in theirs]
    found = configs.differences({part: ours[part] for part in both}, {part: theirs[part] for part in both})
    return [f"{key}: now {now!r}, checkpoint {then!r}" for key, (now, then) in found.items()]


def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, step: int, allow_config_change: bool) -> list[str]:
    """Refuse to go on under another config; say what else is not as it was.

    Args:
      ours: provenance of this session.
      theirs: that of the checkpoint.
      step: of the checkpoint.
      allow_config_change: go on all the same, and say so.

    Returns:
      Warnings, one sentence each.

    Raises:
      InputError: the config differs in what is computed.
    """
    warnings = []
    found = configs.differences(ours["config"], theirs["config"])
    changed = {k: v for k, v in found.items() if k.split(".")[0] not in FREE_KEYS}
    if changed:
        lines = "; ".join(f"{key}: now {new!r}, checkpoint {old!r}" for key, (new, old) in changed.items())
        if not allow_config_change:
            raise InputError(
                f"the checkpoint of step {step} was made with another config ({lines}). "
                "Use another --workdir, or --allow-config-change to go on with the new values."
            )
        warnings.append(f"going on with a changed config ({lines})")
    if lines := "; ".join(ground_changes(ours, theirs)):
        warnings.append(f"the checkpoint of step {step} stands on other ground, so bits may differ ({lines})")
    return warnings


def processor() -> str:
    """Model of the host's processor, as far as it can be told."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def git_state() -> str:
    """Commit of the working folder, with `+` when there are changes; empty outside a repository."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else ""
