"""A fork server: processes of services begin as copies of one that has imported all they need.

Python and the imports of a service are two to three seconds of CPU, and the tests start hundreds: here a start is a fork. What
runs in it is the service's own `__main__`, in a session of its own, with its own environment, and it dies of kill -9 like any
other. The launcher's tests and the demo start processes as users do."""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from steelyard_local.processes import Home, Process, spawn

LOADED = (
    "fastapi",
    "uvicorn",
    "steelyard.topics",
    "steelyard_aggregator.handlers",
    "steelyard_api.app",
    "steelyard_api.heads",
    "steelyard_api.service",
    "steelyard_judge.handlers",
    "steelyard_judge.model",
    "steelyard_judge.signals",
    "steelyard_judge.vectors",
    "steelyard_resolver.handlers",
    "steelyard_scheduler.handlers",
)
LARGEST_MESSAGE = 150_000


def home_of_forks(kind: str) -> Home:
    return Home.fresh(kind, spawn=fork)


def fork(argv: Sequence[str], env: Mapping[str, str], log: IO[bytes], uid: int | None) -> Process:
    """Python's modules and scripts are forked, all else is executed. Without pidfd (not Linux) nothing is."""
    python = argv[0] == sys.executable and argv[1] != "-c"
    if not python or uid is not None or not hasattr(os, "pidfd_open"):
        return spawn(argv, env, log, uid)
    return _server().start(argv[1:], env, log.fileno())


class ForkServer:
    def __init__(self) -> None:
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()  # one question at a time
        command = [sys.executable, str(Path(__file__)), str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
        )
        theirs.close()
        atexit.register(self.close)

    def start(self, argv: Sequence[str], env: Mapping[str, str], log: int) -> "Forked":
        return Forked(self, self._ask({"argv": list(argv), "env": dict(env)}, [log]))

    def reap(self, pid: int) -> int:
        """The exit code of one that has ended."""
        return self._ask({"reap": pid})

    def close(self) -> None:
        self._link.close()
        self._process.wait()

    def _ask(self, question: Mapping[str, Any], descriptors: Sequence[int] = ()) -> int:
        message = json.dumps(question).encode()
        assert len(message) < LARGEST_MESSAGE, "an environment that no message carries"
        with self._lock:
            socket.send_fds(self._link, [message], list(descriptors))
            answer = self._link.recv(100)
        assert answer, "the fork server has ended"
        return int(answer)


class Forked:
    """As much of a Popen as a launcher needs. Until its exit code is fetched the pid is nobody else's."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server, self.pid, self._descriptor = server, pid, os.pidfd_open(pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode if self.returncode is not None else self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self.returncode if self.returncode is not None else self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._descriptor, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        ready = select.poll()
        ready.register(self._descriptor, select.POLLIN)
        if ready.poll(None if timeout is None else timeout * 1000):
            self.returncode = self._server.reap(self.pid)
            os.close(self._descriptor)
        return self.returncode


_SERVERS: list[ForkServer] = []


def _server() -> ForkServer:
    if not _SERVERS:
        _SERVERS.append(ForkServer())
    return _SERVERS[0]


def _serve(link: socket.socket) -> tuple[list[str], dict[str, str], int]:
    """Returns in a fork alone, with what it is to be."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(link, LARGEST_MESSAGE, 1)
        if not message:
            sys.exit()  # the test process has ended
        question = json.loads(message)
        if "reap" in question:
            answer = os.waitstatus_to_exitcode(os.waitpid(question["reap"], 0)[1])
        elif (answer := os.fork()) == 0:
            link.close()
            return question["argv"], question["env"], descriptors[0]
        else:
            os.close(descriptors[0])
        link.send(str(answer).encode())


def _become(argv: list[str], env: dict[str, str], log: int) -> None:
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


def main() -> None:
    for name in LOADED:
        __import__(name)
    from steelyard_judge.model import imported

    imported()
    gc.freeze()  # pages of what never changes stay shared
    _become(*_serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
