"""What happens when things meet: a trace, a run or a key changes while judges are at work."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from addresses import Urls
from eventually import eventually
from spine import Calls, Spine, spine
from steelyard.kafka import Cluster
from steelyard.metrics.judging import NotScored, Score
from steelyard.settings import Settings
from steelyard.store import access
from steelyard.store.database import Database
from steelyard.traces import Trace
from steelyard_api.app import api
from steelyard_judge.orders import Order

RUNS, SCORES, TRACES = "/evaluations/trace-runs", "/evaluations/trace-scores", "/traces"
METRICS = ["coherence", "confidence"]
SLOTS = 4


class Judging(Calls):
    """A judge who has read the trace and thinks until it is let go, but for the first `quick` questions."""

    def __init__(self) -> None:
        super().__init__(gate=asyncio.Event())
        self.quick = 0

    async def __call__(self, metric: str, trace: Trace, order: Order) -> Score | NotScored:
        if len(self.made) >= self.quick:
            return await super().__call__(metric, trace, order)
        self.made.append((trace.trace_id, metric))
        return Score(0.75, "because")

    async def thinks(self, jobs: int) -> None:
        await eventually(lambda: len(self.made) == jobs, f"{jobs} questions are asked")

    def go(self) -> None:
        assert self.gate is not None
        self.gate.set()


@pytest.fixture
async def system(topics: Cluster, urls: Urls) -> AsyncIterator[Spine]:
    async with spine(topics, urls, judge_slots=SLOTS, redispatch_seconds=1.5) as made:
        yield made


@pytest.fixture
async def judging(system: Spine) -> Judging:
    calls = Judging()
    system.start_resolver()
    system.start_aggregator()
    system.start_judge(calls)
    return calls


@pytest.fixture
async def api_calls(urls: Urls) -> AsyncIterator[Database]:
    database = Database(urls.api)
    yield database
    await database.stop()


@pytest.fixture
async def http(system: Spine, urls: Urls, api_calls: Database) -> AsyncIterator[httpx.AsyncClient]:
    """The API on the system's database, for the system's project."""
    settings = Settings.model_validate({"api_database_url": urls.api, "judge_model": None, "judge_base_url": None})
    headers = {"X-API-Key": (await new_key(api_calls))[0], "X-Project-Name": "p"}
    transport = httpx.ASGITransport(app=api(settings, api_calls))
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client:
        yield client


async def new_key(database: Database) -> tuple[str, UUID]:
    async with database.begin() as tx:
        return await access.make_key(tx, "o", "tests")


async def new_traces(http: httpx.AsyncClient, count: int) -> list[str]:
    body = {"name": "trip", "started_at": "2026-03-01T10:00:00Z", "input": "hi", "output": "ho", "environment": "old"}
    answers = [await http.post(TRACES, json=body) for _ in range(count)]
    assert {a.status_code for a in answers} == {202}
    return [a.json()["trace_id"] for a in answers]


async def start(http: httpx.AsyncClient, metrics: list[str], **headers: str) -> str:
    answer = await http.post(RUNS, json={"metrics": metrics}, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def scores(http: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    answer = await http.get(SCORES, params={"limit": 200, **query})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


async def everything_is_heard(system: Spine, http: httpx.AsyncClient) -> None:
    """A run that is begun now and over: what judges had said before it has been settled before it."""
    later = await start(http, ["task_completion"])
    await system.done(UUID(later))
    assert (await http.delete(f"{RUNS}/{later}", params={"delete_scores": "true"})).status_code == 204


@pytest.mark.parametrize("change", ["patch", "send again", "add a span", "change a span", "tag"])
async def test_a_trace_that_is_changed_while_it_is_judged_keeps_the_version_it_was_judged_by(
    system: Spine, http: httpx.AsyncClient, judging: Judging, change: str
) -> None:
    (trace,) = await new_traces(http, 1)
    span = (
        await http.post(f"{TRACES}/{trace}/spans", json=[{"name": "s", "started_at": "2026-03-01T10:00:00Z"}])
    ).json()
    seen = (await http.get(f"{TRACES}/{trace}")).json()["version"]
    run = await start(http, ["coherence"])
    await judging.thinks(1)
    await changed(http, change, trace, span["span_ids"][0])
    judging.go()
    assert (await system.done(UUID(run)))["failed_count"] == 0
    (score,) = await scores(http, eval_run_id=run)
    now = (await http.get(f"{TRACES}/{trace}")).json()["version"]
    assert (score["status"], score["trace_version"]) == ("SUCCESS", seen) and now > seen


async def changed(http: httpx.AsyncClient, how: str, trace: str, span: str) -> None:
    step = {"span_id": span, "name": "s", "started_at": "2026-03-01T10:00:00Z"}
    again = {"trace_id": trace, "name": "trip", "started_at": "2026-03-01T10:00:00Z", "output": "new"}
    requests: dict[str, tuple[str, str, Any]] = {
        "patch": ("PATCH", f"{TRACES}/{trace}", {"output": "new"}),
        "send again": ("POST", TRACES, again),
        "add a span": ("POST", f"{TRACES}/{trace}/spans", [{"name": "new", "started_at": "2026-03-01T10:00:01Z"}]),
        "change a span": ("PATCH", f"{TRACES}/{trace}/spans/{span}", {"output": step}),
        "tag": ("POST", f"{TRACES}/batch/tags", {"trace_ids": [trace], "add_tags": ["new"]}),
    }
    method, url, body = requests[how]
    answer = await http.request(method, url, json=body)
    assert answer.status_code < 300, answer.text


async def test_the_next_run_scores_the_new_version_beside_the_old_score(
    system: Spine, http: httpx.AsyncClient, judging: Judging
) -> None:
    (trace,) = await new_traces(http, 1)
    first = await start(http, ["coherence"])
    await judging.thinks(1)
    await changed(http, "patch", trace, "")
    judging.go()
    await system.done(UUID(first))
    second = await start(http, ["coherence"])
    await system.done(UUID(second))
    versions = {s["eval_run_id"]: s["trace_version"] for s in await scores(http, trace_id=trace)}
    assert versions.keys() == {first, second} and versions[first] < versions[second]
    (latest,) = (await http.get(f"{SCORES}/{trace}")).json()
    assert latest["eval_run_id"] == second


@pytest.mark.parametrize("how", ["one", "many", "session"])
async def test_a_trace_that_is_deleted_while_it_is_judged_has_no_score_and_its_run_says_why(
    system: Spine, http: httpx.AsyncClient, judging: Judging, how: str
) -> None:
    gone, stays = await new_traces(http, 2)
    await http.patch(f"{TRACES}/{gone}", json={"session_id": "s"})
    run = await start(http, ["coherence"])
    await judging.thinks(2)
    deleted = {
        "one": ("DELETE", f"{TRACES}/{gone}", None),
        "many": ("POST", f"{TRACES}/batch/delete", {"trace_ids": [gone]}),
        "session": ("DELETE", "/sessions/s", None),
    }[how]
    assert (await http.request(deleted[0], deleted[1], json=deleted[2])).status_code < 300
    judging.go()
    done = await system.done(UUID(run))
    assert (done["status"], done["evaluated_count"], done["failed_count"]) == ("COMPLETED", 2, 1)
    pairs = await system.rows("SELECT trace_id, outcome, reason FROM pairs WHERE run_id = :r", r=UUID(run))
    assert {(str(p["trace_id"]), p["outcome"], p["reason"]) for p in pairs} == {
        (gone, "FAILED", "trace deleted"),
        (stays, "SUCCESS", None),
    }
    assert [s["trace_id"] for s in (await http.get(f"{RUNS}/{run}/scores")).json()] == [stays]
    assert await system.rows("SELECT 1 FROM trace_scores WHERE trace_id = :t", t=UUID(gone)) == []
    retry = await http.post(f"{RUNS}/{run}/retry")
    assert retry.status_code == 422 and "deleted" in retry.text


@pytest.mark.parametrize("with_scores", [False, True])
async def test_a_run_that_is_deleted_under_way_is_gone_at_once_and_stays_gone(
    system: Spine, http: httpx.AsyncClient, judging: Judging, with_scores: bool
) -> None:
    """Three questions are answered before, four are being thought about, the rest was never asked."""
    await new_traces(http, 20)
    judging.quick = 3
    run = await start(http, ["coherence"])
    await judging.thinks(3 + SLOTS)
    made = await eventually(lambda: three_scores(http, run), "three scores are there")
    deleted = await http.delete(f"{RUNS}/{run}", params={"delete_scores": str(with_scores).lower()})
    assert deleted.status_code == 204
    await is_gone(http, run)
    judging.go()
    await everything_is_heard(system, http)
    assert Counter(metric for _, metric in judging.made)["coherence"] == 3 + SLOTS
    await is_gone(http, run)
    left = await scores(http)
    assert {s["id"] for s in left} == (set() if with_scores else {s["id"] for s in made})
    assert {s["eval_run_id"] for s in left} <= {None}
    (row,) = await system.rows("SELECT evaluated_count, settled_count FROM runs WHERE id = :r", r=UUID(run))
    assert (row["evaluated_count"], row["settled_count"]) == (3, 3)


async def three_scores(http: httpx.AsyncClient, run: str) -> list[dict[str, Any]]:
    found = (await http.get(f"{RUNS}/{run}/scores")).json()
    return list(found) if len(found) == 3 else []


async def is_gone(http: httpx.AsyncClient, run: str) -> None:
    for method, path in (("GET", ""), ("GET", "/scores"), ("POST", "/retry"), ("DELETE", "")):
        answer = await http.request(method, f"{RUNS}/{run}{path}")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Run not found"})
    assert run not in (await http.get(RUNS)).text
    assert await scores(http, eval_run_id=run) == []


async def test_a_run_whose_key_is_revoked_goes_on_to_its_end(
    system: Spine, http: httpx.AsyncClient, api_calls: Database, judging: Judging
) -> None:
    """It belongs to the project; the key is of no use any more."""
    await new_traces(http, 2 * SLOTS)
    key, key_id = await new_key(api_calls)
    run = await start(http, METRICS, **{"X-API-Key": key})
    await judging.thinks(SLOTS)
    async with api_calls.begin() as tx:
        assert await access.revoke(tx, key_id)
    for method, url in (("GET", f"{RUNS}/{run}"), ("DELETE", f"{RUNS}/{run}"), ("POST", TRACES), ("POST", RUNS)):
        answer = await http.request(method, url, headers={"X-API-Key": key}, json={})
        assert answer.status_code == 401 and "revoked" in answer.json()["detail"], url
    judging.go()
    done = await system.done(UUID(run))
    assert (done["status"], done["evaluated_count"], done["failed_count"]) == ("COMPLETED", 2 * SLOTS, 0)
    assert len((await http.get(f"{RUNS}/{run}/scores")).json()) == 2 * SLOTS * len(METRICS)
    assert (await http.get(f"{RUNS}/{run}", headers={"X-API-Key": key})).status_code == 401


async def test_a_judged_score_that_a_person_changed_is_not_changed_back(
    system: Spine, http: httpx.AsyncClient, judging: Judging
) -> None:
    """The judge's job is delivered again after the change, and it answers again."""
    await new_traces(http, 1)
    judging.go()
    run = await start(http, ["coherence"])
    await system.done(UUID(run))
    (score,) = await scores(http)
    assert (await http.patch(f"{SCORES}/{score['id']}", json={"value": "0.1"})).status_code == 200
    await system.rows("UPDATE pairs SET status = 'owed', outcome = NULL, settled_at = NULL RETURNING 1")
    await system.rows("UPDATE runs SET status = 'RUNNING' RETURNING 1")
    await eventually(lambda: len(judging.made) == 2, "the judge is asked again")
    await everything_is_heard(system, http)
    (after,) = await scores(http)
    assert (after["id"], after["value"], after["source"]) == (score["id"], "0.1", "ANNOTATION")
