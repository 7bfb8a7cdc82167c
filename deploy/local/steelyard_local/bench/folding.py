"""`make bench-folding`: signals settled and folded in batches, against one transaction for each signal, side by side; large
sessions folded; and what one trace more costs a session of any length.

The aggregator's own work on a real Postgres with fsync; the results are made here, Kafka does not run."""

import argparse
import asyncio
import gc
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from steelyard.events import RunExpanded, RunFinished, TraceScored
from steelyard.filters import SessionRunFilters
from steelyard.metrics.sessions import SESSION_METRICS, SIGNALS
from steelyard.providers import RULES
from steelyard.store import runs, sessions, traces
from steelyard.store.database import Database
from steelyard.store.outbox import Outbox
from steelyard.store.traces import Arrival
from steelyard_aggregator.folding import Folder
from steelyard_aggregator.handlers import settled_in
from steelyard_local.bench.figures import spread, table
from steelyard_local.bench.stage import Clock, staged
from steelyard_local.processes import LaunchFailed
from steelyard_resolver.expand import Expander

# How many results a transaction takes, by the name of the way; the first is what the aggregator does.
WAYS = {"batched": 500, "one by one": 1}
GROWN = (1000, 10_000, 100_000)
LENGTHS = (50, 500, 5000, 50_000)


@dataclass
class Project:
    database: Database
    id: UUID

    async def talk(self, count: int, length: int) -> None:
        """So many sessions of so many traces, and no others."""
        async with self.database.begin() as tx:
            await tx.execute(text("DELETE FROM traces WHERE project_id = :p"), {"p": self.id})
        for first in range(0, count * length, 2000):
            given = {"p": self.id, "first": first, "last": min(first + 2000, count * length) - 1, "length": length}
            async with self.database.begin() as tx:
                await tx.execute(_TRACES, given)

    async def run(self) -> UUID:
        """Of all sessions, expanded."""
        run_id = uuid4()
        async with self.database.begin() as tx:
            found, snapshot = await sessions.matching(tx, self.id, SessionRunFilters())
            asked = {"id": run_id, "project_id": self.id, "metric_names": list(SESSION_METRICS), "judge_model": RULES}
            asked |= {"total_targets": found, "snapshot": snapshot, "target_type": runs.SESSIONS}
            await runs.put(tx, asked)
        expander = Expander(self.database)
        while await expander.turn(Outbox[RunExpanded | RunFinished]()):
            pass
        return run_id

    async def results(self, run_id: UUID) -> list[TraceScored]:
        """As judges send them: of any session, in any order."""
        async with self.database.begin() as tx:
            pairs = await tx.execute(_PAIRS, {"r": run_id})
            made = [
                TraceScored(**p._mapping, value=random.random(), reason="of the bench", trace_version=1) for p in pairs
            ]
        random.shuffle(made)
        return made


async def scored(project: Project, results: Sequence[TraceScored], size: int) -> float:
    """Signals a second, until the last session has its scores."""
    began = time.perf_counter()
    await settled(project, results, size)
    await folded(project)
    return len(results) / (time.perf_counter() - began)


async def settled(project: Project, results: Sequence[TraceScored], size: int) -> float:
    began = time.perf_counter()
    for first in range(0, len(results), size):
        async with project.database.begin() as tx:
            await settled_in(tx, results[first : first + size], 5)
    return len(results) / (time.perf_counter() - began)


async def folded(project: Project) -> None:
    for large in (False, True):
        folder = Folder(project.database, large)
        while await folder.turn(Outbox[RunFinished]()):
            pass


async def side_by_side(project: Project, count: int, length: int, rounds: int, clock: Clock) -> None:
    paces: dict[str, list[float]] = {way: [] for way in WAYS}
    await project.talk(count, length)
    for n in range(rounds):
        for way in WAYS if n % 2 == 0 else reversed(WAYS):
            run_id = await project.run()
            results = await project.results(run_id)
            paces[way].append(await scored(project, results, WAYS[way]))
            await _checked(project, run_id, count)
            clock.say(f"round {n + 1}, {way:10} {paces[way][-1]:8.0f} signals/s")
    print(
        f"\n{count} sessions of {length} traces, {len(SIGNALS)} signals each, folded into {len(SESSION_METRICS)} metrics"
    )
    print(table(("way", "signals/s: min – median – max"), [[way, spread(found)] for way, found in paces.items()]))
    one, other = paces.values()
    print(f"  batched / one by one: {spread([a / b for a, b in zip(one, other, strict=True)])}\n")


async def growing(project: Project, clock: Clock) -> None:
    """One session, ten times as long each time: time for a signal, the longest step of the event loop and memory should stay
    what they are."""
    rows = []
    for length in LENGTHS:
        await project.talk(1, length)
        run_id = await project.run()
        results = await project.results(run_id)
        pace, count = await settled(project, results, WAYS["batched"]), len(results)
        del results
        gc.collect()
        gc.freeze()  # what was there before is not searched for garbage while the session is folded
        before, steps, began = resident(), asyncio.create_task(longest_step()), time.perf_counter()
        await folded(project)
        took = time.perf_counter() - began
        more = resident() - before
        steps.cancel()
        await _checked(project, run_id, 1)
        cells = (pace, 1e6 * took / count, 1000 * took, 1000 * max(LONGEST, default=0), more)
        rows.append([f"{length:,}", f"{count:,}", *(f"{n:,.0f}" for n in cells)])
        clock.say(f"a session of {length} traces is folded")
    print("\none session, settled in batches and folded")
    heads = ("traces", "signals", "settled/s", "fold: µs a signal", "ms", "longest step, CPU ms", "MB more")
    print(table(heads, rows))


async def one_more(project: Project, clock: Clock) -> None:
    """A trace with two tags of its own, for a session each of whose traces has a tag of its own."""
    rows, begun = [], 0
    for length in GROWN:
        for first in range(begun, length, 2000):
            given = {"p": project.id, "first": first, "last": min(first + 2000, length) - 1}
            async with project.database.begin() as tx:
                await tx.execute(_TAGGED, given)
        begun = length
        costs = [await cost(project, n) for n in range(9)]
        rows.append([f"{length:,}", *(f"{sorted(column)[4]:,.1f}" for column in zip(*costs, strict=True))])
        clock.say(f"a session of {length} traces got one more")
    print("\none trace more; medians of nine")
    print(table(("traces and tags of the session", "WAL kB", "ms"), rows))


async def cost(project: Project, n: int) -> tuple[float, float]:
    trace = {"trace_id": uuid4(), "name": "turn", "started_at": "2026-01-01T00:00:00Z", "session_id": "tagged"}
    arrival = Arrival(trace | {"tags": [f"more {n}", f"new {uuid4()}"]}, [])
    async with project.database.begin() as tx:
        before, began = (await tx.execute(_WAL)).scalar_one(), time.perf_counter()
        await traces.put_many(tx, project.id, [arrival])
        took, after = time.perf_counter() - began, (await tx.execute(_WAL)).scalar_one()
    return float(after - before) / 1000, 1000 * took


LONGEST: list[float] = []


async def longest_step() -> None:
    """How much this thread computed while nothing else of it could move; what other processes take away does not count."""
    LONGEST.clear()
    while True:
        before = time.thread_time()
        await asyncio.sleep(0.001)
        LONGEST[:] = [max(*LONGEST, time.thread_time() - before, 0.0)]


async def _checked(project: Project, run_id: UUID, count: int) -> None:
    async with project.database.begin() as tx:
        found = (await tx.execute(_SCORED, {"r": run_id})).scalar_one()
    if found != count * len(SESSION_METRICS):
        raise LaunchFailed(f"{found} session scores where {count * len(SESSION_METRICS)} are due")


def resident() -> float:
    """MB of this process in memory now; where the system does not say, nothing."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * 4096 / 1e6


async def bench(env: dict[str, str], asked: Any, clock: Clock) -> None:
    owner, database = Database(env["DATABASE_URL"], pool=2), Database(env["WORKER_DATABASE_URL"], pool=4)
    try:
        async with owner.begin() as tx:
            await tx.execute(text("INSERT INTO organizations (id, name) VALUES (:id, 'bench')"), {"id": uuid4()})
            made = await tx.execute(_PROJECT, {"id": uuid4()})
        project = Project(database, made.scalar_one())
        await side_by_side(project, asked.sessions, asked.traces, asked.rounds, clock)
        await growing(project, clock)
        await one_more(project, clock)
    finally:
        await owner.stop()
        await database.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m steelyard_local.bench.folding", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each way")
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--traces", type=int, default=10, help="of each session")
    asked = parser.parse_args()
    clock = Clock()
    try:
        with staged(durable=True) as stage:
            env = asyncio.run(stage.database("bench_folding"))
            asyncio.run(bench(env, asked, clock))
    except (KeyboardInterrupt, LaunchFailed) as e:
        print(str(e) or "stopped", file=sys.stderr)
        return 1
    return 0


_PROJECT = text("INSERT INTO projects (id, org_id, name) SELECT :id, id, 'bench' FROM organizations RETURNING id")
_TRACES = text(
    """
    INSERT INTO traces (trace_id, project_id, name, status, started_at, session_id)
    SELECT gen_random_uuid(), :p, 'turn', 'COMPLETED', timestamptz '2026-01-01' + n * interval '1 s', 's' || n / :length
    FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS n
    """
)
_TAGGED = text(
    """
    INSERT INTO traces (trace_id, project_id, name, status, started_at, session_id, tags)
    SELECT gen_random_uuid(), :p, 'turn', 'COMPLETED', timestamptz '2026-01-01' + n * interval '1 s', 'tagged',
        ARRAY['all', 'tag ' || md5(n::text)]
    FROM generate_series(CAST(:first AS int), CAST(:last AS int)) AS n
    """
)
_WAL = text("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
_PAIRS = text("SELECT run_id, project_id, target, trace_id, metric FROM pairs WHERE run_id = :r")
_SCORED = text("SELECT count(*) FROM session_scores WHERE eval_run_id = :r AND value IS NOT NULL")


if __name__ == "__main__":
    sys.exit(main())
