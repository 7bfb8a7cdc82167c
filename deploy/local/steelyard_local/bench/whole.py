"""`make bench-sessions`: a run over very many sessions through all services, and what each of them holds in memory.

Real processes, Kafka and Postgres; the rules judge and the local embedder, so nothing is paid and nothing waits for a vendor."""

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from steelyard.events import RunRequested
from steelyard.filters import SessionRunFilters
from steelyard.metrics.sessions import SESSION_METRICS
from steelyard.providers import RULES
from steelyard.store import runs, sessions
from steelyard.store.database import Database
from steelyard.store.outbox import Outbox
from steelyard_local.bench.figures import table
from steelyard_local.bench.stage import Clock
from steelyard_local.processes import Home, LaunchFailed, stopped_by_signals
from steelyard_local.stack import Stack, environment

NAMES = ("resolver-1", "judge-1", "judge-2", "aggregator-1", "scheduler-1")
MARKS = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass
class Watched:
    """MB of each process, its children included, at each mark of the way."""

    stack: Stack
    seen: dict[float, dict[str, float]] = field(default_factory=dict)

    def note(self, mark: float) -> None:
        children = _children()
        self.seen[mark] = {name: _memory(self.stack.services.child(name).pid, children) for name in NAMES}

    def table(self) -> str:
        marks = sorted(self.seen)
        rows = [[name, *(f"{self.seen[mark][name]:.0f}" for mark in marks)] for name in NAMES]
        return table(("MB at", *(f"{mark:.0%}" for mark in marks)), rows)


def _children() -> Mapping[int, list[int]]:
    found: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
        found.setdefault(parent, []).append(int(stat.parent.name))
    return found


def _memory(pid: int, children: Mapping[int, list[int]]) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 1e6 + sum(_memory(child, children) for child in children.get(pid, ()))


async def bench(stack: Stack, count: int, length: int, clock: Clock) -> None:
    database = Database(stack.env["WORKER_DATABASE_URL"], pool=2)
    owner = Database(stack.env["DATABASE_URL"], pool=2)
    try:
        project = await _project(owner)
        for first in range(0, count * length, 5000):
            last = min(first + 5000, count * length) - 1
            async with database.begin() as tx:
                await tx.execute(_TRACES, {"p": project, "first": first, "last": last, "length": length})
        async with owner.begin() as tx:
            await tx.execute(text("ANALYZE"))
        clock.say(f"{count:,} sessions of {length} traces are there")
        await _watched(stack, database, await _asked(database, project), count, clock)
    finally:
        await database.stop()
        await owner.stop()


async def _watched(stack: Stack, database: Database, run_id: UUID, count: int, clock: Clock) -> None:
    watched, began, marks = Watched(stack), time.monotonic(), list(MARKS)
    while marks:
        await asyncio.sleep(0.5)
        if dead := stack.services.dead():
            raise LaunchFailed(f"{dead[0].name} ended in the middle of the run:\n{dead[0].tail()}")
        async with database.begin() as tx:
            run = (await tx.execute(_RUN, {"r": run_id})).one()
        done = 1.0 if run.status == "COMPLETED" else min(0.999, run.evaluated_count / count)
        while marks and done >= marks[0]:
            watched.note(marks[0])
            pace = run.settled_count / (time.monotonic() - began)
            clock.say(f"{run.evaluated_count:,} sessions, {run.settled_count:,} signals, {pace:.0f} a second so far")
            marks.pop(0)
    async with database.begin() as tx:
        found = (await tx.execute(_SCORED, {"r": run_id})).scalar_one()
    if found != count * len(SESSION_METRICS):
        raise LaunchFailed(f"{found} session scores where {count * len(SESSION_METRICS)} are due")
    print("\n" + watched.table())


async def _project(owner: Database) -> UUID:
    org, project = uuid4(), uuid4()
    async with owner.begin() as tx:
        await tx.execute(text("INSERT INTO organizations (id, name) VALUES (:o, 'bench')"), {"o": org})
        given = {"p": project, "o": org}
        await tx.execute(text("INSERT INTO projects (id, org_id, name) VALUES (:p, :o, 'bench')"), given)
    return project


async def _asked(database: Database, project: UUID) -> UUID:
    """As the API asks for a run."""
    run_id = uuid4()
    async with database.begin() as tx:
        found, snapshot = await sessions.matching(tx, project, SessionRunFilters())
        asked = {"id": run_id, "project_id": project, "metric_names": list(SESSION_METRICS), "judge_model": RULES}
        await runs.put(tx, asked | {"total_targets": found, "snapshot": snapshot, "target_type": runs.SESSIONS})
        await Outbox[RunRequested]().put(tx, RunRequested(run_id=run_id, project_id=project))
    return run_id


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m steelyard_local.bench.whole", description=__doc__)
    parser.add_argument("--sessions", type=int, default=20_000)
    parser.add_argument("--traces", type=int, default=2, help="of each session")
    asked: Any = parser.parse_args()
    clock = Clock()
    with stopped_by_signals():
        stack = Stack(Home.fresh("bench-sessions"), environment(), clock.say)
        try:
            stack.start(NAMES)
            asyncio.run(bench(stack, asked.sessions, asked.traces, clock))
        except (KeyboardInterrupt, LaunchFailed) as e:
            print(str(e) or "stopped", file=sys.stderr)
            return 1
        finally:
            stack.close()
    return 0


_TRACES = text(
    """
    INSERT INTO traces (trace_id, project_id, name, status, input, output, started_at, session_id)
    SELECT gen_random_uuid(), :p, 'turn', CASE WHEN n % 17 = 0 THEN 'ERROR' ELSE 'COMPLETED' END,
        to_json('Where is parcel number ' || n || ', please?'), to_json('Parcel ' || n || ' left the warehouse on day ' || n % 28),
        timestamptz '2026-01-01' + n * interval '1 s', 's' || n / :length
    FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS n
    """
)
_RUN = text("SELECT status, evaluated_count, settled_count FROM runs WHERE id = :r")
_SCORED = text("SELECT count(*) FROM session_scores WHERE eval_run_id = :r AND value IS NOT NULL")


if __name__ == "__main__":
    sys.exit(main())
