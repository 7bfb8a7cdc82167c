"""Talking to the `make dev` that runs in this checkout: there is one, it holds a lock, and it takes wishes."""

import fcntl
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

from steelyard_local.processes import LOCAL, LaunchFailed, wait_for
from steelyard_local.stack import GIVEN_UP

FOLDER = LOCAL / "dev"
ENV_FILE = LOCAL / "dev.env"


@dataclass(frozen=True)
class Control:
    """A wish is a file that is renamed into place and answered beside it: no port, no path too long for a socket."""

    folder: Path
    obey: Callable[[str, str], str]

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for stale in self.folder.iterdir():
            stale.unlink()

    def turn(self, pool: ThreadPoolExecutor) -> None:
        for ask in self.folder.glob("*.ask"):
            verb, name = json.loads(ask.read_text())
            ask.unlink()
            pool.submit(self._answer, ask.with_suffix(".said"), verb, name)

    def _answer(self, answer: Path, verb: str, name: str) -> None:
        try:
            said, code = self.obey(verb, name), 0
        except LaunchFailed as e:
            said, code = str(e), 1
        write_privately(answer, json.dumps([said, code]))


def tell(verb: str, name: str) -> int:
    """From another terminal: asks the running `make dev`, and waits for what it says."""
    if (lock := only_one()) is not None:
        lock.close()
        raise LaunchFailed("`make dev` is not running in this checkout.")
    ask = FOLDER / "control" / f"{uuid4().hex}.ask"
    write_privately(ask, json.dumps([verb, name]))
    answer = ask.with_suffix(".said")
    wait_for(answer.exists, f"`make dev` to {verb} {name}", seconds=GIVEN_UP + 60)
    said, code = json.loads(answer.read_text())
    answer.unlink()
    print(said, file=sys.stderr if code else sys.stdout)
    return int(code)


def only_one() -> IO[str] | None:
    """The lock that a running `make dev` holds: the kernel lets go of it however the process ends."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    lock = (FOLDER / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def already() -> str:
    note = FOLDER / "owner.json"
    pid = json.loads(note.read_text())["owner"]["pid"] if note.exists() else "unknown"
    lines = ENV_FILE.read_text().splitlines() if ENV_FILE.exists() else []
    url = next((line.partition("=")[2] for line in lines if line.startswith("BASE_URL=")), None)
    where = f"at {url} (key and pids in .local/dev.env)" if url else "and still starting"
    return f"`make dev` is already running in this checkout, pid {pid}, {where}; `make down` stops it."


def write_privately(path: Path, text: str) -> None:
    """Never readable by others, not even for the moment before a chmod; never seen half written."""
    draft = path.with_name(f"{path.name}.{uuid4().hex[:8]}.new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    draft.replace(path)
