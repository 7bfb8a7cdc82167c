"""A judge without a model, as a process that tests may kill: it notes every call and takes as long as the job says."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from steelyard.events import TraceJob, TraceScored
from steelyard.service import Service, main
from steelyard.settings import Settings
from steelyard.topics import cluster_of_settings


def worker(calls: Path, slots: int) -> Service:
    service = Service("judge")

    @service.window(slots)
    async def work(job: TraceJob) -> AsyncIterator[TraceScored]:
        if job.model == "poison":
            raise ValueError("a bug in the handler")
        note(calls, f"began {job.target} {os.getpid()}")
        await asyncio.sleep(float(job.model))
        yield TraceScored(
            run_id=job.run_id,
            project_id=job.project_id,
            target=job.target,
            trace_id=job.trace_id,
            metric="m",
            value=1.0,
            reason="",
        )
        note(calls, f"ended {job.target} {os.getpid()}")

    return service


def note(calls: Path, line: str) -> None:
    """One write in append mode: lines of several processes, killed ones too, never mix."""
    out = os.open(calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(out, f"{line}\n".encode())
    os.close(out)


if __name__ == "__main__":
    path, slots = Path(sys.argv[1]), int(sys.argv[2])
    settings = Settings()
    main("judge", settings, lambda: worker(path, slots).run(settings, cluster_of_settings()))
