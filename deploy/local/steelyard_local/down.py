"""`make down`: ends whatever `make dev`, `make demo` or the tests of this checkout left running, and says what."""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from steelyard_local.processes import LOCAL, owned, reap


def main(local: Path = LOCAL, forget: bool = False) -> int:
    """Data of `make dev` stays unless it shall be forgotten; scratch data of demo and tests goes with its processes."""
    dev = local / "dev" / "owner.json"
    notes = [*sorted((local / "stacks").glob("*/owner.json")), dev]
    said = [line for note in notes if note.exists() for line in end(note)]
    if forget and dev.exists():
        forget_data(dev.parent)
        said.append(f"deleted the data of dev in {dev.parent}")
    print("\n".join(said) if said else "nothing was running")
    return 0


def forget_data(folder: Path) -> None:
    """As root, Postgres keeps its data outside the checkout."""
    if (pointer := folder / "postgres.path").exists():
        shutil.rmtree(pointer.read_text(), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def end(note: Path) -> list[str]:
    """A launcher that lives stops its own children in order; those of a dead one are reaped."""
    scratch = note.parent.parent.name == "stacks"
    kind = note.parent.name.partition("-")[0]
    said = []
    if owned(note):
        said.append(_ask(note, kind))
    left = reap(note, delete=scratch)
    if left:
        said.append(f"stopped what a killed {kind} had left: {', '.join(sorted(left))}")
    return said


def _ask(note: Path, kind: str, seconds: float = 45) -> str:
    wrote = json.loads(note.read_text())
    pid, children = wrote["owner"]["pid"], ", ".join(sorted(wrote["pids"])) or "nothing yet"
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    patience = time.monotonic() + seconds
    while owned(note):
        if time.monotonic() > patience:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            patience += 5
        time.sleep(0.05)
    return f"stopped {kind} (pid {pid}) with {children}"


if __name__ == "__main__":
    sys.exit(main(forget="--forget" in sys.argv))
