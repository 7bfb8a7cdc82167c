"""Resolver, judge and aggregator in this process on a real Kafka and Postgres, with a scorer that a test gives."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from addresses import Urls
from eventually import DEADLINE, eventually
from steelyard.clock import Clock, utc_now
from steelyard.events import RunRequested
from steelyard.filters import TraceFilters
from steelyard.kafka import Cluster
from steelyard.metrics.judging import NotScored, Score
from steelyard.providers import RULES
from steelyard.runs import sample_size
from steelyard.service import Service
from steelyard.settings import Settings
from steelyard.store import runs, traces
from steelyard.store.database import Database
from steelyard.store.outbox import Outbox, Relay
from steelyard.traces import Trace
from steelyard_aggregator.handlers import aggregator
from steelyard_judge.handlers import Scorer, judge
from steelyard_judge.orders import Order
from steelyard_resolver.handlers import resolver


@dataclass
class Calls:
    """A scorer that notes what it is asked and answers as told."""

    seconds: float = 0.0
    made: list[tuple[UUID, str]] = field(default_factory=list)
    # By metric: what to raise or return, one after the other.
    answers: dict[str, list[Any]] = field(default_factory=dict)
    gate: asyncio.Event | None = None

    async def __call__(self, metric: str, trace: Trace, order: Order) -> Score | NotScored:
        self.made.append((trace.trace_id, metric))
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(self.seconds)
        queue = self.answers.get(metric)
        answer = queue.pop(0) if queue else Score(0.75, "because")
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Score | NotScored)
        return answer


@dataclass
class Spine:
    settings: Settings
    cluster: Cluster
    database: Database
    project: UUID
    running: dict[str, tuple["asyncio.Event", "asyncio.Task[None]"]] = field(default_factory=dict)

    def start(self, name: str, service: Service, relays: bool = True) -> None:
        stop = asyncio.Event()
        relay = Relay(self.database, poll_seconds=0.2) if relays else None
        # The pool is the test's own: a stopped service must not close it under the others.
        service.parts = [p for p in service.parts if p is not self.database]
        self.running[name] = stop, asyncio.create_task(service.run(self.settings, self.cluster, relay, stop))

    def start_resolver(self, name: str = "resolver", **more: Any) -> None:
        self.start(name, resolver(self.settings, self.cluster, self.database, **more))

    def start_judge(self, score: Scorer, name: str = "judge", clock: Clock = utc_now, **more: Any) -> None:
        self.start(name, judge(self.settings.judge_slots, self.database, score, clock=clock, **more), relays=False)

    def start_aggregator(self, name: str = "aggregator") -> None:
        self.start(name, aggregator(self.settings, self.database))

    def start_all(self, score: Scorer) -> None:
        self.start_resolver()
        self.start_aggregator()
        self.start_judge(score)

    async def stop(self, *names: str) -> None:
        ending = [self.running.pop(name) for name in names or tuple(self.running)]
        for stop, _ in ending:
            stop.set()
        for error in await asyncio.gather(*(task for _, task in ending), return_exceptions=True):
            if error is not None:
                raise error

    async def ingest(self, count: int, **fields: Any) -> list[UUID]:
        made: list[UUID] = []
        async with self.database.begin() as tx:
            for n in range(count):
                trace = {"trace_id": uuid4(), "name": f"trace {n}", "input": "hi", "output": "ho"}
                trace |= {"started_at": datetime(2026, 1, 1, tzinfo=UTC)} | fields
                await traces.put(tx, self.project, trace, [])
                made.append(UUID(str(trace["trace_id"])))
        return made

    async def request(
        self, metrics: list[str], rate: float = 1.0, filters: TraceFilters | None = None, judge_model: str = RULES
    ) -> UUID:
        """As the API asks for a run."""
        wanted = filters or TraceFilters()
        async with self.database.begin() as tx:
            found, snapshot = await traces.matching(tx, self.project, wanted)
            run = {
                "id": uuid4(),
                "project_id": self.project,
                "name": None,
                "metric_names": metrics,
                "filters": wanted.as_json(),
                "sampling_rate": rate,
                "model": None,
                "judge_model": judge_model,
                "total_targets": sample_size(found, rate),
                "snapshot": snapshot,
            }
            await runs.put(tx, run)
            await Outbox[RunRequested]().put(tx, RunRequested(run_id=run["id"], project_id=self.project))
        return UUID(str(run["id"]))

    async def run(self, run_id: UUID) -> dict[str, Any]:
        """All that the ledger holds of it, and over that what the API would show; read first, so that a run that is shown
        as over is over in the ledger too."""
        async with self.database.begin() as tx:
            shown = await runs.get(tx, self.project, run_id) or await runs.get(tx, self.project, run_id, runs.SESSIONS)
        (held,) = await self.rows("SELECT * FROM runs WHERE id = :r", r=run_id)
        return held | (shown or {})

    async def done(self, run_id: UUID, seconds: float = DEADLINE) -> dict[str, Any]:
        async def finished() -> dict[str, Any] | None:
            for _, task in self.running.values():
                if task.done():
                    task.result()
            found = await self.run(run_id)
            return found if found["status"] in ("COMPLETED", "FAILED") else None

        found: dict[str, Any] = await eventually(finished, f"run {run_id} is done", seconds)
        return found

    async def rows(self, sql: str, **given: Any) -> list[dict[str, Any]]:
        async with self.database.begin() as tx:
            return [dict(r._mapping) for r in await tx.execute(text(sql), given)]


@asynccontextmanager
async def spine(cluster: Cluster, urls: Urls, **settings: Any) -> AsyncIterator[Spine]:
    database = Database(urls.worker, pool=20)
    chosen = Settings(
        worker_database_url=urls.worker,
        http_port=0,
        kafka_bootstrap=cluster.bootstrap,
        topic_prefix=cluster.prefix,
        # Nobody here vanishes without leaving its group, and a busy machine may hold a loop up for seconds.
        kafka_session_seconds=15,
        **settings,
    )
    made = Spine(chosen, cluster, database, await new_project(urls))
    try:
        yield made
    finally:
        await made.stop()
        await database.stop()


async def new_project(urls: Urls, organization: str = "o") -> UUID:
    database, org, project = Database(urls.owner, pool=2), uuid4(), uuid4()
    async with database.begin() as tx:
        await tx.execute(
            text("INSERT INTO organizations (id, name) VALUES (:id, :name)"), {"id": org, "name": organization}
        )
        await tx.execute(
            text("INSERT INTO projects (id, org_id, name) VALUES (:id, :org, 'p')"), {"id": project, "org": org}
        )
    await database.stop()
    return project
