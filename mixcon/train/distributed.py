"""Several processes from the same command, which find each other, and end together."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax._src import distributed, xla_bridge
from jax._src.clusters import ClusterEnv

from mixcon.errors import InputError
from mixcon.train import watch

EXIT_LOST = 75  # EX_TEMPFAIL: the same command may succeed when it is started again
GRACE = 5.0  # seconds in which a process may find in its own words what has stopped another
PATIENCE = 300  # seconds for which processes wait for each other at the start


class Place(NamedTuple):
    """Where this process stands among the others."""

    coordinator: str
    processes: int
    process: int
    devices: list[int] | None  # of this machine that are this process's; None: all


@contextlib.contextmanager
def joined(
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    patience: int = PATIENCE,
) -> Iterator[None]:
    """Among the other processes, if there are any, while the body runs.

    With explicit addresses (a plain box) those are used. Otherwise JAX looks for a TPU pod, SLURM, Open MPI
    or Kubernetes; where it finds none, this process runs alone.

    When another process dies, or stops by an error, this one says so in one sentence and exits with `EXIT_LOST`.

    Args:
      coordinator: `host:port` of process 0.
      processes: how many there are.
      process: which one this is, from 0.
      patience: seconds to wait for the others at the start.

    Raises:
      InputError: only some of the three are given, or they contradict each other, or the others do not come.

    Example:
      >>> with joined(coordinator="host0:9999", processes=2, process=1):  # doctest: +SKIP
      ...     loop.train(config, workdir)
    """
    place = find(coordinator, processes, process, patience)
    if place is None:
        yield
        return
    speaking = threading.Lock()  # one sentence a process: whoever takes it says it

    def lost(other: int, what: str) -> None:
        if what == "stopped":
            time.sleep(GRACE)
        speaking.acquire()
        end = "stopped by an error" if what == "stopped" else "has died"
        print(
            f"mixcon: process {other} of {place.processes} {end}, so process {place.process} ends too; the same "
            "command, started again on all of them, goes on from the last complete checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_LOST)

    line = join(place, patience, lost)
    try:
        yield
        meet("end")
    except BaseException as error:
        if not isinstance(error, (InputError, KeyboardInterrupt)):
            time.sleep(2 * GRACE)  # most likely a collective without its peer: the watch knows whose end it was
        speaking.acquire()
        if line is not None:
            line.leave("stopped")
        raise
    if line is not None:
        line.leave()


def meet(where: str) -> None:
    """Wait for all processes, ten minutes at most: in the first collective after it, Gloo waits for half a minute only.

    Example:
      >>> meet("compiled")  # at once where there is only one
    """
    if (client := distributed.global_state.client) is not None:
        client.wait_at_barrier(f"mixcon/{where}", 600_000)


def several() -> bool:
    """Whether this process has joined others."""
    return distributed.global_state.client is not None


def find(coordinator: str | None, processes: int | None, process: int | None, patience: int) -> Place | None:
    """What was given on the command line, or what JAX finds in the environment; None: alone."""
    given = [coordinator, processes, process]
    if any(g is not None for g in given):
        if any(g is None for g in given):
            raise InputError("--coordinator, --processes and --process belong together; give all three, or none")
        assert processes is not None
        assert process is not None
        if not 0 <= process < processes:
            raise InputError(f"--process={process} must lie between 0 and --processes={processes}")
    elif xla_bridge.backends_are_initialized():  # a library caller has been using JAX: too late to join anyone
        return None
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        devices = [int(i) for i in os.environ.get("JAX_LOCAL_DEVICE_IDS", "").split(",") if i] or None
        found = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, processes, process, devices, None, patience
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"JAX found a cluster, and cannot use it: {error}") from error
    address, processes, process, local = found
    if address is None or processes == 1:
        return None
    host, _, port = address.rpartition(":")
    if processes is None or process is None or not host or not port.isdigit():
        raise InputError(f"coordinator {address!r} must be HOST:PORT, with --processes and --process beside it")
    return Place(address, processes, process, list(local) if local else None)


def join(place: Place, patience: int, lost: watch.Lost) -> watch.Hub | watch.Spoke | None:
    """Meet the others; the line by which they know of each other's end."""
    host, _, port = place.coordinator.rpartition(":")
    host = host.strip("[]")
    here = place.process == 0
    with giving_up(place, patience):
        jax.distributed.initialize(
            place.coordinator if here else f"127.0.0.1:{watch.relay(host, int(port), patience=patience)}",
            num_processes=place.processes,
            process_id=place.process,
            local_device_ids=place.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=patience + 60,
        )
    client = distributed.global_state.client
    assert client is not None
    if here:
        token = secrets.token_hex(8)
        hub = watch.Hub(token, lost)
        client.key_value_set("mixcon/watch", f"{hub.port} {token}")
        return hub
    at, token = client.blocking_key_value_get("mixcon/watch", patience * 1000).split()
    try:
        return watch.Spoke((host, int(at)), token, place.process, lost)
    except OSError as error:
        print(
            f"warning: port {at} of {host} cannot be reached ({error}): that another process has died will be noticed "
            "after 100 seconds only, and by JAX",
            file=sys.stderr,
        )
        return None


@contextlib.contextmanager
def giving_up(place: Place, patience: int) -> Iterator[None]:
    """End the process in words when the body, which waits for the others, takes too long: JAX would abort it."""

    def give_up() -> None:
        print(
            f"mixcon: error: the {place.processes} processes have not found each other at {place.coordinator} within "
            f"{patience} s. Have all of them been started, and can this machine reach that address?",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(patience, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except jax.errors.JaxRuntimeError as error:  # such as a port that is taken
        raise InputError(f"no meeting of the processes at {place.coordinator}: {str(error).splitlines()[0]}") from error
    finally:
        timer.cancel()
