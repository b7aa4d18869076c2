"""How the programs of tests are compiled: quickly rather than well, for each runs once, on tiny shapes.

A level of optimisation that the environment names is kept: `XLA_FLAGS=--xla_backend_optimization_level=3` compiles as
users' programs are compiled, as one side of `.ci/run` does.
"""

import importlib.metadata
import os

LEVEL, EMITTERS = "xla_backend_optimization_level", "xla_cpu_use_fusion_emitters"
DEVICES = "--xla_force_host_platform_device_count"
QUICK, USUAL = [f"--{LEVEL}=0"], {LEVEL: 3}  # flags, and the same as options of one compilation
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones have no other emitters, and know no such flag
    QUICK, USUAL = [*QUICK, f"--{EMITTERS}=false"], {**USUAL, EMITTERS: True}


def xla_flags(devices: int) -> str:
    """`XLA_FLAGS` of a process that sees so many virtual devices."""
    named = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(DEVICES)]
    quick = [] if any(flag.startswith(f"--{LEVEL}") for flag in named) else QUICK
    return " ".join([*named, *quick, f"{DEVICES}={devices}"])
