"""A pair that kills its judge is found out, and everybody else's work goes on."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text

from addresses import Urls
from eventually import eventually
from spine import Spine, new_project, spine
from steelyard.kafka import Cluster
from steelyard.metrics.judging import NotScored, Score
from steelyard.runs import Key
from steelyard.store import begun
from steelyard.store.database import Database
from steelyard.store.presence import Presence
from steelyard.traces import Trace
from steelyard_judge.handlers import FATAL
from steelyard_judge.orders import Order
from steelyard_local.processes import free_port
from steelyard_resolver.deaths import Deaths

METRIC = "task_completion"


@pytest.fixture
async def system(topics: Cluster, urls: Urls) -> AsyncIterator[Spine]:
    async with spine(topics, urls, judge_slots=8, redispatch_seconds=3) as made:
        yield made


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def marked(database: Database, project: UUID, judge: UUID, alone: bool = False) -> Key:
    """A pair that a judge has under way."""
    key = uuid4(), uuid4(), "m"
    async with database.begin() as tx:
        await tx.execute(_RUN, {"run": key[0], "project": project})
        await tx.execute(_PAIR, {"run": key[0], "trace": key[1], "project": project})
        await begun.mark(tx, judge, [(key, alone)], [])
    return key


async def deaths(database: Database, key: Key) -> tuple[int, int]:
    async with database.begin() as tx:
        row = (await tx.execute(_DEATHS, {"run": key[0], "trace": key[1]})).one()
    return row.deaths, row.deaths_alone


@pytest.fixture
async def project(urls: Urls) -> UUID:
    return await new_project(urls)


async def test_a_judges_death_is_counted_once_for_what_it_had_under_way(database: Database, project: UUID) -> None:
    clock = Clock()
    looks = [Deaths(database, grace_seconds=3, clock=clock) for _ in range(2)]
    beside, alone = [await marked(database, project, uuid4(), alone) for alone in (False, True)]
    assert [await look.turn() for look in looks] == [0, 0]
    assert await deaths(database, beside) == (0, 0)  # it may be on its way back
    clock.now = 3
    assert sum([await look.turn() for look in looks]) == 2
    assert (await deaths(database, beside), await deaths(database, alone)) == ((1, 0), (1, 1))


async def test_a_judge_that_lost_its_connection_is_not_dead(database: Database, urls: Urls, project: UUID) -> None:
    """A restart of Postgres takes every judge's lock, and no judge's life."""
    presence, clock = Presence(urls.worker), Clock()
    look = Deaths(database, grace_seconds=3, clock=clock)
    await presence.start()
    try:
        await presence.held()
        key = await marked(database, project, presence.incarnation)
        async with _owner(urls) as owner:
            for _ in range(3):
                await owner.execute(_END_HOLDERS)
                await look.turn()
                await eventually(lambda: _held(database), "the judge has its lock again")
                clock.now += 2
                assert await look.turn() == 0
        assert await deaths(database, key) == (0, 0)
    finally:
        await presence.stop()


async def test_a_judge_that_stops_is_not_dead(database: Database, urls: Urls, project: UUID) -> None:
    presence = Presence(urls.worker)
    await presence.start()
    await presence.held()
    key = await marked(database, project, presence.incarnation)
    await presence.stop()
    assert await Deaths(database, grace_seconds=0).turn() == 0
    assert await deaths(database, key) == (0, 0)


async def test_a_suspect_is_judged_alone_and_a_pair_that_was_alone_at_three_deaths_is_not_judged(system: Spine) -> None:
    """All of the others end scored, suspects too."""
    under_way, beside = set[UUID](), dict[UUID, set[UUID]]()

    async def score(metric: str, trace: Trace, order: Order) -> Score | NotScored:
        under_way.add(trace.trace_id)
        for other in under_way:
            beside.setdefault(other, set()).update(under_way - {other})
        await asyncio.sleep(0.05)
        under_way.discard(trace.trace_id)
        return Score(0.75, "because")

    ids = await system.ingest(40)
    system.start_resolver()
    system.start_aggregator()
    run_id = await system.request([METRIC])
    await eventually(lambda: system.rows("SELECT 1 FROM runs WHERE expanded"), "the run is expanded")
    await system.rows("UPDATE pairs SET deaths = 2 WHERE trace_id = ANY(:ids) RETURNING 1", ids=ids[:4])
    await system.rows("UPDATE pairs SET deaths = 5, deaths_alone = 3 WHERE trace_id = :id RETURNING 1", id=ids[0])
    system.start_judge(score)
    run = await system.done(run_id, 180)
    assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 40, 1)
    (failed,) = await system.rows("SELECT trace_id, reason, value FROM trace_scores WHERE status = 'FAILED'")
    assert (failed["trace_id"], failed["reason"], failed["value"]) == (ids[0], FATAL, None)
    assert ids[0] not in beside and all(beside[i] == set() for i in ids[1:4])
    assert any(beside[i] for i in ids[4:])
    await eventually(lambda: _none(system, "SELECT 1 FROM begun"), "what ended is marked no more")


@contextmanager
def supervised(system: Spine, folder: Path, urls: Urls, spare_mb: int = 0, **settings: str) -> Iterator["Supervised"]:
    made = Supervised(system, folder, urls, spare_mb, settings)
    try:
        yield made
    finally:
        made.stop()


class Supervised:
    """One judge, started again whenever it dies: as a pod is."""

    def __init__(self, system: Spine, folder: Path, urls: Urls, spare_mb: int, settings: dict[str, str]) -> None:
        self.notes, self._log = folder / "notes", folder / "judge.log"
        self._command = [
            sys.executable,
            str(Path(__file__).with_name("judge_worker.py")),
            str(self.notes),
            str(spare_mb),
        ]
        self._environment = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")} | urls.environment()
        self._environment |= {"KAFKA_BOOTSTRAP": system.cluster.bootstrap, "TOPIC_PREFIX": system.cluster.prefix}
        self._environment |= {"KAFKA_SESSION_SECONDS": "6", "JUDGE_SLOTS": "8", "JUDGE_CALL_SECONDS": "0.1"} | settings
        self.deaths, self._process = list[int](), self._start()

    def look(self) -> None:
        if (code := self._process.poll()) is not None:
            self.deaths.append(code)
            self._process = self._start()

    def lines(self, verb: str) -> list[str]:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [line.split()[1] for line in lines if line.startswith(verb)]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = self._environment | {"HTTP_PORT": str(free_port())}
        return subprocess.Popen(self._command, env=environment, stderr=self._log.open("ab"))


async def done(system: Spine, judge: Supervised, run_id: UUID) -> dict[str, object]:
    async def finished() -> dict[str, object] | None:
        judge.look()
        run = await system.run(run_id)
        return run if run["status"] in ("COMPLETED", "FAILED") else None

    run: dict[str, object] = await eventually(finished, f"run {run_id} is done", 500)
    return run


@pytest.mark.faults
async def test_a_pair_that_kills_its_judge_stops_no_other_tenant(system: Spine, urls: Urls, tmp_path: Path) -> None:
    """The supervisor starts the judge again each time; five deaths, and it is over."""
    system.start_resolver()
    system.start_aggregator()
    innocents = await system.ingest(6, name="innocent") + await system.ingest(1, name="poison")
    poisoned = await system.request([METRIC])
    tenant, system.project = system.project, await new_project(urls, "another")
    await system.ingest(150)
    other = await system.request([METRIC])
    with supervised(system, tmp_path, urls) as judge:
        run = await done(system, judge, other)
        assert (run["evaluated_count"], run["failed_count"]) == (150, 0)
        system.project = tenant
        run = await done(system, judge, poisoned)
    assert (run["evaluated_count"], run["failed_count"]) == (7, 1)
    (failed,) = await system.rows("SELECT trace_id, reason FROM trace_scores WHERE status = 'FAILED'")
    assert (failed["trace_id"], failed["reason"]) == (innocents[-1], FATAL)
    assert judge.deaths == [-9] * (begun.FORGIVEN + 1 + begun.MOST_DEATHS)
    alone = await system.rows("SELECT trace_id FROM pairs WHERE deaths_alone > 0")
    assert [a["trace_id"] for a in alone] == [innocents[-1]]


@pytest.mark.faults
async def test_a_trace_of_hundreds_of_megabytes_is_judged_with_little_memory(
    system: Spine, urls: Urls, tmp_path: Path
) -> None:
    """240 MB in spans, four at a time, in a judge that has 200 MB to spare."""
    system.start_resolver()
    system.start_aggregator()
    ids = await system.ingest(4, name="large")
    for trace_id in ids:
        await system.rows(_LARGE, id=trace_id, project=system.project)
    run_id = await system.request([METRIC, "tool_correctness", "step_efficiency"])
    with supervised(system, tmp_path, urls, spare_mb=200, JUDGE_LOAD_MB="96") as judge:
        run = await done(system, judge, run_id)
        assert (run["evaluated_count"], run["failed_count"]) == (4, 0)
        assert judge.deaths == [] and max(map(int, judge.lines("grew"))) < 200 * 2**20


@asynccontextmanager
async def _owner(urls: Urls) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(urls.owner)
    try:
        yield connection
    finally:
        await connection.close()


async def _held(database: Database) -> bool:
    async with database.begin() as tx:
        return not await begun.gone(tx)


async def _none(system: Spine, sql: str) -> bool:
    return not await system.rows(sql)


_RUN = text(
    """
    INSERT INTO runs (id, project_id, status, metric_names, judge_model, filters, snapshot)
    VALUES (:run, :project, 'RUNNING', '{m}', 'heuristic/rules-v1', '{}', '')
    """
)
_PAIR = text(
    "INSERT INTO pairs (run_id, trace_id, metric, project_id, target) VALUES (:run, :trace, 'm', :project, 't')"
)
_DEATHS = text("SELECT deaths, deaths_alone FROM pairs WHERE run_id = :run AND trace_id = :trace")
_END_HOLDERS = """
SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid()"""
_LARGE = """
INSERT INTO spans (trace_id, span_id, project_id, position, name, kind, status, input, output, started_at)
SELECT :id, gen_random_uuid(), :project, n, 'step ' || n, 'TOOL', 'OK', to_json(repeat(md5(n::text), 15000)),
    to_json(repeat(md5((-n)::text) || ' ', 15000)), now() + make_interval(secs => n)
FROM generate_series(1, 240) AS n RETURNING 1"""
