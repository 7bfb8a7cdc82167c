"""A run with a limit stops sending before it could pass it, finishes what is under way, and says what was not scored."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest

from addresses import Urls
from spine import Spine, spine
from steelyard.events import RunRequested
from steelyard.filters import TraceFilters
from steelyard.kafka import Cluster
from steelyard.metrics.judging import NotScored, Score
from steelyard.runs import sample_size
from steelyard.store import answers, runs, traces
from steelyard.store.answers import Made, Wanted
from steelyard.store.outbox import Outbox
from steelyard.traces import Trace
from steelyard_judge.orders import Order


@dataclass
class Costly:
    """Writes down what each pair cost before it answers, as a judge does."""

    system: Spine
    cost: float
    made: list[tuple[UUID, str]] = field(default_factory=list)

    async def __call__(self, metric: str, trace: Trace, order: Order) -> Score | NotScored:
        self.made.append((trace.trace_id, metric))
        wanted = Wanted(order.project_id, order.root_run_id, trace.trace_id.bytes)
        call = Made(
            wanted, order.run_id, trace.trace_id, metric, "1", "grade", order.model, order.attempt, "ok", cost=self.cost
        )
        async with self.system.database.begin() as tx:
            await answers.record(tx, [call])
        return Score(0.5, "because")


@pytest.fixture
async def system(topics: Cluster, urls: Urls) -> AsyncIterator[Spine]:
    async with spine(topics, urls, judge_slots=8, redispatch_seconds=1.5) as made:
        yield made


async def request(system: Spine, **wishes: Any) -> UUID:
    async with system.database.begin() as tx:
        found, snapshot = await traces.matching(tx, system.project, TraceFilters())
        run = {
            "id": uuid4(), "project_id": system.project, "metric_names": ["one"], "judge_model": "openai/gpt-5.4-mini",
            "total_targets": sample_size(found, 1.0), "snapshot": snapshot, **wishes,
        }  # fmt: skip
        await runs.put(tx, run)
        await Outbox[RunRequested]().put(tx, RunRequested(run_id=run["id"], project_id=system.project))
    return UUID(str(run["id"]))


async def test_a_run_stops_at_its_limit_and_never_passes_it(system: Spine) -> None:
    scorer = Costly(system, cost=0.09)
    system.start_all(scorer)
    await system.ingest(60)
    run = await system.done(await request(system, max_cost_usd=1.0, pair_cost_usd=0.1))
    (spent,) = await system.rows("SELECT cost, calls FROM run_spending")
    assert 0.9 <= spent["cost"] <= 1.0 and spent["calls"] == len(scorer.made)
    assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 60, 60 - len(scorer.made))
    assert "max_cost_usd 1" in run["error_message"]
    unsent = await system.rows("SELECT reason, metadata FROM trace_scores WHERE status = 'FAILED'")
    assert len(unsent) == 60 - len(scorer.made)
    assert {u["reason"] for u in unsent} == {"the run's max_cost_usd was reached before it was sent"}
    assert all(u["metadata"] == {"not_sent": "budget"} for u in unsent)


async def test_a_run_whose_limit_suffices_is_not_touched_by_it(system: Spine) -> None:
    scorer = Costly(system, cost=0.01)
    system.start_all(scorer)
    await system.ingest(30)
    run = await system.done(await request(system, max_cost_usd=1.0, pair_cost_usd=0.1))
    assert (run["evaluated_count"], run["failed_count"], run["error_message"]) == (30, 0, None)
    assert len(scorer.made) == 30


async def test_a_limited_run_does_not_hold_up_another(system: Spine) -> None:
    scorer = Costly(system, cost=0.5)
    system.start_all(scorer)
    await system.ingest(20)
    limited = await request(system, max_cost_usd=1.0, pair_cost_usd=0.5)
    free = await request(system)
    assert (await system.done(free))["failed_count"] == 0
    assert (await system.done(limited))["failed_count"] == 18


async def test_what_was_not_sent_can_be_retried_with_a_new_limit(system: Spine) -> None:
    scorer = Costly(system, cost=0.5)
    system.start_all(scorer)
    await system.ingest(5)
    first = await request(system, max_cost_usd=1.0, pair_cost_usd=0.5)
    assert (await system.done(first))["failed_count"] == 3
    retry = await request(system, parent_run_id=first, root_run_id=first, max_cost_usd=9.0, pair_cost_usd=0.5)
    run = await system.done(retry)
    assert (run["evaluated_count"], run["failed_count"]) == (3, 0)
    assert len(set(scorer.made)) == len(scorer.made) == 5
