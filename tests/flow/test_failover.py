"""The database refuses writes for a while, as around a failover: everybody waits, nothing is lost and nothing is paid twice."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import httpx
import pytest

from addresses import Infra, Urls
from databases import Databases
from eventually import eventually
from servers_down import own_postgres, read_only
from spine import Spine, spine
from steelyard.events import TraceScored, dead
from steelyard.kafka import Cluster, Readers
from steelyard.metrics.judging import Metric, NotScored, Question, Reply, Score
from steelyard.settings import Settings
from steelyard.store import access
from steelyard.store.database import Database, Tx
from steelyard.traces import Trace
from steelyard_aggregator.handlers import aggregator
from steelyard_api.app import api
from steelyard_judge.handlers import judge
from steelyard_judge.orders import Order
from steelyard_judge.paying import Ledger, Payer
from steelyard_judge.usage import Usage
from steelyard_resolver.handlers import resolver
from steelyard_scheduler.handlers import scheduler
from traces_of import case

SLOTS = 8
TRACE = {"name": "t", "started_at": "2026-03-01T10:00:00Z", "input": "q", "output": "a"}


@pytest.fixture(scope="module")
def owner() -> Iterator[str]:
    """Of a Postgres of these tests' own: the session's is not theirs to stop."""
    with own_postgres() as url:
        yield url


@pytest.fixture(scope="module")
def databases(infra: Infra, owner: str) -> Iterator[Databases]:
    made = asyncio.run(Databases.open(Infra(infra.bootstrap, owner)))
    yield made
    asyncio.run(made.close())


class Counted(Database):
    """Counts the transactions that failed."""

    failed = 0

    @asynccontextmanager
    async def begin(self, project: UUID | None = None) -> AsyncIterator[Tx]:
        try:
            async with super().begin(project) as tx:
                yield tx
        except Exception:
            self.failed += 1
            raise


@pytest.fixture
async def client(urls: Urls) -> AsyncIterator[httpx.AsyncClient]:
    database = Database(urls.api)
    transport = httpx.ASGITransport(app=api(Settings(api_database_url=urls.api), database), raise_app_exceptions=False)
    async with database.begin() as tx:
        key, _ = await access.make_key(tx, "acme", "tests")
    headers = {"X-API-Key": key, "X-Project-Name": "p"}
    async with httpx.AsyncClient(transport=transport, base_url="http://steelyard", headers=headers) as client:
        yield client
    await database.stop()


@pytest.mark.parametrize("cut", [False, True], ids=["the sessions live on", "the sessions end"])
async def test_a_request_to_a_database_that_refuses_writes_is_repeated_and_not_a_bug(
    client: httpx.AsyncClient, owner: str, cut: bool
) -> None:
    assert (await client.post("/traces", json=TRACE)).status_code == 202
    async with read_only(owner, cut):
        refused = await client.post("/traces", json=TRACE)
        unready = await client.get("/readyz")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert unready.status_code == 503
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.post("/traces", json=TRACE)).status_code == 202
    assert (await client.get("/traces")).json()["total"] == 2


async def test_a_refused_request_says_that_it_changed_nothing(client: httpx.AsyncClient, owner: str) -> None:
    await client.post("/traces", json=TRACE)
    async with read_only(owner, cut=False):
        assert "nothing was changed" in (await client.post("/traces", json=TRACE)).json()["detail"]


async def test_readiness_alone_notices_that_nothing_may_be_written(client: httpx.AsyncClient, owner: str) -> None:
    assert (await client.get("/readyz")).status_code == 200
    async with read_only(owner, cut=False):
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "not ready")


class Word(Reply):
    word: str


METRIC = Metric("paid", "of the test", "1", lambda _: iter(()))  # type: ignore[arg-type,return-value]


@dataclass
class Judging:
    """One metric asks a model that is paid, the other one nobody; both wait until they may answer."""

    book: Ledger
    may: asyncio.Event = field(default_factory=asyncio.Event)
    begun: int = 0
    calls: list[str] = field(default_factory=list)

    async def __call__(self, metric: str, trace: Trace, order: Order) -> Score | NotScored:
        self.begun += 1
        await self.may.wait()
        if metric == "paid":
            payer = Payer(self, self.book, order, METRIC, Settings())  # type: ignore[arg-type]
            try:
                await payer.ask(Question("s", "s", str(trace.trace_id), Word, case("i", "o")), order.model, Usage())
            finally:
                await payer.settled()
        return Score(0.5, "because")

    async def ask(self, question: Question, model: str, usage: Usage) -> Reply:
        self.calls.append(question.prompt)
        usage.note("ok", Usage(input_tokens=1, output_tokens=1, cost=0.25))
        return Word(nonce="n", word="yes")


@dataclass
class Services:
    spine: Spine
    databases: dict[str, Counted]
    judging: Judging

    def start(self, name: str) -> None:
        s, database = self.spine, self.databases[name]
        services = {
            "resolver": lambda: resolver(s.settings, s.cluster, database),
            "aggregator": lambda: aggregator(s.settings, database),
            "scheduler": lambda: scheduler(s.settings, database),
            "judge": lambda: judge(SLOTS, database, self.judging),
        }
        s.start(name, services[name]())

    async def refused(self, names: Sequence[str]) -> None:
        """Each of them has met the database as it is now."""
        before = {name: self.databases[name].failed for name in names}
        for name in names:
            await eventually(partial(self._failed_since, name, before[name]), f"{name} was refused")

    def _failed_since(self, name: str, before: int) -> bool:
        return self.databases[name].failed > before


@pytest.fixture
async def services(topics: Cluster, urls: Urls) -> AsyncIterator[Services]:
    databases = {name: Counted(urls.worker) for name in ("resolver", "judge", "aggregator", "scheduler")}
    async with spine(topics, urls, judge_slots=SLOTS) as s:
        yield Services(s, databases, Judging(Ledger(databases["judge"])))
    for database in databases.values():
        await database.stop()


async def test_a_failover_under_a_run_fails_no_pair_and_pays_for_none_twice(services: Services, owner: str) -> None:
    spine, judging = services.spine, services.judging
    await spine.ingest(16)
    for name in ("resolver", "aggregator", "judge"):
        services.start(name)
    first = await spine.request(["paid", "free"])
    await eventually(lambda: judging.begun >= SLOTS, "conversations are under way")
    async with read_only(owner, cut=False):
        refused = asyncio.create_task(services.refused(["judge", "aggregator"]))
        await asyncio.sleep(0)
        judging.may.set()
        await refused
        # What is under way was paid for; with that unwritten, nothing else is.
        assert len(judging.calls) <= SLOTS
    await spine.done(first)

    judging.may.clear()
    second = await spine.request(["paid", "free"])
    await eventually(lambda: judging.begun >= 32 + SLOTS, "conversations are under way")
    async with read_only(owner, cut=True):
        services.start("scheduler")
        refused = asyncio.create_task(services.refused(["resolver", "judge", "aggregator", "scheduler"]))
        await asyncio.sleep(0)
        judging.may.set()
        await refused
    for run in (first, second):
        done = await spine.done(run)
        assert (done["status"], done["failed_count"], done["evaluated_count"]) == ("COMPLETED", 0, 16)
    assert await everything(spine) == {"attempts": 0, "calls": 32}
    assert len(judging.calls) == 32
    assert await dead_letters(spine.cluster) == 0
    await spine.stop()  # raises what any of them ended by


async def everything(spine: Spine) -> dict[str, Any]:
    (row,) = await spine.rows(
        "SELECT (SELECT sum(attempts) FROM pairs)::int AS attempts, (SELECT count(*) FROM calls)::int AS calls"
    )
    return row


async def dead_letters(cluster: Cluster) -> int:
    readers = Readers(cluster)
    await readers.start()
    ends = [await readers.ends(dead(topic), 1) for topic in ("jobs.trace", TraceScored.topic, "runs.requested")]
    await readers.stop()
    return sum(n for end in ends for n in end.values())
