"""A run of sessions: the signals of all their traces are computed, and each session is folded once, from what is stored."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from addresses import Urls
from eventually import eventually
from session_runs import METRICS, START, Chance, assert_folded, request, scores, talk
from spine import Calls, Spine, spine
from steelyard.filters import SessionRunFilters
from steelyard.kafka import Cluster
from steelyard.metrics.judging import NotScored
from steelyard.metrics.sessions import SIGNALS
from steelyard.store import runs, traces


@pytest.fixture
async def system(topics: Cluster, urls: Urls) -> AsyncIterator[Spine]:
    async with spine(topics, urls, judge_slots=16, redispatch_seconds=1.5) as made:
        yield made


async def test_every_session_gets_one_score_per_metric_folded_from_its_stored_signals(system: Spine) -> None:
    for n in range(12):
        await talk(system, f"session {n}", 1 + n % 5)
    await talk(system, "none", 0)
    await system.ingest(3)  # traces without a session belong to none
    system.start_all(Chance())
    run = await system.done(await request(system))
    assert (run["status"], run["total_targets"], run["evaluated_count"], run["failed_count"]) == (
        "COMPLETED",
        12,
        12,
        0,
    )
    assert await assert_folded(system, run["id"]) == 24
    stored = (await scores(system, run["id"]))[0]
    assert (
        stored["metadata"]["traces_evaluated"]
        == stored["traces_seen"]
        == 1
        == stored["metadata"]["total_traces_in_session"]
    )
    assert stored["snapshot_at"] == run["created_at"]


async def test_weights_and_single_metrics_are_kept(system: Spine) -> None:
    for n in range(6):
        await talk(system, f"s{n}", 4)
    system.start_all(Chance())
    weights = {"confidence": 2.5, "loop_detection": 0.0, "tool_correctness": 0.8, "coherence": 0.1}
    run = await system.done(await request(system, ["agent_consistency"], signal_weights=weights))
    assert await assert_folded(system, run["id"], ["agent_consistency"]) == 6
    assert (await scores(system, run["id"]))[0]["metadata"]["signal_weights"] == weights


async def test_what_could_not_be_scored_counts_down_too_and_is_never_a_made_up_number(system: Spine) -> None:
    good, partly, bad = (
        await talk(system, "a good", 2),
        await talk(system, "b partly", 2),
        await talk(system, "c bad", 2),
    )

    class Told(Chance):
        async def __call__(self, metric: str, trace: Any, order: Any) -> Any:
            if trace.trace_id in bad or (trace.trace_id in partly and metric == "confidence"):
                return NotScored("the judge refused")
            return await super().__call__(metric, trace, order)

    system.start_all(Told())
    run = await system.done(await request(system))
    assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 3, 3)
    assert await assert_folded(system, run["id"]) == 6 and good
    by_name = {(s["session_id"], s["name"]): s for s in await scores(system, run["id"])}
    partial = by_name["b partly", "agent_reliability"]
    assert "6 of 8 signals" in partial["reason"] and partial["metadata"]["signals_missing"] == {"confidence": 2}
    for key in (("b partly", "agent_consistency"), ("c bad", "agent_reliability"), ("c bad", "agent_consistency")):
        assert by_name[key]["status"] == "FAILED" and "the judge refused" in by_name[key]["reason"]
        assert by_name[key]["metadata"]["success"] is False


async def test_a_retry_scores_only_the_failed_metrics_and_only_their_sessions(system: Spine) -> None:
    partly, _ = await talk(system, "partly", 2), await talk(system, "good", 2)
    answers = {"confidence": [NotScored("no")] * 2}
    calls = Calls(answers=answers)
    system.start_all(calls)
    first = await request(system, filters=SessionRunFilters(min_trace_count=2, user_id=None))
    # Whichever traces were asked first have no confidence.
    run = await system.done(first)
    failed = [s for s in await scores(system, first) if s["status"] == "FAILED"]
    assert run["failed_count"] == len(failed)
    again = await request(system, ["agent_consistency"], parent_run_id=first, root_run_id=first)
    retried = await system.done(again)
    assert retried["total_targets"] == retried["evaluated_count"] == len({s["session_id"] for s in failed})
    assert [(s["session_id"], s["name"]) for s in await scores(system, again)] == [
        (s["session_id"], s["name"]) for s in failed
    ]
    assert partly


async def test_traces_that_come_later_do_not_belong_to_the_run(system: Spine) -> None:
    await talk(system, "growing", 2)
    run_id = await request(system)
    await talk(system, "growing", 3)
    await talk(system, "new", 1)
    system.start_all(Chance())
    run = await system.done(run_id)
    assert run["total_targets"] == 1
    assert {s["metadata"]["total_traces_in_session"] for s in await scores(system, run_id)} == {2}
    later = await system.done(await request(system))
    versions = {
        s["session_version"]
        for r in (run, later)
        for s in await scores(system, r["id"])
        if s["session_id"] == "growing"
    }
    assert later["total_targets"] == 2 and len(versions) == 2


async def test_loop_detection_sees_the_three_before_it_in_time_whatever_order_they_came_in(system: Spine) -> None:
    ids = {}
    for minute in (4, 1, 3, 0, 2):
        (ids[minute],) = await talk(system, "shuffled", 1, started_at=START + timedelta(minutes=minute), output=minute)
    chance = Chance()
    system.start_all(chance)
    await system.done(await request(system))
    seen = {t: [e.output for e in o.earlier] for t, m, o in chance.asked if m == "loop_detection"}
    assert seen == {ids[n]: list(range(max(0, n - 3), n)) for n in range(5)}
    indexes = {t: [e.index for e in o.earlier] for t, m, o in chance.asked if m == "loop_detection"}
    assert indexes == seen and all(o.earlier == () for _, m, o in chance.asked if m != "loop_detection")
    assert Counter(m for _, m, _ in chance.asked) == dict.fromkeys(SIGNALS, 5)


@pytest.mark.parametrize(
    ("filters", "matching"),
    [
        ({}, ["a", "b", "c"]),
        ({"min_trace_count": 3}, ["b", "c"]),
        ({"has_error": True}, ["c"]),
        ({"has_error": False}, ["a", "b"]),
        ({"user_id": "ann"}, ["b"]),
        ({"tags": ["x", "y"]}, ["a", "c"]),
        ({"date_from": START + timedelta(minutes=2)}, ["b", "c"]),
        ({"date_to": START}, []),
        ({"date_to": START + timedelta(seconds=1), "min_trace_count": 5}, ["c"]),
    ],
)
async def test_the_count_and_the_expansion_choose_the_same_sessions(
    system: Spine, filters: dict[str, Any], matching: list[str]
) -> None:
    await talk(system, "a", 2, tags=["x"])
    await talk(system, "b", 3, user_id="ann")
    await talk(system, "c", 5, tags=["y", "z"], status="ERROR")
    run_id = await request(system, filters=SessionRunFilters(**filters))
    (before,) = await system.rows("SELECT total_targets FROM runs WHERE id = :r", r=run_id)
    await talk(system, "d", 9, tags=["x", "y"], user_id="ann", status="ERROR")
    await talk(system, "a", 9, user_id="ann", status="ERROR", started_at=START + timedelta(days=1))
    system.start_all(Calls())
    run = await system.done(run_id)
    found = {s["session_id"] for s in await scores(system, run_id)}
    assert sorted(found) == matching and before["total_targets"] == run["total_targets"] == len(matching)


async def test_a_sample_of_sessions_is_always_the_same(system: Spine) -> None:
    for n in range(10):
        await talk(system, f"s{n}", 1)
    system.start_all(Calls())
    run = await system.done(await request(system, ["agent_reliability"], sampling_rate=0.35))
    assert run["total_targets"] == 3 == len(await scores(system, run["id"]))


async def test_sessions_whose_traces_are_deleted_meanwhile_hold_nothing_up(system: Spine) -> None:
    calls = Calls(gate=asyncio.Event())
    lost, half = await talk(system, "lost before", 2), await talk(system, "half", 2)
    under_way = await talk(system, "under way", 2)
    run_id = await request(system)

    async def delete(ids: list[UUID]) -> None:
        async with system.database.begin() as tx:
            await traces.delete(tx, system.project, ids)

    await delete(lost)
    system.start_all(calls)
    await eventually(lambda: len(calls.made) == 16, "all signals of what is left are asked for")
    await delete([*under_way, half[0]])
    assert calls.gate is not None
    calls.gate.set()
    run = await system.done(run_id)
    assert (run["total_targets"], run["evaluated_count"], run["failed_count"]) == (2, 2, 2)
    stored = await scores(system, run_id)
    assert {s["session_id"] for s in stored} == {"half"} and len(stored) == 2
    assert stored[0]["metadata"]["missing_because"] == {"trace deleted": 4}


async def test_a_run_of_sessions_that_are_all_gone_ends(system: Spine) -> None:
    ids = await talk(system, "lost", 2)
    run_id = await request(system)
    async with system.database.begin() as tx:
        await traces.delete(tx, system.project, ids)
    system.start_all(Calls())
    run = await system.done(run_id)
    assert (run["status"], run["total_targets"], run["evaluated_count"], run["left"]) == ("COMPLETED", 0, 0, 0)


async def test_a_large_session_beside_many_small_ones_is_expanded_in_pages(system: Spine) -> None:
    made = """
        INSERT INTO traces (trace_id, project_id, name, status, started_at, session_id)
        SELECT gen_random_uuid(), CAST(:p AS uuid), 't', 'COMPLETED', now() - n * interval '1 s',
            CASE WHEN n <= 2600 THEN 'large' ELSE 's' || n % 300 END
        FROM generate_series(1, 3200) n RETURNING 1
    """
    await system.rows(made, p=system.project)
    system.start_resolver()
    run_id = await request(system)

    async def expanded() -> bool:
        (run,) = await system.rows("SELECT expanded, total_targets FROM runs WHERE id = :r", r=run_id)
        return bool(run["expanded"]) and run["total_targets"] == 301

    await eventually(expanded, "the run is expanded")
    found = await system.rows('SELECT target, size, "left" FROM targets WHERE run_id = :r AND size <> 2', r=run_id)
    assert found == [{"target": "large", "size": 2600, "left": 10400}]
    unknown = await system.rows("SELECT 1 FROM pairs WHERE run_id = :r AND trace_version IS DISTINCT FROM 1", r=run_id)
    assert unknown == [], "what the session was is known of every signal, scored or not"
    places = await system.rows(
        "SELECT place FROM pairs WHERE run_id = :r AND target = 'large' AND metric = 'coherence'", r=run_id
    )
    assert sorted(p["place"] for p in places) == list(range(2600))


async def test_a_run_of_sessions_is_none_of_traces(system: Spine) -> None:
    await talk(system, "a", 1)
    run_id = await request(system, METRICS)
    async with system.database.begin() as tx:
        assert await runs.get(tx, system.project, run_id) is None
        assert await runs.get(tx, system.project, run_id, runs.SESSIONS) is not None
