"""/sessions: always what the traces say, whatever changed them."""

import asyncio
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from addresses import Urls
from contract_helpers import new_trace
from spine import new_project
from steelyard.store import traces
from steelyard.store.database import Database
from steelyard.store.traces import Arrival


async def listed(client: httpx.AsyncClient, **query: Any) -> list[str]:
    answer = await client.get("/sessions", params=query)
    assert answer.status_code == 200, answer.text
    return [s["session_id"] for s in answer.json()["items"]]


async def test_a_session_sums_up_its_traces(client: httpx.AsyncClient) -> None:
    spans = [
        {"name": "s", "started_at": "2026-03-01T10:00:00Z", "token_usage": {"total_tokens": 9}, "cost": {"total": 0.5}}
    ]
    await new_trace(client, session_id="s", user_id="ada", tags=["b"], spans=spans, ended_at="2026-03-01T10:00:02Z")
    late = {"started_at": "2026-03-02T10:00:00Z", "ended_at": "2026-03-02T10:00:01Z"}
    await new_trace(client, session_id="s", user_id="bob", tags=["a", "b"], status="ERROR", **late)
    await new_trace(client, session_id="other")
    await new_trace(client)
    page = (await client.get("/sessions")).json()
    assert page["total"] == 2
    assert page["items"][0] == {
        "session_id": "s", "trace_count": 2, "first_trace_at": "2026-03-01T10:00:00Z",
        "last_trace_at": "2026-03-02T10:00:00Z", "total_latency_ms": 3000, "has_error": True, "user_id": "bob",
        "tags": ["a", "b"], "tag_count": 2, "total_span_count": 1, "total_tokens": 9, "total_cost": 0.5,
    }  # fmt: skip
    assert page["items"][1]["total_latency_ms"] is None
    detail = (await client.get("/sessions/s", params={"limit": 1, "offset": 1})).json()
    assert detail["trace_count"] == 2 and [t["user_id"] for t in detail["traces"]] == ["bob"]


async def test_sessions_are_filtered_and_sorted(client: httpx.AsyncClient) -> None:
    for n, (name, user, status, tag) in enumerate(
        [("Trip-1", "ada", "ERROR", "x"), ("trip_2", "bob", "COMPLETED", "y"), ("50%", "ada", "COMPLETED", "z")]
    ):
        for k in range(n + 1):
            more = {"user_id": user, "status": status, "tags": [tag]}
            await new_trace(client, session_id=name, started_at=f"2026-03-0{n + 1}T0{k}:00:00Z", **more)
    assert await listed(client) == ["50%", "trip_2", "Trip-1"]
    assert await listed(client, sort_by="trace_count", sort_order="asc") == ["Trip-1", "trip_2", "50%"]
    assert await listed(client, user_id="ada") == ["50%", "Trip-1"]
    assert await listed(client, has_error="true") == ["Trip-1"]
    assert await listed(client, has_error="false") == ["50%", "trip_2"]
    assert await listed(client, query="TRIP") == ["trip_2", "Trip-1"]
    assert await listed(client, query="%") == ["50%"]
    assert await listed(client, query="_") == ["trip_2"]
    assert await listed(client, tags=["x", "z"]) == ["50%", "Trip-1"]
    assert await listed(client, started_after="2026-03-02T01:00:00Z", started_before="2026-03-03T00:00:00Z") == [
        "trip_2"
    ]
    assert await listed(client, limit=1, offset=1) == ["trip_2"]


async def test_sessions_are_counted_in_the_bucket_in_which_they_began(client: httpx.AsyncClient) -> None:
    for start in ("2025-12-31T23:00:00Z", "2026-01-02T00:00:00Z", "2026-01-06T00:00:00Z"):
        await new_trace(client, session_id="long", started_at=start)
    await new_trace(client, session_id="short", started_at="2026-01-05T00:00:00Z", ended_at="2026-01-05T00:00:01Z")
    query = {"started_after": "2025-01-01T00:00:00Z", "started_before": "2027-01-01T00:00:00Z", "granularity": "week"}
    buckets = (await client.get("/sessions/analytics", params=query)).json()
    assert [(b["bucket"], b["session_count"], b["avg_traces_per_session"]) for b in buckets] == [
        ("2025-12-29T00:00:00Z", 1, 3.0),
        ("2026-01-05T00:00:00Z", 1, 1.0),
    ]
    assert buckets[1]["avg_session_duration_ms"] == 1000


@pytest.mark.parametrize(
    "name", ["analytics", "a/b", "a/b/", "/", "..", "a b", "ü/✓", "%2F", "?x=1#y", "s" * 255, "😀" * 255, "a\x00b", "."]
)
async def test_any_session_that_is_accepted_can_be_read_and_deleted(client: httpx.AsyncClient, name: str) -> None:
    await new_trace(client, session_id=name)
    url = f"http://steelyard/sessions/{quote(name, safe='').replace('.', '%2E')}"
    answer = await client.get(url)
    assert answer.status_code == 200, answer.text
    assert answer.json()["session_id"] == name.replace("\x00", "\ufffd") and len(answer.json()["traces"]) == 1
    assert (await client.delete(url)).json() == {"deleted": 1}
    assert (await client.delete(url)).status_code == 404
    assert (await client.get("/sessions")).json()["total"] == 0


async def test_the_analytics_need_both_times(client: httpx.AsyncClient) -> None:
    answer = await client.get("/sessions/analytics", params={"started_after": "2026-01-01T00:00:00Z"})
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "started_before"
    assert (await client.get("/sessions/analytics")).status_code == 422


async def test_a_deleted_session_takes_its_scores_along(client: httpx.AsyncClient) -> None:
    trace = await new_trace(client, session_id="s")
    await client.post("/evaluations/trace-scores", json={"trace_id": trace, "name": "q", "value": "1"})
    assert (await client.delete("/sessions/s")).json() == {"deleted": 1}
    assert (await client.get("/evaluations/trace-scores")).json()["total"] == 0


IDS = [UUID(int=n) for n in range(1, 6)]
NAMES = st.sampled_from(["a", "b", None])
HOURS = st.integers(0, 5).map(lambda h: f"2026-03-01T0{h}:00:00+00:00")
SPANS = st.lists(st.integers(0, 3), max_size=2)
STEPS = st.one_of(
    st.tuples(st.just("put"), st.lists(st.tuples(st.sampled_from(IDS), NAMES, HOURS, SPANS), min_size=1, max_size=4)),
    st.tuples(st.just("patch"), st.tuples(st.sampled_from(IDS), NAMES, st.sampled_from(["ERROR", "COMPLETED"]))),
    st.tuples(
        st.just("end"), st.tuples(st.sampled_from(IDS), HOURS | st.none(), st.sampled_from(["ann", "bob", None]))
    ),
    st.tuples(st.just("retag"), st.tuples(st.sampled_from(IDS), st.lists(st.sampled_from("xyz")))),
    st.tuples(st.just("spans"), st.tuples(st.sampled_from(IDS), SPANS, HOURS)),
    st.tuples(
        st.just("tag"), st.tuples(st.lists(st.sampled_from(IDS)), st.sampled_from("xyz"), st.sampled_from("xyz"))
    ),
    st.tuples(st.just("delete"), st.lists(st.sampled_from(IDS), max_size=3)),
    st.tuples(st.just("drop"), st.sampled_from(["a", "b"])),
)
NAIVE = text(
    """
    SELECT project_id, session_id, count(*), count(*) FILTER (WHERE status = 'ERROR'), min(started_at), max(started_at),
        max(coalesce(ended_at, started_at)),
        (SELECT sum(greatest(extract(epoch FROM x.ended_at - x.started_at) * 1000, 0))::float8 FROM traces x
            WHERE x.session_id = t.session_id AND x.project_id = t.project_id AND x.ended_at IS NOT NULL),
        sum((SELECT count(*) FROM spans s WHERE s.trace_id = t.trace_id)),
        sum((SELECT coalesce(sum(s.total_tokens), 0) FROM spans s WHERE s.trace_id = t.trace_id)),
        round(sum((SELECT coalesce(sum(s.total_cost), 0) FROM spans s WHERE s.trace_id = t.trace_id))::numeric, 9),
        (SELECT array_agg(DISTINCT tag ORDER BY tag) FROM traces x, unnest(x.tags) tag
            WHERE x.session_id = t.session_id AND x.project_id = t.project_id),
        (SELECT count(DISTINCT tag) FROM traces x, unnest(x.tags) tag
            WHERE x.session_id = t.session_id AND x.project_id = t.project_id)
    FROM traces t WHERE session_id IS NOT NULL GROUP BY project_id, session_id ORDER BY session_id
    """
)
KEPT = text(
    """
    SELECT project_id, session_id, trace_count, error_count, first_trace_at, last_trace_at, ended_at, latency_ms,
        span_count, total_tokens, round(total_cost::numeric, 9), nullif(tags, '{}'), tag_count
    FROM sessions ORDER BY session_id
    """
)
# Rows that one of the two has and the other lacks.
TAGGED = text(
    """
    WITH seen AS (SELECT DISTINCT project_id, tag, started_at, trace_id FROM traces, unnest(tags) AS tag),
        kept AS (SELECT project_id, tag, started_at, trace_id FROM trace_tags)
    SELECT tag FROM ((TABLE seen EXCEPT TABLE kept) UNION ALL (TABLE kept EXCEPT TABLE seen)) AS differ
    """
)


SESSIONS_TAGGED = text(
    """
    WITH seen AS (
            SELECT project_id, session_id, tag, count(DISTINCT trace_id)::int AS n FROM traces, unnest(tags) AS tag
            WHERE session_id IS NOT NULL GROUP BY 1, 2, 3
        ), kept AS (SELECT project_id, session_id, tag, n FROM session_tags)
    SELECT tag FROM ((TABLE seen EXCEPT TABLE kept) UNION ALL (TABLE kept EXCEPT TABLE seen)) AS differ
    """
)


async def _step(database: Database, project: UUID, kind: str, what: Any) -> None:
    async with database.begin(project) as tx:
        if kind == "put":
            arrivals = []
            for trace_id, name, at, spans in what:
                trace = {
                    "trace_id": trace_id,
                    "name": "t",
                    "session_id": name,
                    "started_at": at,
                    "tags": [f"t{at[12]}"],
                }
                rows = [
                    {"span_id": UUID(int=n), "name": "s", "started_at": at, "token_usage": {"total_tokens": n}}
                    | {"cost": {"total": n / 10}}
                    for n in spans
                ]
                arrivals.append(Arrival(trace | {"ended_at": at.replace(":00:00", ":10:00")}, rows))
            assert await traces.put_many(tx, project, arrivals) == set()
        elif kind == "patch":
            await traces.patch(tx, project, what[0], {"session_id": what[1], "status": what[2]})
        elif kind == "end":
            await traces.patch(tx, project, what[0], {"ended_at": what[1], "user_id": what[2]})
        elif kind == "retag":
            await traces.patch(tx, project, what[0], {"tags": what[1]})
        elif kind == "spans":
            trace_id, spans, at = what
            rows = [
                {"span_id": UUID(int=10 + n), "name": "s", "started_at": at, "cost": {"total": n / 3}} for n in spans
            ]
            await traces.add_spans(tx, project, trace_id, rows)
        elif kind == "tag":
            await traces.retag(tx, project, what[0], [what[1]], [what[2]])
        elif kind == "delete":
            await traces.delete(tx, project, what)
        else:
            await traces.delete_session(tx, project, what)


async def test_sessions_are_what_a_naive_count_finds_after_any_changes(
    api_database: Database, database: Database, urls: Urls
) -> None:
    found: list[list[Any]] = []

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(STEPS, min_size=1, max_size=8))
    def collect(steps: list[Any]) -> None:
        found.append(steps)

    collect()
    project = await new_project(urls)
    for steps in found:
        for kind, what in steps:
            await _step(api_database, project, kind, what)
        async with database.begin() as tx:
            naive, kept = (await tx.execute(NAIVE)).all(), (await tx.execute(KEPT)).all()
            tagged = (await tx.execute(TAGGED)).scalars().all()
            tagged = [*tagged, *(await tx.execute(SESSIONS_TAGGED)).scalars()]
        assert [tuple(r) for r in kept] == [tuple(r) for r in naive], steps
        assert tagged == [], steps
        await _step(api_database, project, "delete", IDS)
    assert any(len(steps) > 3 for steps in found)


async def test_a_foreign_session_is_none_of_ours(client: httpx.AsyncClient) -> None:
    await new_trace(client, session_id="s")
    stranger = {"X-Project-Name": f"p-{uuid4()}"}
    assert (await client.get("/sessions/s", headers=stranger)).status_code == 404
    assert (await client.delete("/sessions/s", headers=stranger)).status_code == 404
    assert (await client.get("/sessions", headers=stranger)).json()["total"] == 0
    assert (await client.get("/sessions/s")).status_code == 200


async def test_traces_that_enter_a_new_session_at_the_same_time_are_all_counted(client: httpx.AsyncClient) -> None:
    """Some are sent into it, others are moved: whoever makes the session's row is waited for."""
    for turn in range(5):
        moved = [await new_trace(client, session_id="old") for _ in range(4)]
        await asyncio.gather(
            *(client.patch(f"/traces/{t}", json={"session_id": f"n{turn}"}) for t in moved),
            *(new_trace(client, session_id=f"n{turn}") for _ in range(4)),
        )
        assert (await client.get(f"/sessions/n{turn}")).json()["trace_count"] == 8
