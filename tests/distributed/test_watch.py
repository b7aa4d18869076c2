"""Who hears of whose end, over real sockets; and how a process finds its place."""

import queue
import signal
import socket
import subprocess
import sys
import time

import pytest
from processes import child_environment, free_port

from mixcon.errors import InputError
from mixcon.train import distributed, watch

TOKEN = "0123"


class Star:
    """Process 0 and two others, in one process; `heard` has who was told what of whom."""

    def __init__(self):
        self.heard: queue.Queue[tuple[int, int, str]] = queue.Queue()
        self.hub = watch.Hub(TOKEN, lambda *said: self.heard.put((0, *said)))
        self.spokes = {i: self.spoke(i) for i in (1, 2)}
        until(lambda: len(self.hub.lines) == 2)

    def spoke(self, process):
        return watch.Spoke(("127.0.0.1", self.hub.port), TOKEN, process, lambda *said: self.heard.put((process, *said)))

    def said(self, count):
        return sorted(self.heard.get(timeout=5) for _ in range(count))

    def silent(self):
        time.sleep(0.2)
        return self.heard.empty()


def until(true):
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end_abruptly(line):
    """What the kernel does for a process that dies."""
    line.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def star():
    return Star()


def test_all_hear_of_a_process_that_dies(star):
    end_abruptly(star.spokes[2].line)
    assert (0, 2, "died") in (said := star.said(3))  # the third is the line of process 2 itself, which is cut here
    assert (1, 2, "died") in said
    assert star.silent(), "once each"


def test_all_hear_of_process_0_dying(star):
    star.hub.told.acquire()  # it says nothing any more
    for line in list(star.hub.lines.values()):
        end_abruptly(line)
    assert {(1, 0, "died"), (2, 0, "died")} <= {star.heard.get(timeout=5) for _ in range(2)}


@pytest.mark.parametrize("process", [0, 1])
def test_an_error_is_told_apart_from_a_death(star, process):
    (star.hub if process == 0 else star.spokes[1]).leave("stopped")
    others = [i for i in (0, 1, 2) if i != process]
    assert star.said(2) == [(i, process, "stopped") for i in others]


def test_nobody_is_alarmed_when_all_leave_in_order(star):
    star.spokes[1].leave()
    until(lambda: len(star.hub.lines) == 1)
    end_abruptly(star.spokes[1].line)
    star.hub.leave()
    star.spokes[2].leave()
    end_abruptly(star.spokes[2].line)
    assert star.silent()


def test_strangers_are_ignored(star):
    for words in (b"", b"hello 9999 1\n", b"GET / HTTP/1.1\r\n\r\n", b"stopped\n", b"\xff" * 10_000):
        with socket.create_connection(("127.0.0.1", star.hub.port)) as line:
            line.sendall(words)
    assert star.silent()
    assert len(star.hub.lines) == 2


def test_a_vanished_machine_is_found_within_the_promised_time(star):
    line = star.spokes[1].line
    assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle, between, count = (
        line.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{what}")) for what in ("IDLE", "INTVL", "CNT")
    )
    assert idle + between * count == 30


def test_a_relay_waits_for_the_far_end_and_holds_back_its_closing():
    port = free_port()
    near = socket.create_connection(("127.0.0.1", watch.relay("127.0.0.1", port, patience=5, hold=0.5)))
    near.sendall(b"ping")
    time.sleep(0.3)
    with socket.create_server(("127.0.0.1", port)) as server:
        far, _ = server.accept()
        assert far.recv(9) == b"ping"
        far.sendall(b"pong")
        assert near.recv(9) == b"pong"
        start = time.monotonic()
        far.close()
        assert near.recv(9) == b""
    assert 0.4 < time.monotonic() - start < 5


def test_a_relay_ends_with_its_process_and_heeds_no_signal_of_its():
    port = watch.relay("127.0.0.1", free_port(), patience=1)
    child = watch._relays[-1]
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    socket.create_connection(("127.0.0.1", port)).close()
    assert child.poll() is None
    child.stdin.close()  # what the kernel does when the process dies
    assert child.wait(timeout=10) == 0


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[3-4]", "SLURM_NTASKS": "4", "SLURM_PROCID": "1",
         "SLURM_LOCALID": "1"}  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """No cluster, and JAX not used yet."""
    for name in (*SLURM, "JAX_COORDINATOR_ADDRESS", "JAX_LOCAL_DEVICE_IDS", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed.xla_bridge, "backends_are_initialized", lambda: False)
    return monkeypatch


def find(coordinator=None, processes=None, process=None):
    return distributed.find(coordinator, processes, process, patience=1)


def test_alone_where_there_is_no_cluster_or_only_one_process(environment):
    assert find() is None
    assert find("host:9999", 1, 0) is None


def test_places_that_are_given_or_found(environment):
    assert find("host:9999", 2, 1) == ("host:9999", 2, 1, None)
    for name, value in SLURM.items():
        environment.setenv(name, value)
    assert find() == ("node3:61447", 4, 1, [1])
    environment.setenv("JAX_LOCAL_DEVICE_IDS", "0,1,2,3")  # what launch/slurm.sh sets for one task a node
    assert find() == ("node3:61447", 4, 1, [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("host:9999", None, None), "belong together"),
        (("host:9999", 2, 2), "between 0 and"),
        (("host:9999", 0, 0), "between 0 and"),
        (("host", 2, 0), "must be HOST:PORT"),
        (("host:port", 2, 0), "must be HOST:PORT"),
        ((":99", 2, 0), "must be HOST:PORT"),
    ],
)
def test_places_that_are_refused(environment, given, expected):
    with pytest.raises(InputError, match=expected):
        find(*given)


def test_a_cluster_that_cannot_be_used_is_said_in_words(environment):
    for name, value in {**SLURM, "SLURM_NTASKS": "many"}.items():
        environment.setenv(name, value)
    with pytest.raises(InputError, match="found a cluster, and cannot use it"):
        find()
    environment.setenv("JAX_LOCAL_DEVICE_IDS", "all")
    with pytest.raises(InputError, match="cannot use it"):
        find()


@pytest.mark.parametrize("process", [0, 1])
def test_processes_that_do_not_come_are_waited_for_so_long(process):
    program = (
        "import sys; from mixcon.train import distributed as d\n"
        "with d.joined(coordinator=sys.argv[1], processes=2, process=int(sys.argv[2]), patience=2): pass"
    )
    command = [sys.executable, "-c", program, f"127.0.0.1:{free_port()}", str(process)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "have not found each other at 127.0.0.1" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
