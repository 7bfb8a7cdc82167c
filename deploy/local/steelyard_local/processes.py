"""Child processes whose pids are written down, so that a killed launcher's children are reaped by the next one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

ROOT = Path(__file__).resolve().parents[3]
LOCAL = ROOT / ".local"


class LaunchFailed(Exception):
    """Something could not be started; the message is one a newcomer can act on."""


class Process(Protocol):
    """As much of a Popen as is needed here."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


Spawn = Callable[[Sequence[str], Mapping[str, str], IO[bytes], int | None], Process]


def spawn(argv: Sequence[str], env: Mapping[str, str], log: IO[bytes], uid: int | None) -> Process:
    """In a session of its own: Ctrl-C reaches the launcher alone, which then stops its children in order."""
    return subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(env),
        user=uid,
        cwd="/" if uid is not None else None,
        start_new_session=True,
    )


@dataclass
class Child:
    name: str
    process: Process
    log: Path
    stop_signal: signal.Signals = signal.SIGTERM

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process.poll() is None

    def tail(self, lines: int = 15) -> str:
        with suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def ask(self) -> None:
        if self.alive():
            self.process.send_signal(self.stop_signal)

    def stop(self, deadline: float = 30.0) -> int:
        """Ask, wait, then kill: nothing may outlive the launcher. The wait is longer than a service's drain."""
        self.ask()
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def kill(self) -> None:
        """kill -9, as a crash would."""
        self.process.kill()
        self.process.wait()


@dataclass
class Home:
    """One stack's folder: its data, its logs and the pids of everything it started."""

    path: Path
    children: dict[str, Child] = field(default_factory=dict)
    scrap: list[Path] = field(default_factory=list)
    spawn: Spawn = spawn
    closing: bool = False
    # Kafka and Postgres are started by two threads, and a third may be stopping both.
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @classmethod
    def fresh(cls, kind: str, spawn: Spawn = spawn) -> "Home":
        """A folder of its own, after clearing away what dead launchers left."""
        sweep()
        stacks = LOCAL / "stacks"
        stacks.mkdir(parents=True, exist_ok=True)
        return cls.at(Path(tempfile.mkdtemp(prefix=f"{kind}-{os.getpid()}-", dir=stacks)), spawn)

    @classmethod
    def at(cls, path: Path, spawn: Spawn = spawn) -> "Home":
        path.mkdir(parents=True, exist_ok=True)
        home = cls(path, spawn=spawn)
        home.record()
        return home

    def record(self) -> None:
        """Written after every start and stop, renamed into place: a kill in between loses no pid but the newest."""
        with self._lock:
            alive = {name: child for name, child in self.children.items() if child.alive()}
            pids = {name: _identity(child.pid) | {"signal": child.stop_signal} for name, child in alive.items()}
            note = {"owner": _identity(os.getpid()), "pids": pids, "scrap": [str(p) for p in self.scrap]}
            draft = self.path / "owner.json.new"
            draft.write_text(json.dumps(note))
            draft.replace(self.path / "owner.json")

    def port(self, name: str, preferred: int | None = None) -> int:
        """The port it had before, where that one is still free: what is started again keeps its address."""
        with self._lock:
            note = self.path / "ports.json"
            ports: dict[str, int] = json.loads(note.read_text()) if note.exists() else {}
            wished = (preferred, ports.pop(name, None))
            port = next((p for p in wished if p and p not in ports.values() and bindable(p)), 0) or free_port()
            while port in ports.values():
                port = free_port()
            ports[name] = port
            note.write_text(json.dumps(ports))
            return port

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        uid: int | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        echo: Callable[[str, str], None] | None = None,
    ) -> Child:
        log = self.path / f"{name}.log"
        with self._lock:
            if self.closing:
                raise LaunchFailed(f"{name} was not started: everything is being stopped.")
            # A file, not a pipe: a launcher that is killed or suspended takes nobody's log away.
            with log.open("ab") as out:
                read_from = out.tell()
                process = self.spawn(argv, os.environ if env is None else env, out, uid)
            child = self.children[name] = Child(name, process, log, stop_signal)
            self.record()
        if echo:
            threading.Thread(target=_follow, args=(child, read_from, echo), daemon=True).start()
        return child

    def stop(self, *names: str) -> None:
        """All are asked before the first is waited for."""
        with self._lock:
            leaving = [self.children[name] for name in names if name in self.children]
            for child in leaving:
                child.ask()
        for child in leaving:
            child.stop()
        self.forget(leaving)

    def kill(self, *names: str) -> None:
        """kill -9, as a crash would."""
        leaving = [self.children[name] for name in names if name in self.children]
        for child in leaving:
            child.kill()
        self.forget(leaving)

    def forget(self, ended: Iterable[Child]) -> None:
        with self._lock:
            for child in ended:
                if self.children.get(child.name) is child:
                    del self.children[child.name]
            self.record()

    def close(self, keep: bool = False) -> None:
        """Everything ends, the last started first; without `keep` the folder goes too."""
        with self._lock:
            self.closing = True
        for name in reversed(list(self.children)):
            self.stop(name)
        if keep:
            self.record()
            return
        for path in [*self.scrap, self.path]:
            shutil.rmtree(path, ignore_errors=True)


def sweep() -> None:
    """End what launchers of this checkout left running when they were killed, and delete its data."""
    for note in (LOCAL / "stacks").glob("*/owner.json"):
        if not owned(note):
            reap(note, delete=True)


def owned(note: Path) -> bool:
    with suppress(OSError, ValueError):
        return _is(json.loads(note.read_text())["owner"])
    return False


def reap(note: Path, delete: bool = False) -> list[str]:
    """End the recorded children that still are who they were when recorded; a reused pid is left alone."""
    try:
        wrote = json.loads(note.read_text())
    except (OSError, ValueError):
        return []
    left = {name: who for name, who in reversed(wrote["pids"].items()) if _is(who)}
    for who in left.values():
        with suppress(ProcessLookupError):
            os.kill(who["pid"], who.get("signal", signal.SIGTERM))
    patience = time.monotonic() + 10
    while time.monotonic() < patience and any(_is(who) for who in left.values()):
        time.sleep(0.05)
    for who in left.values():
        if _is(who):
            with suppress(ProcessLookupError):
                os.kill(who["pid"], signal.SIGKILL)
    if delete:
        for path in [*wrote.get("scrap", []), str(note.parent)]:
            shutil.rmtree(path, ignore_errors=True)
    return list(left)


def free_port() -> int:
    """Asked of the kernel: two checkouts and two sessions never collide by choice, only by a race nobody has seen."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def bindable(port: int) -> bool:
    """With the option that servers set themselves: connections that are fading away do not hold a port."""
    with suppress(OSError), socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", port))
        return True
    return False


def wait_for(fact: Callable[[], bool], what: str, child: Child | None = None, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        if child is not None and not child.alive():
            raise LaunchFailed(f"{child.name} ended while starting ({what}). Its last words:\n{child.tail()}")
        if time.monotonic() > deadline:
            raise LaunchFailed(f"waited {seconds:.0f} s for {what}.\n{child.tail() if child else ''}")
        time.sleep(0.03)


def listening(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """The first of SIGINT, SIGTERM and SIGHUP interrupts; later ones must not interrupt the stopping itself."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if not asked.is_set():
            asked.set()
            raise KeyboardInterrupt

    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] is signal.SIG_IGN:  # nohup: meant to outlive its terminal
        del before[signal.SIGHUP]
    for s in before:
        signal.signal(s, ask)
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _follow(child: Child, read_from: int, echo: Callable[[str, str], None]) -> None:
    """Line by line until the child has ended and everything it wrote was seen."""
    with child.log.open("rb") as log:
        log.seek(read_from)
        rest, ended = b"", False
        while not ended:
            ended = not child.alive()
            *lines, rest = (rest + log.read()).split(b"\n")
            for line in lines + ([rest] if ended and rest else []):
                echo(child.name, line.decode(errors="replace"))
            if not ended:
                time.sleep(0.1)


def _identity(pid: int) -> dict[str, object]:
    return {"pid": pid, "started": _started(pid)}


def _is(who: Mapping[str, object]) -> bool:
    pid = who["pid"]
    return isinstance(pid, int) and who["started"] is not None and _started(pid) == who["started"]


def _started(pid: int) -> str | None:
    """When a process began: with the pid, the only name a process has that is never given to another."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if stat[0] == "Z" else stat[19]
    except OSError:
        if Path("/proc/self").exists():
            return None
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return shown.stdout.strip() or None
