"""A run from request to scores, with everything real but the judge's opinion."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from prometheus_client import REGISTRY

from addresses import Urls
from eventually import eventually
from laboratory import Laboratory
from spine import Calls, Spine, spine
from steelyard.errors import Later
from steelyard.events import RunExpanded, RunFinished, TraceJob, TraceScored
from steelyard.filters import TraceFilters
from steelyard.kafka import Cluster, Publisher
from steelyard.metrics.judging import NotScored, Score
from steelyard.runs import sample, score_id
from steelyard.service import Service


@pytest.fixture
async def system(topics: Cluster, urls: Urls) -> AsyncIterator[Spine]:
    async with spine(topics, urls, judge_slots=8, redispatch_seconds=1.5) as made:
        yield made


async def test_every_pair_of_a_run_is_scored_once(system: Spine) -> None:
    calls = Calls()
    system.start_all(calls)
    ids = await system.ingest(30)
    run_id = await system.request(["one", "two"])
    run = await system.done(run_id)
    assert (run["status"], run["total_targets"], run["evaluated_count"], run["failed_count"]) == (
        "COMPLETED",
        30,
        30,
        0,
    )
    scores = await system.rows("SELECT id, trace_id, name, value, status FROM trace_scores")
    assert {(s["trace_id"], s["name"]) for s in scores} == {(i, m) for i in ids for m in ("one", "two")}
    assert {(s["value"], s["status"]) for s in scores} == {("0.75", "SUCCESS")}
    assert {s["id"] for s in scores} == {score_id(run_id, i, m) for i in ids for m in ("one", "two")}
    assert set(Counter(calls.made).values()) == {1}


async def test_what_is_not_scored_says_why_and_the_counts_still_sum(system: Spine) -> None:
    calls = Calls(answers={"one": [NotScored("nothing to go by", {"seen": 1}), ValueError("a bug of this metric")]})
    system.start_all(calls)
    await system.ingest(3)
    run = await system.done(await system.request(["one", "two"]))
    assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 3, 2)
    failed = await system.rows("SELECT value, reason FROM trace_scores WHERE status = 'FAILED' ORDER BY reason")
    assert [(f["value"], f["reason"]) for f in failed] == [
        (None, "internal error: ValueError"),
        (None, "nothing to go by"),
    ]


async def test_a_deferred_pair_waits_in_the_ledger_and_is_asked_again(system: Spine) -> None:
    calls = Calls(
        answers={"one": [Later("rate limited", after=0.3), Later("rate limited", after=0.3), Score(1.0, "ok")]}
    )
    system.start_all(calls)
    await system.ingest(1)
    run = await system.done(await system.request(["one"]))
    assert run["failed_count"] == 0
    (pair,) = await system.rows("SELECT attempts, dispatch_no FROM pairs")
    assert (pair["attempts"], pair["dispatch_no"], len(calls.made)) == (2, 3, 3)


async def test_a_pair_that_is_put_off_too_often_is_not_scored(topics: Cluster, urls: Urls) -> None:
    async with spine(topics, urls, judge_attempts=2) as system:
        calls = Calls(answers={"one": [Later("the model is away", after=0.1) for _ in range(9)]})
        system.start_all(calls)
        await system.ingest(1)
        run = await system.done(await system.request(["one"]))
        assert (run["failed_count"], len(calls.made)) == (1, 2)
        (score,) = await system.rows("SELECT reason FROM trace_scores")
        assert score["reason"] == "gave up after 2 tries: the model is away"


async def test_a_rate_limit_costs_a_pair_no_attempt(topics: Cluster, urls: Urls) -> None:
    async with spine(topics, urls, judge_attempts=2) as system:
        limited = [Later("rate limited", after=0.1, counts=False) for _ in range(4)]
        calls = Calls(answers={"one": [*limited, Score(1.0, "ok")]})
        system.start_all(calls)
        await system.ingest(1)
        run = await system.done(await system.request(["one"]))
        assert (run["failed_count"], len(calls.made)) == (0, 5)


async def test_a_sample_is_the_same_in_sql_and_in_memory(system: Spine) -> None:
    system.start_resolver()
    ids = await system.ingest(50)
    run_id = await system.request(["one"], rate=0.25)

    async def expanded() -> bool:
        return bool(await system.rows("SELECT 1 FROM runs WHERE expanded"))

    await eventually(expanded, "the run is expanded")
    targets = {r["target"] for r in await system.rows("SELECT target FROM targets")}
    assert targets == set(sample(run_id, [str(i) for i in ids], 12))


async def test_a_run_means_the_traces_that_its_count_had_seen(system: Spine) -> None:
    await system.ingest(5, session_id="s")
    run_id = await system.request(["one"], filters=TraceFilters(session_id="s"))
    await system.ingest(5, session_id="s")
    system.start_all(Calls())
    run = await system.done(run_id)
    assert (run["total_targets"], run["evaluated_count"]) == (5, 5)


async def test_a_run_whose_traces_were_deleted_before_it_began_finishes_empty(system: Spine) -> None:
    await system.ingest(2)
    run_id = await system.request(["one"])
    await system.rows("DELETE FROM traces RETURNING 1")
    system.start_all(Calls())
    run = await system.done(run_id)
    assert (run["status"], run["total_targets"], run["evaluated_count"]) == ("COMPLETED", 0, 0)


async def test_a_trace_deleted_while_it_is_judged_has_a_failed_pair_and_no_score(system: Spine) -> None:
    calls = Calls(gate=asyncio.Event())
    system.start_all(calls)
    await system.ingest(1)
    run_id = await system.request(["one"])
    await eventually(lambda: calls.made, "the judge has asked")
    await system.rows("DELETE FROM traces RETURNING 1")
    assert calls.gate is not None
    calls.gate.set()
    run = await system.done(run_id)
    assert (run["evaluated_count"], run["failed_count"]) == (1, 1)
    assert await system.rows("SELECT 1 FROM trace_scores") == []
    assert (await system.rows("SELECT outcome, reason FROM pairs"))[0] == {
        "outcome": "FAILED",
        "reason": "trace deleted",
    }


async def test_reading_everything_twice_changes_nothing(system: Spine) -> None:
    system.start_all(Calls())
    await system.ingest(10)
    run_id = await system.request(["one", "two"])
    await system.done(run_id)
    before = await system.rows("SELECT * FROM runs"), await system.rows("SELECT * FROM trace_scores ORDER BY id")
    pairs = await system.rows("SELECT * FROM pairs ORDER BY trace_id, metric")

    publisher = Publisher(system.cluster)
    await publisher.start()
    again = [_result(run_id, system.project, p["trace_id"], p["metric"], p["target"]) for p in pairs]
    expanded = RunExpanded(run_id=run_id, project_id=system.project)
    # Delivered three more times, with another value, out of order, and followed by one that does count.
    await publisher.publish([*again, expanded, *reversed(again), expanded, *again])
    await publisher.stop()
    other = await system.request(["one"])
    await system.done(other)

    after_runs = [r for r in await system.rows("SELECT * FROM runs") if r["id"] == run_id]
    after_scores = await system.rows("SELECT * FROM trace_scores WHERE eval_run_id = :r ORDER BY id", r=run_id)
    assert (after_runs, after_scores) == before


async def test_a_job_that_is_delivered_three_times_is_judged_once(system: Spine, tmp_path: Path) -> None:
    calls, topics = Calls(gate=asyncio.Event()), Laboratory(system.cluster, tmp_path)
    system.start_all(calls)
    await system.ingest(3)
    run_id = await system.request(["one"])
    await eventually(lambda: len(calls.made) == 3, "every pair is under way")
    await topics.repeat("jobs.trace")
    await eventually(lambda: in_flight("judge") == 6, "each job is there twice, and one of both waits")
    assert calls.gate is not None
    calls.gate.set()
    run = await system.done(run_id)
    assert (run["evaluated_count"], run["failed_count"]) == (3, 0)
    await topics.repeat("jobs.trace")
    await topics.read_to_the_end("jobs.trace", by="judge")
    assert set(Counter(calls.made).values()) == {1} and len(calls.made) == 3
    assert len(await system.rows("SELECT 1 FROM trace_scores")) == 3


async def test_a_job_whose_outcome_was_lost_is_sent_again(system: Spine) -> None:
    """The judge read the job and died with its answer; nobody else would ever hear of it."""
    system.start_resolver()
    system.start_aggregator()
    await system.ingest(4)

    run_id = await system.request(["one"])
    deaf = _Deaf()
    system.start("judge", deaf.service)
    await eventually(lambda: len(deaf.heard) == 4, "all jobs are read")
    await system.stop("judge")
    system.start_judge(Calls())
    run = await system.done(run_id)
    assert (run["evaluated_count"], run["failed_count"]) == (4, 0)
    assert {p["redispatches"] for p in await system.rows("SELECT redispatches FROM pairs")} == {1}


async def test_a_broker_that_lost_its_data_loses_no_pair_and_no_end_of_a_run(system: Spine) -> None:
    """Jobs, results and the word that the run is expanded are gone; the ledger still knows what is owed."""
    system.start_resolver()
    await system.ingest(6)
    run_id = await system.request(["one"])

    async def all_sent() -> bool:
        (seen,) = await system.rows(
            "SELECT (SELECT count(*) FROM pairs WHERE status = 'dispatched') AS sent, (SELECT count(*) FROM outbox) AS owed,"
            " (SELECT bool_and(expanded) FROM runs) AS expanded"
        )
        return bool(seen["sent"] == 6 and seen["owed"] == 0 and seen["expanded"])

    await eventually(all_sent, "everything is in Kafka")
    await forget(system.cluster, "jobs.trace", 24)
    await forget(system.cluster, "scores.trace", 12)
    system.start_aggregator()
    system.start_judge(Calls())
    run = await system.done(run_id)
    assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 6, 0)


async def forget(cluster: Cluster, topic: str, partitions: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    name = cluster.topic(topic)
    await admin.delete_records({TopicPartition(name, p): RecordsToDelete(before_offset=-1) for p in range(partitions)})
    await admin.close()


async def test_a_small_run_is_not_stuck_behind_a_large_one(system: Spine) -> None:
    calls = Calls(seconds=0.05)
    system.start_all(calls)
    await system.ingest(1000, session_id="large")
    await system.ingest(5, session_id="small")
    large = await system.request(["one", "two"], filters=TraceFilters(session_id="large"))

    async def under_way() -> bool:
        return bool((await system.run(large))["evaluated_count"] > 20)

    await eventually(under_way, "the large run is under way")
    small = await system.request(["one", "two"], filters=TraceFilters(session_id="small"))
    done = await system.done(small)
    ahead = await system.run(large)
    assert done["evaluated_count"] == 5
    assert ahead["status"] == "RUNNING" and ahead["evaluated_count"] < 900


async def test_two_of_everything_score_every_pair_once(system: Spine) -> None:
    calls = Calls(seconds=0.01)
    for n in range(2):
        system.start_resolver(f"resolver {n}")
        system.start_aggregator(f"aggregator {n}")
        system.start_judge(calls, f"judge {n}")
    await system.ingest(100)
    wanted = [await system.request(["one", "two"]) for _ in range(3)]
    for run_id in wanted:
        run = await system.done(run_id)
        assert (run["evaluated_count"], run["failed_count"]) == (100, 0)
    assert len(await system.rows("SELECT 1 FROM trace_scores")) == 600
    assert {r["left"] for r in await system.rows('SELECT "left" FROM runs')} == {0}


async def test_an_unreadable_run_fails_and_says_why(system: Spine) -> None:
    await system.ingest(1)
    run_id = await system.request(["one"])
    await system.rows('UPDATE runs SET filters = \'{"status": "NONSENSE"}\' RETURNING 1')
    heard, listener = list[RunFinished](), Service("listener")

    @listener.on
    async def hear(finished: RunFinished) -> None:
        heard.append(finished)

    system.start_all(Calls())
    system.start("listener", listener, relays=False)
    run = await system.done(run_id)
    assert run["status"] == "FAILED" and "filters" in run["error_message"]
    await eventually(lambda: heard, "the end of a failed run is told too")
    assert [(h.run_id, h.status) for h in heard] == [(run_id, "FAILED")]


def in_flight(service: str) -> float | None:
    return REGISTRY.get_sample_value("steelyard_window_in_flight", {"service": service})


class _Deaf:
    """A judge that reads jobs and says nothing."""

    def __init__(self) -> None:
        self.heard: list[UUID] = []
        self.service = Service("judge")

        @self.service.window(slots=8)
        async def hear(job: TraceJob) -> None:
            self.heard.append(job.trace_id)


def _result(run_id: UUID, project: UUID, trace: UUID, metric: str, target: str) -> TraceScored:
    return TraceScored(
        run_id=run_id,
        project_id=project,
        target=target,
        trace_id=trace,
        metric=metric,
        value=0.1,
        reason=f"late {datetime.now(UTC)}",
    )
