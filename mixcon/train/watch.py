"""Several processes live and die together: who is gone is known in a moment, and said in one sentence.

JAX by itself notices a dead process by its heartbeat, after 100 seconds, and then aborts the others in native code.
Here every process holds a connection to process 0, and the kernel closes it when its owner dies; a machine that
vanishes is found by TCP keepalive. Process 0 hands the news on, and each process ends itself through its `lost`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

SILENCE = (10, 5, 4)  # seconds before the first keepalive probe, between two; how many may be lost: 30 s in all
HOLD = 30.0  # seconds for which a relay does not pass on that the far end has closed

Lost = Callable[[int, str], None]  # process, and what became of it: "died" or "stopped"


def keep_alive(line: socket.socket) -> None:
    """Let the kernel find out when the machine at the other end is gone."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), SILENCE, strict=True):
        if hasattr(socket, option):  # not on every system
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def listen() -> socket.socket:
    """A server on a free port of every address of this machine."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be switched off
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


class Hub:
    """The end of process 0, to which all others hold a line.

    Args:
      token: what a line has to begin with; anything else that connects is ignored.
      lost: called once, in a thread, with the first process whose line broke.
    """

    def __init__(self, token: str, lost: Lost):
        self.token, self.lost = token, lost
        self.server = listen()
        self.port = self.server.getsockname()[1]
        self.lines: dict[int, socket.socket] = {}
        self.told = threading.Lock()  # taken once, by whoever tells the others that it is over
        threading.Thread(target=self._serve, daemon=True, name="mixcon-watch").start()

    def leave(self, word: str = "bye") -> None:
        """Tell the others that process 0 ends: in order ("bye"), or by an error ("stopped")."""
        self._tell("bye" if word == "bye" else f"lost 0 {word}")

    def _tell(self, text: str) -> bool:
        """Whether this was the first thing told, and so the one that counts."""
        first = self.told.acquire(blocking=False)
        for line in list(self.lines.values()) if first else ():
            with contextlib.suppress(OSError):
                line.sendall(f"{text}\n".encode())
        return first

    def _serve(self) -> None:
        heard: dict[socket.socket, bytes] = {}
        owner: dict[socket.socket, int] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(self.server, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    line = key.fileobj
                    assert isinstance(line, socket.socket)
                    if line is self.server:
                        line, _ = self.server.accept()
                        keep_alive(line)
                        heard[line] = b""
                        selector.register(line, selectors.EVENT_READ)
                        continue
                    data = receive(line)
                    *sentences, heard[line] = (heard[line] + data)[-4096:].split(b"\n")
                    for sentence in sentences:
                        words = sentence.decode(errors="replace").split()
                        if words[:2] == ["hello", self.token] and len(words) == 3:
                            owner[line] = int(words[2])
                            self.lines[owner[line]] = line
                        elif line in owner and words and words[0] in ("bye", "stopped"):
                            gone = self.lines.pop(owner[line], None)
                            if gone is not None and words[0] == "stopped":
                                self._over(owner[line], "stopped")
                    if not data:
                        selector.unregister(line)
                        line.close()
                        if self.lines.pop(owner.get(line, 0), None) is not None:
                            self._over(owner[line], "died")

    def _over(self, process: int, what: str) -> None:
        if self._tell(f"lost {process} {what}"):
            threading.Thread(target=self.lost, args=(process, what), daemon=True).start()


class Spoke:
    """The end of any other process.

    Args:
      address: host and port of the hub.
      token: as the hub expects it.
      process: which one this is.
      lost: called once, in a thread, with the process that the hub names, or 0 when the line to it breaks.
    """

    def __init__(self, address: tuple[str, int], token: str, process: int, lost: Lost):
        self.line = socket.create_connection(address, timeout=30)
        self.line.settimeout(None)
        keep_alive(self.line)
        self.line.sendall(f"hello {token} {process}\n".encode())
        self.lost, self.left = lost, False
        threading.Thread(target=self._listen, daemon=True, name="mixcon-watch").start()

    def leave(self, word: str = "bye") -> None:
        """Tell the hub that this process ends: in order ("bye"), or by an error ("stopped")."""
        self.left = True
        with contextlib.suppress(OSError):
            self.line.sendall(f"{word}\n".encode())

    def _listen(self) -> None:
        heard = b""
        while data := receive(self.line):
            *sentences, heard = (heard + data).split(b"\n")
            for words in (sentence.decode(errors="replace").split() for sentence in sentences):
                if words[:1] == ["bye"]:
                    return
                if words[:1] == ["lost"]:
                    return self._over(int(words[1]), words[2])
        return self._over(0, "died")

    def _over(self, process: int, what: str) -> None:
        if not self.left:
            self.lost(process, what)


def receive(line: socket.socket) -> bytes:
    """What has come in; nothing when the line is closed or broken."""
    try:
        return line.recv(4096)
    except OSError:
        return b""


def relay(host: str, port: int, *, patience: float, hold: float = HOLD) -> int:
    """A local port that is passed on to `host:port`; that the far end has closed is passed on `hold` seconds later.

    JAX's client aborts its process, with a native stack trace, as soon as its line to process 0 closes. Through a relay
    the watch hears of it first and ends the process in words. The relay is a process of its own, which ends with this
    one: JAX keeps the interpreter's lock in calls that wait for what comes through the line.

    Args:
      host, port: the far end; it may not be there yet.
      patience: seconds to try for.
      hold: seconds.

    Returns:
      The local port.
    """
    command = [sys.executable, "-I", "-S", __file__, host, str(port), str(patience), str(hold)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    _relays.append(child)
    assert child.stdout is not None
    return int(child.stdout.readline())


_relays: list[subprocess.Popen] = []  # their standard input is open for as long as this process lives


def serve(server: socket.socket, host: str, port: int, patience: float, hold: float) -> None:
    """Pass on every connection to a server."""
    while True:
        near, _ = server.accept()
        threading.Thread(target=connect, args=(near, host, port, patience, hold), daemon=True).start()


def connect(near: socket.socket, host: str, port: int, patience: float, hold: float) -> None:
    """Pass one connection on, once the far end is there."""
    deadline = time.monotonic() + patience
    while True:
        try:
            far = socket.create_connection((host, port), timeout=10)
            break
        except OSError:
            if time.monotonic() > deadline:
                near.close()
                return
            time.sleep(0.2)
    for line in (near, far):
        line.settimeout(None)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(far)
    threading.Thread(target=pump, args=(near, far, 0.0), daemon=True).start()
    pump(far, near, hold)


def pump(source: socket.socket, target: socket.socket, hold: float) -> None:
    """Bytes from one line to the other; its end too, `hold` seconds late."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    time.sleep(hold)
    for line in (source, target):
        with contextlib.suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":  # the relay
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the process that started it
        signal.signal(number, signal.SIG_IGN)
    there, at, seconds, late = sys.argv[1:]
    here = socket.create_server(("127.0.0.1", 0))
    print(here.getsockname()[1], flush=True)
    threading.Thread(target=serve, args=(here, there, int(at), float(seconds), float(late)), daemon=True).start()
    sys.stdin.buffer.read()  # until that process is gone
    os._exit(0)
