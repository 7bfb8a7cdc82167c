"""The database leaves one pair without an answer while others of its job are being judged: each pair ends by itself."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from addresses import Urls
from eventually import eventually
from spine import spine
from steelyard.kafka import Cluster
from steelyard.metrics.judging import NotScored, Score
from steelyard.store.database import Database, Tx
from steelyard.traces import Trace
from steelyard_judge.handlers import judge
from steelyard_judge.lookup import FRESH_SECONDS
from steelyard_judge.orders import Order

METRICS = ["one", "two", "three"]


class Leaving(Database):
    """Gives no transactions while it is `away`, and counts how often it was asked for one."""

    away: Exception | None = None
    refused = 0

    @asynccontextmanager
    async def begin(self, project: UUID | None = None) -> AsyncIterator[Tx]:
        if self.away is not None:
            self.refused += 1
            raise self.away
        async with super().begin(project) as tx:
            yield tx


@dataclass
class Judging:
    """The first pair that is asked for is held; the second one takes the database away, and so the third one's look-up
    fails. All later ones are answered at once."""

    database: Leaving
    error: Exception
    go: asyncio.Event = field(default_factory=asyncio.Event)
    made: list[str] = field(default_factory=list)

    async def __call__(self, metric: str, trace: Trace, order: Order) -> Score | NotScored:
        self.made.append(metric)
        if len(self.made) == 1:
            await self.go.wait()
        elif len(self.made) == 2:
            since = time.monotonic()
            await eventually(lambda: time.monotonic() > since + FRESH_SECONDS, "the job's first look-up is forgotten")
            self.database.away = self.error
        return Score(0.75, "because")


async def after_a_failed_lookup(topics: Cluster, urls: Urls, error: Exception, sql: str) -> tuple[Counter[str], Any]:
    """How often each metric was asked for, and the scores; the held pair goes on once `sql` finds the other's end."""
    database = Leaving(urls.worker)
    judging = Judging(database, error)
    async with spine(topics, urls, judge_slots=8) as system:
        system.start_resolver()
        system.start_aggregator()
        system.start("judge", judge(2, database, judging), relays=False)
        await system.ingest(1)
        run_id = await system.request(METRICS)
        await eventually(lambda: database.refused, "a look-up fails")
        database.away = None
        await eventually(lambda: system.rows(sql), "the pair without a look-up has ended by itself")
        judging.go.set()
        await system.done(run_id)
        return Counter(judging.made), await system.rows("SELECT name, value, reason FROM trace_scores")


async def test_a_lookup_that_fails_for_a_moment_puts_off_its_own_pair_and_no_other(topics: Cluster, urls: Urls) -> None:
    away = ConnectionError("the database is away")
    put_off = "SELECT 1 FROM pairs WHERE reason LIKE '%database is away%' OR dispatch_no > 1"
    asked, scores = await after_a_failed_lookup(topics, urls, away, put_off)
    assert asked == Counter(METRICS), "what was under way was cut off and asked for again"
    assert {s["name"]: float(s["value"]) for s in scores} == dict.fromkeys(METRICS, 0.75)


async def test_a_lookup_that_fails_by_a_bug_ends_its_own_pair_and_no_other(topics: Cluster, urls: Urls) -> None:
    settled = "SELECT 1 FROM trace_scores WHERE value IS NULL"
    asked, scores = await after_a_failed_lookup(topics, urls, LookupError("a bug"), settled)
    assert sorted(asked.values()) == [1, 1]
    assert sorted(s["reason"] for s in scores) == ["because", "because", "internal error: LookupError"]
