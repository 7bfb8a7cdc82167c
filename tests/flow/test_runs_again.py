"""Runs of named traces, retries of exactly what failed, and runs that are deleted: from HTTP to the judge and back."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from addresses import Urls
from eventually import eventually
from spine import Calls, Spine, spine
from steelyard.kafka import Cluster
from steelyard.metrics.judging import NotScored
from steelyard.settings import Settings
from steelyard.store import access, tidying
from steelyard.store.database import Database
from steelyard_api.app import api
from steelyard_scheduler.handlers import scheduler

RUNS, SCORES = "/evaluations/trace-runs", "/evaluations/trace-scores"
METRICS = ["coherence", "confidence"]


@pytest.fixture
async def system(topics: Cluster, urls: Urls) -> AsyncIterator[Spine]:
    async with spine(topics, urls, judge_slots=8, redispatch_seconds=1.5) as made:
        yield made


@pytest.fixture
async def http(system: Spine, urls: Urls) -> AsyncIterator[httpx.AsyncClient]:
    """The API on the system's database, for the system's project."""
    database = Database(urls.api)
    async with database.begin() as tx:
        key, _ = await access.make_key(tx, "o", "tests")
    settings = Settings(api_database_url=urls.api, judge_model=None, judge_base_url=None)
    transport = httpx.ASGITransport(app=api(settings, database))
    headers = {"X-API-Key": key, "X-Project-Name": "p"}
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client:
        yield client
    await database.stop()


async def start(http: httpx.AsyncClient, path: str, **asked: Any) -> dict[str, Any]:
    answer = await http.post(f"{RUNS}{path}", json=asked or None)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def test_a_batch_run_scores_the_named_traces_and_no_other(system: Spine, http: httpx.AsyncClient) -> None:
    calls = Calls()
    ids = [str(i) for i in await system.ingest(5)]
    run = await start(http, "/batch", trace_ids=[*ids[:3], ids[0]], metrics=METRICS, name="by hand")
    assert (run["total_traces"], run["status"], run["filters"], run["name"]) == (3, "PENDING", {}, "by hand")
    system.start_all(calls)
    done = await system.done(UUID(run["id"]))
    assert (done["status"], done["evaluated_count"], done["failed_count"]) == ("COMPLETED", 3, 0)
    scores = (await http.get(f"{RUNS}/{run['id']}/scores")).json()
    assert {(s["trace_id"], s["name"]) for s in scores} == {(i, m) for i in ids[:3] for m in METRICS}
    assert set(Counter(calls.made).values()) == {1} and len(calls.made) == 6


async def test_a_batch_names_the_traces_that_the_project_lacks(system: Spine, http: httpx.AsyncClient) -> None:
    (mine,) = await system.ingest(1)
    lost = [str(uuid4()), str(uuid4())]
    answer = await http.post(f"{RUNS}/batch", json={"trace_ids": [lost[0], str(mine), lost[1]], "metrics": METRICS})
    assert answer.status_code == 400 and [e["field"] for e in answer.json()["errors"]] == ["trace_ids"]
    assert all(i in answer.json()["errors"][0]["message"] for i in lost)
    assert str(mine) not in answer.text
    assert (await http.get(RUNS)).json()["total"] == 0


async def test_a_retry_means_exactly_the_pairs_that_failed(system: Spine, http: httpx.AsyncClient) -> None:
    calls = Calls(answers={"coherence": [NotScored("no"), NotScored("no")], "confidence": [NotScored("no")]})
    system.start_all(calls)
    await system.ingest(4)
    first = await start(http, "", metrics=METRICS, name="weekly", sampling_rate=1.0)
    assert (await system.done(UUID(first["id"])))["failed_count"] == 3
    failed = {(s["trace_id"], s["name"]) for s in (await http.get(SCORES, params={"status": "FAILED"})).json()["items"]}
    calls.made.clear()
    retry = await start(http, f"/{first['id']}/retry")
    traces = {t for t, _ in failed}
    assert (retry["total_traces"], retry["parent_run_id"], retry["name"]) == (len(traces), first["id"], "weekly")
    done = await system.done(UUID(retry["id"]))
    assert (done["status"], done["evaluated_count"], done["failed_count"]) == ("COMPLETED", len(traces), 0)
    assert {(str(t), m) for t, m in calls.made} == failed and len(calls.made) == 3
    scores = (await http.get(f"{RUNS}/{retry['id']}/scores")).json()
    assert {(s["trace_id"], s["name"]) for s in scores} == failed
    answer = await http.post(f"{RUNS}/{retry['id']}/retry")
    assert answer.status_code == 422 and answer.json()["errors"][0]["message"] == "the run has no failed pairs"


async def test_a_retry_waits_for_the_runs_end_and_leaves_deleted_traces_out(
    system: Spine, http: httpx.AsyncClient
) -> None:
    calls = Calls(answers={"coherence": [NotScored("no"), NotScored("no")]}, gate=asyncio.Event())
    system.start_all(calls)
    ids = await system.ingest(2)
    run = await start(http, "", metrics=["coherence"])
    early = await http.post(f"{RUNS}/{run['id']}/retry")
    assert early.status_code == 409 and "not finished" in early.json()["detail"]
    assert calls.gate is not None
    calls.gate.set()
    await system.done(UUID(run["id"]))
    await http.delete(f"/traces/{ids[0]}")
    retry = await start(http, f"/{run['id']}/retry")
    assert retry["total_traces"] == 1
    assert (await system.done(UUID(retry["id"])))["evaluated_count"] == 1
    await http.delete(f"/traces/{ids[1]}")
    gone = await http.post(f"{RUNS}/{run['id']}/retry")
    assert gone.status_code == 422 and "deleted" in gone.json()["errors"][0]["message"]


@pytest.mark.parametrize("with_scores", [False, True])
async def test_a_deleted_runs_scores_stay_unless_they_are_to_go(
    system: Spine, http: httpx.AsyncClient, with_scores: bool
) -> None:
    system.start_all(Calls())
    await system.ingest(3)
    kept, run = await start(http, "", metrics=["coherence"]), await start(http, "", metrics=METRICS)
    for one in (kept, run):
        await system.done(UUID(one["id"]))
    deleted = await http.delete(f"{RUNS}/{run['id']}", params={"delete_scores": str(with_scores).lower()})
    assert deleted.status_code == 204
    for verb, path in (("GET", ""), ("GET", "/scores"), ("POST", "/retry"), ("DELETE", "")):
        assert (await http.request(verb, f"{RUNS}/{run['id']}{path}")).status_code == 404
    assert [r["id"] for r in (await http.get(RUNS)).json()["items"]] == [kept["id"]]
    left = (await http.get(SCORES)).json()["items"]
    assert Counter(s["eval_run_id"] for s in left) == ({kept["id"]: 3} if with_scores else {kept["id"]: 3, None: 6})
    assert (await http.get(SCORES, params={"eval_run_id": run["id"]})).json()["total"] == 0


async def test_a_deleted_runs_rows_are_swept_and_its_retry_goes_on(system: Spine, http: httpx.AsyncClient) -> None:
    """The retry is not expanded yet when its parent is deleted: what it means must not be swept away under it."""
    calls = Calls(answers={"coherence": [NotScored("no")] * 3})
    system.start_all(calls)
    await system.ingest(3)
    run = await start(http, "", metrics=["coherence"])
    await system.done(UUID(run["id"]))
    await system.stop("resolver")
    retry = await start(http, f"/{run['id']}/retry")
    await http.delete(f"{RUNS}/{run['id']}")
    async with system.database.begin() as tx:
        assert await tidying.sweep(tx) == 0
    system.start_resolver()
    assert (await system.done(UUID(retry["id"])))["evaluated_count"] == 3
    system.start("scheduler", scheduler(system.settings, system.database))

    async def swept() -> bool:
        found = await system.rows("SELECT id FROM runs UNION SELECT run_id FROM pairs UNION SELECT run_id FROM targets")
        return {str(r["id"]) for r in found} == {retry["id"]}

    await eventually(swept, "the deleted run's rows are swept")
    assert (await http.get(SCORES)).json()["total"] == 6


async def test_results_of_a_run_that_was_deleted_meanwhile_change_nothing(
    system: Spine, http: httpx.AsyncClient
) -> None:
    calls = Calls(gate=asyncio.Event())
    system.start_all(calls)
    await system.ingest(40)
    run = await start(http, "", metrics=["coherence"])
    await eventually(lambda: len(calls.made) == 8, "the judge's slots are full")
    assert (await http.delete(f"{RUNS}/{run['id']}")).status_code == 204
    assert calls.gate is not None
    calls.gate.set()
    other = await start(http, "", metrics=["confidence"])
    assert (await system.done(UUID(other["id"])))["evaluated_count"] == 40
    assert Counter(m for _, m in calls.made) == {"coherence": 8, "confidence": 40}
    assert {s["name"] for s in (await http.get(SCORES, params={"limit": 200})).json()["items"]} == {"confidence"}
    assert await system.rows("SELECT 1 FROM pairs WHERE run_id = :r AND status = 'settled'", r=UUID(run["id"])) == []


async def test_runs_that_are_deleted_while_two_aggregators_settle_leave_no_score_behind(
    system: Spine, http: httpx.AsyncClient
) -> None:
    """A deletion waits for what is being settled, and what is settled after it finds the run gone."""
    calls = Calls(seconds=0.002)
    system.start_all(calls)
    system.start_aggregator("second aggregator")
    await system.ingest(60)
    started = [await start(http, "", metrics=METRICS) for _ in range(6)]

    async def delete_once_scored(run: dict[str, Any]) -> None:
        async def scored() -> bool:
            return bool((await http.get(f"{RUNS}/{run['id']}/scores")).json())

        await eventually(scored, "a score is there")
        assert (await http.delete(f"{RUNS}/{run['id']}", params={"delete_scores": "true"})).status_code == 204

    await asyncio.gather(*(delete_once_scored(r) for r in started[:4]))
    for run in started[4:]:
        await system.done(UUID(run["id"]))
    found = await system.rows("SELECT eval_run_id, count(*) AS n FROM trace_scores GROUP BY 1")
    assert {str(r["eval_run_id"]): r["n"] for r in found} == {r["id"]: 120 for r in started[4:]}


async def test_an_id_that_comes_back_in_another_project_is_not_the_trace_that_was_meant(
    system: Spine, http: httpx.AsyncClient
) -> None:
    """Deleted by one tenant, sent by another: neither the judge nor a retry may look at the newcomer."""
    calls = Calls(answers={"coherence": [NotScored("no")] * 2})
    system.start_all(calls)
    ids = [str(i) for i in await system.ingest(2)]
    run = await start(http, "", metrics=["coherence"])
    await system.done(UUID(run["id"]))
    await http.delete(f"/traces/{ids[0]}")
    secret = {"trace_id": ids[0], "name": "t", "started_at": "2026-03-01T10:00:00Z", "environment": "theirs"}
    sent = await http.post("/traces", json=secret, headers={"X-Project-Name": "another"})
    assert sent.status_code == 202
    retry = await start(http, f"/{run['id']}/retry")
    assert retry["total_traces"] == 1
    done = await system.done(UUID(retry["id"]))
    assert (done["total_targets"], done["evaluated_count"]) == (1, 1)
    assert {str(t) for t, _ in calls.made[2:]} == {ids[1]}

    await system.stop("judge")
    again = await start(http, "/batch", trace_ids=[ids[1]], metrics=["confidence"])
    await http.delete(f"/traces/{ids[1]}")
    await http.post("/traces", json=secret | {"trace_id": ids[1]}, headers={"X-Project-Name": "another"})
    calls.made.clear()
    system.start_judge(calls, "another judge")
    assert (await system.done(UUID(again["id"])))["failed_count"] == 1
    assert calls.made == [] and (await http.get(f"{RUNS}/{again['id']}/scores")).json() == []


async def test_a_run_means_traces_that_were_restored_from_a_dump(system: Spine) -> None:
    """A restored row carries a transaction id of the server it comes from, which may lie in this one's future."""
    system.start_all(Calls())
    await system.ingest(3)
    await system.rows("UPDATE traces SET created_xid = '99999999' RETURNING 1")
    run = await system.done(await system.request(["coherence"]))
    assert (run["total_targets"], run["evaluated_count"]) == (3, 3)
