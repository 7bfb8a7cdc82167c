"""Session scores added up, over time, of one session, and sessions compared: against a naive count."""

import random
from typing import Any

import httpx
import pytest

from contract_sessions import ANALYTICS, RUNS, STRANGE, a_score, new_session, put, spelled
from steelyard.store.database import Database

METRIC = {"metric_name": "agent_reliability"}


async def ask(client: httpx.AsyncClient, what: str, **query: Any) -> Any:
    answer = await client.get(f"{ANALYTICS}/{what}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def ranked(client: httpx.AsyncClient, **query: Any) -> list[tuple[str, float]]:
    page = await ask(client, "comparison", **METRIC, **query)
    return [(r["session_id"], r["score"]) for r in page["items"]]


async def test_session_scores_are_added_up_apart_from_traces(client: httpx.AsyncClient, database: Database) -> None:
    assert await ask(client, "summary") == []
    project = await new_session(client, "s")
    (trace,) = (await client.get("/traces")).json()["items"]
    of_trace = {"trace_id": trace["trace_id"], "name": "agent_reliability", "value": "0"}
    assert (await client.post("/evaluations/trace-scores", json=of_trace)).status_code == 201
    values = (0.2, 0.4, 0.9, None)
    for day, value in enumerate(values):
        await put(database, a_score(project, "s", value), day=day)
    (row,) = await ask(client, "summary")
    assert row == {
        "metric_name": "agent_reliability", "avg_score": pytest.approx(0.5), "min_score": 0.2, "max_score": 0.9,
        "median_score": 0.4, "success_count": 3, "failed_count": 1, "latest_score_at": "2026-03-04T00:00:00Z",
    }  # fmt: skip
    (early,) = await ask(client, "summary", date_to="2026-03-02T00:00:00Z")
    assert (early["success_count"], early["failed_count"]) == (1, 0)
    days = await ask(client, "trend", **METRIC)
    assert [(d["bucket"], d["avg_score"], d["count"]) for d in days] == [
        ("2026-03-01T00:00:00Z", 0.2, 1), ("2026-03-02T00:00:00Z", 0.4, 1), ("2026-03-03T00:00:00Z", 0.9, 1),
    ]  # fmt: skip
    assert len(await ask(client, "trend", **METRIC, granularity="week")) == 2
    buckets = await ask(client, "distribution", **METRIC, buckets=5)
    assert [b["count"] for b in buckets] == [0, 1, 1, 0, 1]
    (one,) = (await client.get("/evaluations/analytics/trace-scores/summary")).json()
    assert (one["success_count"], one["avg_score"]) == (1, 0.0)


async def test_a_session_is_ranked_by_the_newest_value_that_it_has(
    client: httpx.AsyncClient, database: Database
) -> None:
    project = await new_session(client, "a", 2, started_at="2026-03-07T10:00:00Z")
    run = (await client.post(RUNS, json={"metrics": ["agent_reliability"]})).json()["id"]
    await new_session(client, "b")
    for n, (session, value) in enumerate([("a", 0.9), ("b", 0.5), ("a", 0.1), ("a", None), ("gone", 0.0)]):
        of_run = {"eval_run_id": run} if n == 2 else {}
        told = {"session_version": f"v{n}", "metadata": {"worst_trace": f"t{n}"}}
        await put(database, a_score(project, session, value, **told, **of_run), day=n)
    await put(database, a_score(project, "b", 0.0, name="agent_consistency"), day=9)
    page = await ask(client, "comparison", **METRIC)
    assert (page["total"], page["limit"], page["offset"]) == (2, 20, 0)
    assert page["items"][0] == {
        "session_id": "a", "score": 0.1, "evaluated_at": "2026-03-03T00:00:00Z", "eval_run_id": run, "trace_count": 2,
        "last_trace_at": "2026-03-07T10:00:00Z", "session_version": "v2", "worst_trace": "t2",
    }  # fmt: skip
    assert await ranked(client) == [("a", 0.1), ("b", 0.5)]
    assert await ranked(client, sort_order="desc") == [("b", 0.5), ("a", 0.1)]
    past = await ask(client, "comparison", **METRIC, offset=7)
    assert (past["total"], past["items"]) == (2, [])
    assert (await ask(client, "comparison", metric_name="nonsense"))["total"] == 0


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_of_equals_never_overlap_and_agree_with_a_naive_ranking(
    client: httpx.AsyncClient, database: Database, order: str
) -> None:
    drawn, newest = random.Random(7), dict[str, float]()
    for n in range(30):
        project = await new_session(client, f"s{n:02}")
    for day in range(4):
        values = {f"s{n:02}": drawn.choice([0.0, 0.5, 1.0, None]) for n in range(30) if drawn.random() < 0.7}
        await put(database, *(a_score(project, s, v) for s, v in values.items()), day=day)
        newest |= {s: v for s, v in values.items() if v is not None}
    sign = -1 if order == "desc" else 1
    expected = sorted(newest.items(), key=lambda item: (sign * item[1], item[0]))
    pages = [await ranked(client, sort_order=order, limit=7, offset=n) for n in range(0, 35, 7)]
    assert [row for page in pages for row in page] == expected and len(expected) > 20


async def test_scores_of_one_moment_are_ranked_the_same_each_time(
    client: httpx.AsyncClient, database: Database
) -> None:
    """Two runs whose last signals were settled together have scores of the same time."""
    project = await new_session(client, "s")
    await put(database, *(a_score(project, "s", v, metadata={"worst_trace": str(v)}) for v in (0.7, 0.3, 0.5)))
    page = await ask(client, "comparison", **METRIC)
    assert [(r["score"], r["worst_trace"]) for r in page["items"]] == [(0.3, "0.3")] and page["total"] == 1


async def test_a_history_is_in_the_order_of_time_and_of_the_newest(
    client: httpx.AsyncClient, database: Database
) -> None:
    project = await new_session(client, "s")
    run = (await client.post(RUNS, json={"metrics": ["agent_reliability"]})).json()["id"]
    for day, value in ((2, 0.3), (0, 0.1), (1, None), (3, 0.4)):
        seen = {"traces_seen": day, "session_version": f"v{day}", "eval_run_id": run if day == 3 else None}
        names = ("agent_consistency", "agent_reliability")
        await put(database, *(a_score(project, "s", value, name=n, **seen) for n in names), day=day)
    whole = await ask(client, "history/s")
    assert [(r["metric_name"], r["traces_seen"]) for r in whole] == [
        (n, d) for d in range(4) for n in ("agent_consistency", "agent_reliability")
    ]
    some = await ask(client, "history/s", **METRIC, limit=3)
    assert [(r["score"], r["status"]) for r in some] == [(None, "FAILED"), (0.3, "SUCCESS"), (0.4, "SUCCESS")]
    assert some[-1] == {
        "metric_name": "agent_reliability", "score": 0.4, "eval_run_id": run, "created_at": "2026-03-04T00:00:00Z",
        "status": "SUCCESS", "session_version": "v3", "traces_seen": 3, "snapshot_at": "2026-03-01T00:00:00Z",
    }  # fmt: skip
    assert await ask(client, "history/s", metric_name="nonsense") == []


async def test_the_history_of_any_session_can_be_read(client: httpx.AsyncClient, database: Database) -> None:
    project = await new_session(client, "none yet")
    assert await ask(client, "history/none%20yet") == []
    await put(database, *(a_score(project, name.replace("\x00", "\ufffd")) for name in STRANGE))
    for name in STRANGE:
        answer = await client.get(f"http://steelyard{ANALYTICS}/history/{spelled(name)}")
        assert answer.status_code == 200 and len(answer.json()) == 1, (name, answer.text)
    for path, who in (("history/unknown", "p"), (f"history/{spelled('a/b')}", "stranger")):
        answer = await client.get(f"http://steelyard{ANALYTICS}/{path}", headers={"X-Project-Name": who})
        assert (answer.status_code, answer.json()) == (404, {"detail": "Session not found"})


@pytest.mark.parametrize(
    ("what", "query", "field"),
    [
        ("trend", {}, "metric_name"), ("distribution", {}, "metric_name"), ("comparison", {}, "metric_name"),
        ("comparison", METRIC | {"sort_order": "up"}, "sort_order"), ("comparison", METRIC | {"limit": 101}, "limit"),
        ("comparison", METRIC | {"offset": -1}, "offset"), ("history/s", {"limit": 201}, "limit"),
        ("history/s", {"metric_name": ""}, "metric_name"), ("distribution", METRIC | {"buckets": 101}, "buckets"),
        ("trend", METRIC | {"granularity": "year"}, "granularity"), ("summary", {"date_to": "soon"}, "date_to"),
    ],
)  # fmt: skip
async def test_a_question_that_cannot_be_is_a_422(
    client: httpx.AsyncClient, what: str, query: dict[str, Any], field: str
) -> None:
    answer = await client.get(f"{ANALYTICS}/{what}", params=query)
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == field
