"""/traces after the first sending: patched, given spans, tagged, deleted, counted over time."""

from typing import Any
from uuid import uuid4

import httpx
import pytest

from contract_helpers import new_trace

START = "2026-03-01T10:00:00Z"
WHOLE_TIME = {"started_after": "2025-12-29T00:00:00Z", "started_before": "2026-12-01T00:00:00Z"}


def span(name: str, **fields: Any) -> dict[str, Any]:
    return {"span_id": str(uuid4()), "name": name, "started_at": START, **fields}


async def read(client: httpx.AsyncClient, trace: str) -> dict[str, Any]:
    answer = await client.get(f"/traces/{trace}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_a_patch_touches_only_what_it_names_and_null_clears(client: httpx.AsyncClient) -> None:
    trace = await new_trace(client, session_id="s", user_id="u", tags=["a"], metadata={"a": 1, "b": 1}, output="old")
    patch = {"session_id": None, "metadata": {"b": 2}, "tags": ["x"], "name": None, "status": "ERROR", "output": None}
    answer = await client.patch(f"/traces/{trace}", json=patch)
    assert answer.status_code == 200, answer.text
    now = answer.json()
    assert now == await read(client, trace)
    assert (now["session_id"], now["user_id"], now["tags"], now["output"]) == (None, "u", ["x"], None)
    assert (now["metadata"], now["name"], now["status"], now["input"]) == ({"a": 1, "b": 2}, "trip", "ERROR", "hi")
    assert now["version"] == 2


async def test_an_empty_patch_changes_nothing_but_is_a_change(client: httpx.AsyncClient) -> None:
    trace = await new_trace(client, output="same")
    assert (await client.patch(f"/traces/{trace}", json={})).json()["output"] == "same"


async def test_spans_are_added_and_updated_and_counted(client: httpx.AsyncClient) -> None:
    first = span("plan", kind="LLM", model="m", token_usage={"prompt_tokens": 10, "completion_tokens": 5})
    trace = await new_trace(client, spans=[first])
    second = span("search", kind="TOOL", cost={"total": 0.5})
    again = {**first, "output": "done"}
    answer = await client.post(f"/traces/{trace}/spans", json=[second, again])
    assert (answer.status_code, answer.json()) == (201, {"span_ids": [second["span_id"], first["span_id"]]})
    kept = {s["span_id"]: s for s in (await read(client, trace))["spans"]}
    assert kept[first["span_id"]]["output"] == "done" and kept[first["span_id"]]["token_usage"]["prompt_tokens"] == 10
    (listed,) = (await client.get("/traces")).json()["items"]
    assert (listed["span_count"], listed["total_tokens"], listed["total_cost"]) == (2, 15, 0.5)


async def test_a_span_is_patched_and_the_traces_sums_follow(client: httpx.AsyncClient) -> None:
    one = span("plan", kind="LLM", token_usage={"total_tokens": 7}, error="slow", metadata={"a": 1})
    trace = await new_trace(client, spans=[one])
    patch = {"token_usage": {"input_tokens": 3, "output_tokens": 4.0}, "cost": {"in": 0.25, "out": 0.5}, "error": None}
    answer = await client.patch(f"/traces/{trace}/spans/{one['span_id']}", json={**patch, "metadata": {"b": 2}})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["error"], answer.json()["metadata"], answer.json()["name"]) == (
        None,
        {"a": 1, "b": 2},
        "plan",
    )
    (listed,) = (await client.get("/traces")).json()["items"]
    assert (listed["total_tokens"], listed["total_cost"]) == (7, 0.75)
    await client.patch(f"/traces/{trace}/spans/{one['span_id']}", json={"cost": None})
    assert (await client.get("/traces")).json()["items"][0]["total_cost"] == 0
    assert (await client.patch(f"/traces/{trace}/spans/{uuid4()}", json={})).status_code == 404
    assert (await client.patch(f"/traces/{uuid4()}/spans/{one['span_id']}", json={})).status_code == 404


async def test_a_deleted_trace_takes_its_scores_along(client: httpx.AsyncClient) -> None:
    trace, other = await new_trace(client), await new_trace(client)
    for one in (trace, other):
        await client.post("/evaluations/trace-scores", json={"trace_id": one, "name": "q", "value": "1"})
    assert (await client.delete(f"/traces/{trace}")).status_code == 204
    assert (await client.get(f"/traces/{trace}")).status_code == 404
    assert (await client.delete(f"/traces/{trace}")).status_code == 404
    left = (await client.get("/evaluations/trace-scores")).json()
    assert [s["trace_id"] for s in left["items"]] == [other] and left["total"] == 1


async def test_batches_delete_and_tag_what_is_there(client: httpx.AsyncClient) -> None:
    ids = [await new_trace(client, tags=["a", "b"]) for _ in range(3)]
    asked = {"trace_ids": [*ids, str(uuid4())], "add_tags": ["c", "a"], "remove_tags": ["b"]}
    assert (await client.post("/traces/batch/tags", json=asked)).json() == {"updated": 3}
    assert (await read(client, ids[0]))["tags"] == ["a", "c"]
    gone = {"trace_ids": [ids[0], ids[0], ids[1], str(uuid4())]}
    assert (await client.post("/traces/batch/delete", json=gone)).json() == {"deleted": 2}
    assert (await client.get("/traces")).json()["total"] == 1


@pytest.mark.parametrize(
    ("verb", "path", "body", "field"),
    [
        ("POST", "/traces/batch/delete", {"trace_ids": []}, "trace_ids"),
        ("POST", "/traces/batch/delete", {"trace_ids": ["x"]}, "trace_ids.0"),
        ("POST", "/traces/batch/tags", {"trace_ids": [str(uuid4())]}, "add_tags"),
        ("POST", "/traces/{id}/spans", [], "body"),
        ("POST", "/traces/{id}/spans", [{"name": "x"}], "0.started_at"),
        ("PATCH", "/traces/{id}", {"name": ""}, "name"),
        ("PATCH", "/traces/{id}", {"ended_at": "soon"}, "ended_at"),
        ("PATCH", "/traces/{id}/spans/{id}", {"cost": {"total": "much"}}, "cost.total"),
    ],
)
async def test_a_change_that_cannot_be_is_a_422_by_its_field(
    client: httpx.AsyncClient, verb: str, path: str, body: Any, field: str
) -> None:
    trace = await new_trace(client)
    answer = await client.request(verb, path.replace("{id}", trace), json=body)
    assert answer.status_code == 422, answer.text
    assert [e["field"] for e in answer.json()["errors"]] == [field]


async def test_traces_are_counted_by_hour_day_and_week(client: httpx.AsyncClient) -> None:
    """Weeks begin on Monday and do not care where a year ends: 31 December 2025 was a Wednesday."""
    for start, end, status in (
        ("2025-12-31T23:30:00Z", "2025-12-31T23:30:01Z", "COMPLETED"),
        ("2026-01-01T00:30:00Z", "2026-01-01T00:30:03Z", "ERROR"),
        ("2026-01-05T00:00:00Z", None, "RUNNING"),
    ):
        await new_trace(client, started_at=start, ended_at=end, status=status)

    async def buckets(**query: str) -> list[dict[str, Any]]:
        answer = await client.get("/traces/analytics", params={**WHOLE_TIME, **query})
        assert answer.status_code == 200, answer.text
        return list(answer.json())

    weeks = await buckets(granularity="week")
    assert [(b["bucket"], b["trace_count"], b["error_count"]) for b in weeks] == [
        ("2025-12-29T00:00:00Z", 2, 1),
        ("2026-01-05T00:00:00Z", 1, 0),
    ]
    assert (weeks[0]["avg_latency_ms"], weeks[0]["p50_latency_ms"], weeks[1]["avg_latency_ms"]) == (2000, 2000, None)
    assert len(await buckets(granularity="day", metric="errors")) == 3
    assert [b["bucket"] for b in await buckets(granularity="hour")][:2] == [
        "2025-12-31T23:00:00Z",
        "2026-01-01T00:00:00Z",
    ]
    empty = {"started_after": "2020-01-01T00:00:00Z", "started_before": "2020-02-01T00:00:00Z"}
    assert (await client.get("/traces/analytics", params=empty)).json() == []
    assert (await client.get("/traces/analytics")).status_code == 422


async def test_usage_is_added_up_over_time_and_by_model(client: httpx.AsyncClient) -> None:
    used = {"prompt_tokens": 10, "completion_tokens": 4}
    spans = [
        span("a", model="big", token_usage=used, cost={"total": 0.25}),
        span("b", model="big", token_usage={**used, "total_tokens": 20}, cost={"in": 0.5, "out": 0.25}),
        span("c", model="small", token_usage={"note": "none", "total_tokens": True}),
        span("d"),
    ]
    await new_trace(client, spans=spans)
    await new_trace(client, started_at="2026-03-02T10:00:00Z")
    tokens = (await client.get("/traces/analytics", params={**WHOLE_TIME, "metric": "tokens"})).json()
    assert [(b["total_tokens"], b["prompt_tokens"], b["completion_tokens"], b["total_cost"]) for b in tokens] == [
        (34, 20, 8, 1.0),
        (0, 0, 0, 0),
    ]
    models = (await client.get("/traces/analytics", params={**WHOLE_TIME, "metric": "models"})).json()
    assert models == [
        {"model": "big", "call_count": 2, "total_tokens": 34, "total_cost": 1.0},
        {"model": "small", "call_count": 1, "total_tokens": 0, "total_cost": 0},
    ]


async def test_users_are_listed_the_last_seen_first(client: httpx.AsyncClient) -> None:
    for n, (user, status) in enumerate([("ada", "ERROR"), ("bob", "COMPLETED"), ("ada", "COMPLETED"), (None, "ERROR")]):
        await new_trace(client, user_id=user, status=status, started_at=f"2026-03-0{n + 1}T00:00:00Z")
    page = (await client.get("/traces/users")).json()
    assert page["total"] == 2
    assert [(u["user_id"], u["trace_count"], u["error_count"]) for u in page["items"]] == [("ada", 2, 1), ("bob", 1, 0)]
    assert (page["items"][0]["first_seen"], page["items"][0]["last_seen"]) == (
        "2026-03-01T00:00:00Z",
        "2026-03-03T00:00:00Z",
    )
    beyond = (await client.get("/traces/users", params={"offset": 5})).json()
    assert (beyond["items"], beyond["total"]) == ([], 2)


@pytest.mark.parametrize("by", ["started_at", "ended_at", "name", "latency", "status"])
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_every_order_is_the_order_of_the_values_and_the_missing_come_last(
    client: httpx.AsyncClient, by: str, order: str
) -> None:
    rows = [
        ("b", "2026-03-01T10:00:00Z", "2026-03-01T10:00:09Z", "ERROR"),
        ("a", "2026-03-01T12:00:00Z", None, "RUNNING"),
        ("c", "2026-03-01T11:00:00Z", "2026-03-01T11:00:01Z", "COMPLETED"),
    ]
    for name, start, end, status in rows:
        await new_trace(client, name=name, started_at=start, ended_at=end, status=status)
    items = (await client.get("/traces", params={"sort_by": by, "sort_order": order})).json()["items"]
    values = [i["latency_ms" if by == "latency" else by] for i in items]
    there = [v for v in values if v is not None]
    assert there == sorted(there, reverse=order == "desc")
    assert values[len(there) :] == [None] * (len(values) - len(there))
