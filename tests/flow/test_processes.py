"""A run through all five services as real processes, and what kill -9 does to it."""

import asyncio

import pytest

from system import METRICS, System


async def test_a_run_goes_through_five_processes(system: System) -> None:
    await system.start("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
    traces = await system.ingest(12)
    run = await system.done(await system.request())
    assert (run["status"], run["total_traces"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 12, 12, 0)
    scores = await system.call("get", f"/evaluations/trace-runs/{run['id']}/scores")
    assert sorted((s["trace_id"], s["name"]) for s in scores) == sorted((t, m) for t in traces for m in METRICS)
    for s in scores:
        assert s["status"] == "SUCCESS" and 0 <= float(s["value"]) <= 1 and s["reason"], s
        assert s["metadata"]["success"] is (float(s["value"]) >= s["metadata"]["threshold"])
    judged = {s["name"]: s["metadata"].get("judge", {}).get("model") for s in scores}
    assert judged == {"task_completion": "openai/stub", "confidence": "openai/stub", "coherence": None}
    # Two questions for the one metric, one for the other, none for embeddings: nothing was asked twice.
    assert await system.calls() == 12 * 3


async def test_a_judge_killed_in_the_middle_costs_no_score_and_makes_none_twice(system: System) -> None:
    await system.start("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
    await system.ingest(80)
    run_id = await system.request()
    await system.evaluated(run_id, 10)
    await system.kill("judge-1")
    assert (await system.run(run_id))["status"] == "RUNNING"
    await system.start("judge-1")
    run = await system.done(run_id)
    assert (run["evaluated_count"], run["failed_count"]) == (80, 0)
    pairs = await system.rows("SELECT outcome FROM pairs")
    assert [p["outcome"] for p in pairs] == ["SUCCESS"] * 240
    assert len(await system.rows("SELECT DISTINCT trace_id, name FROM trace_scores")) == 240
    assert len(await system.rows("SELECT 1 FROM trace_scores")) == 240
    # At most what was in flight is paid again: sixteen conversations of up to two calls.
    assert 240 <= await system.calls() <= 240 + 2 * 16


@pytest.mark.faults
async def test_every_service_killed_in_turn_and_every_pair_has_one_score(system: System) -> None:
    names = ("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
    await system.start(*names)
    await system.ingest(200)
    run_id = await system.request()
    for share, name in enumerate(("resolver-1", "aggregator-1", "judge-1", "scheduler-1", "api-1"), 1):
        await system.evaluated(run_id, 20 * share)
        await system.kill(name)
        await system.start(name)
    run = await system.done(run_id)
    assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 200, 0)
    assert len(await system.rows("SELECT 1 FROM trace_scores")) == 600
    (counted,) = await system.rows('SELECT "left", settled_count FROM runs')
    assert counted == {"left": 0, "settled_count": 600}


@pytest.mark.faults
async def test_a_run_of_ten_is_done_while_a_run_of_two_thousand_is_under_way(system: System) -> None:
    await system.start("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
    await asyncio.gather(system.ingest(1000, "large"), system.ingest(5, "small"))
    large = await system.request(metrics=["task_completion", "confidence"], filters={"session_id": "large"})
    await system.evaluated(large, 20)
    small = await system.request(metrics=["task_completion", "confidence"], filters={"session_id": "small"})
    done = await system.done(small)
    ahead = await system.run(large)
    assert (done["evaluated_count"], done["failed_count"]) == (5, 0)
    assert ahead["status"] == "RUNNING" and ahead["evaluated_count"] < 900


@pytest.mark.faults
async def test_a_second_judge_joins_and_one_leaves_in_the_middle(system: System) -> None:
    await system.start("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
    await system.ingest(150)
    run_id = await system.request()
    await system.evaluated(run_id, 10)
    await system.start("judge-2")
    await system.evaluated(run_id, 50)
    await system.stop("judge-1")
    run = await system.done(run_id)
    assert (run["evaluated_count"], run["failed_count"]) == (150, 0)
    # Both changes were announced: what was in flight could finish, and nothing was paid twice.
    assert await system.calls() == 450
