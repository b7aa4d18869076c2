"""Several processes from the same command."""

from __future__ import annotations

import jax
from jax._src import xla_bridge

from mixcon.errors import InputError


def initialize(*, coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the other processes, if there are any.

    With explicit addresses (a plain box) those are used. Otherwise JAX looks for a TPU pod, SLURM, Open MPI
    or Kubernetes; where it finds none, this process runs alone.

    Args:
      coordinator: `host:port` of process 0.
      processes: how many there are.
      process: which one this is, from 0.

    Raises:
      InputError: only some of the three are given, or they contradict each other.
    """
    given = [coordinator, processes, process]
    if any(g is not None for g in given):
        if any(g is None for g in given):
            raise InputError("--coordinator, --processes and --process belong together; give all three, or none")
        assert processes is not None
        assert process is not None
        if not 0 <= process < processes:
            raise InputError(f"--process={process} must lie between 0 and --processes={processes}")
        jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)
        return
    if xla_bridge.backends_are_initialized():  # a library caller has been using JAX: too late to join anyone
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise  # a cluster was found, but something about it is wrong
