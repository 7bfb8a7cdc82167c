"""A judge as a process, by its rules, with two exceptions: it dies of a trace named "poison", and it may be short of memory.

Every line it notes ends in its pid: what it had under way, and what it took."""

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

from steelyard.metrics import CATALOGUE
from steelyard.metrics.judging import NotScored, Score
from steelyard.service import main
from steelyard.settings import Settings
from steelyard.store.database import Database
from steelyard.topics import cluster_of_settings
from steelyard.traces import Trace
from steelyard_judge.dialogue import scoring
from steelyard_judge.embeddings import LocalEmbedder
from steelyard_judge.gates import Gates
from steelyard_judge.handlers import judge
from steelyard_judge.model import Gateway
from steelyard_judge.orders import Order


def status(name: str) -> int:
    """Of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def note(path: Path, *words: object) -> None:
    out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(out, (" ".join(map(str, (*words, os.getpid()))) + "\n").encode())
    os.close(out)


async def run(notes: Path, settings: Settings, spare_mb: int) -> None:
    database = Database(settings.worker_database_url.get_secret_value(), 5)
    rules = scoring(Gateway(settings, {}, Gates()), LocalEmbedder(None), CATALOGUE, settings)
    before = status("VmHWM")

    async def score(metric: str, trace: Trace, order: Order) -> Score | NotScored:
        note(notes, "began", trace.trace_id)
        if trace.name == "poison":
            await asyncio.sleep(0.2)  # its neighbours are in the middle of theirs
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(settings.judge_call_seconds)
        answer: Score | NotScored = await rules(metric, trace, order)
        note(notes, "grew", status("VmHWM") - before)
        return answer

    if spare_mb:
        most = status("VmSize") + spare_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    service = judge(settings.judge_slots, database, score, load_bytes=settings.judge_load_mb * 2**20)
    await service.run(settings, cluster_of_settings())


if __name__ == "__main__":
    path, spare = Path(sys.argv[1]), int(sys.argv[2])
    given = Settings()
    main("judge", given, lambda: run(path, given, spare))
