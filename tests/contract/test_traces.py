"""/traces as real clients use it."""

from typing import Any
from uuid import uuid4

import httpx

START = "2026-03-01T10:00:00Z"


def span(name: str, **fields: Any) -> dict[str, Any]:
    return {"span_id": str(uuid4()), "name": name, "started_at": START, **fields}


async def sent(client: httpx.AsyncClient, **fields: Any) -> str:
    answer = await client.post("/traces", json={"name": "trip", "started_at": START, **fields})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["trace_id"])


async def test_a_trace_comes_back_as_it_was_sent(client: httpx.AsyncClient) -> None:
    tool = span(
        "search", kind="TOOL", input={"z": 1, "a": [1, 2.5, None]}, output="3 flights", ended_at="2026-03-01T10:00:02Z"
    )
    model = span(
        "plan", kind="LLM", status="OK", parent_span_id=tool["span_id"], model="gpt-5", cost={"total": 0.25},
        token_usage={"prompt_tokens": 10, "completion_tokens": 5}, completion_start_time="2026-03-01T10:00:00.500Z",
    )  # fmt: skip
    trace_id = await sent(
        client, input={"q": "Lisbon"}, output="booked", session_id="s/1", user_id="ü", tags=["b", "a"], environment="prod",
        metadata={"k": {"n": None}}, spans=[tool, model], ended_at="2026-03-01T12:00:05+02:00",
    )  # fmt: skip

    read = (await client.get(f"/traces/{trace_id}")).json()

    assert (read["input"], read["output"], read["metadata"]) == ({"q": "Lisbon"}, "booked", {"k": {"n": None}})
    assert (read["status"], read["session_id"], read["user_id"], read["tags"]) == ("COMPLETED", "s/1", "ü", ["b", "a"])
    assert read["ended_at"] == "2026-03-01T10:00:05Z"
    assert [s["name"] for s in read["spans"]] == ["search", "plan"]
    assert list(read["spans"][0]["input"]) == ["z", "a"]
    assert read["spans"][0]["latency_ms"] == 2000 and read["spans"][1]["time_to_first_token_ms"] == 500

    (listed,) = (await client.get("/traces")).json()["items"]
    assert (listed["span_count"], listed["total_tokens"], listed["total_cost"], listed["latency_ms"]) == (
        2,
        15,
        0.25,
        5000,
    )


async def test_the_same_id_again_updates_and_keeps_what_was_not_sent(client: httpx.AsyncClient) -> None:
    first = span("search", kind="TOOL", output="3 flights")
    trace_id = await sent(
        client, output="booked", status="RUNNING", tags=["a"], metadata={"a": 1, "b": 1}, spans=[first]
    )
    again = {**first, "name": "search again", "error": "late"}
    again.pop("output")
    await sent(
        client, trace_id=trace_id, name="trip 2", tags=["b", "a"], metadata={"b": 2}, spans=[again, span("second")]
    )
    read = (await client.get(f"/traces/{trace_id}")).json()
    assert (read["name"], read["output"], read["status"]) == ("trip 2", "booked", "RUNNING")
    assert (read["tags"], read["metadata"]) == (["a", "b"], {"a": 1, "b": 2})
    assert [(s["name"], s["output"], s["kind"], s["error"]) for s in read["spans"]] == [
        ("search again", "3 flights", "TOOL", "late"),
        ("second", None, "OTHER", None),
    ]


async def test_a_span_sent_twice_in_one_request_is_one_span(client: httpx.AsyncClient) -> None:
    one = span("search", output="first")
    trace_id = await sent(client, spans=[one, {**one, "name": "renamed"}])
    (only,) = (await client.get(f"/traces/{trace_id}")).json()["spans"]
    assert (only["name"], only["output"]) == ("renamed", "first")


async def test_lists_filter_sort_and_page(client: httpx.AsyncClient) -> None:
    for n in range(5):
        await sent(client, name=f"n{n}%", started_at=f"2026-03-0{n + 1}T00:00:00Z", session_id="s" if n < 2 else None)

    async def names(**query: Any) -> list[str]:
        answer = await client.get("/traces", params=query)
        assert answer.status_code == 200, answer.text
        return [t["name"] for t in answer.json()["items"]]

    assert await names() == ["n4%", "n3%", "n2%", "n1%", "n0%"]
    assert await names(limit=2, offset=1) == ["n3%", "n2%"]
    assert await names(session_id="s", sort_by="name", sort_order="asc") == ["n0%", "n1%"]
    assert await names(name="N3%") == ["n3%"]
    assert await names(name="_") == []
    assert await names(started_after="2026-03-02T00:00:00Z", started_before="2026-03-04T00:00:00Z") == ["n2%", "n1%"]
    page = (await client.get("/traces", params={"limit": 2})).json()
    assert (page["total"], page["limit"], page["offset"]) == (5, 2, 0)


async def test_what_postgres_cannot_hold_is_replaced_and_not_refused(client: httpx.AsyncClient) -> None:
    trace_id = await sent(client, name="a\x00b", input={"k\x00": "\x00"}, tags=["\x00"])
    read = (await client.get(f"/traces/{trace_id}")).json()
    assert (read["name"], read["input"], read["tags"]) == ("a\ufffdb", {"k\ufffd": "\ufffd"}, ["\ufffd"])


async def test_a_trace_shows_the_sums_that_lists_show(client: httpx.AsyncClient) -> None:
    spans = [
        {
            "name": "a",
            "started_at": START,
            "token_usage": {"prompt_tokens": n, "completion_tokens": 1},
            "cost": {"total": 0.1 * n},
        }
        for n in (1, 2, 3)
    ]
    trace = await sent(client, session_id="s", spans=spans)
    (listed,) = (await client.get("/traces")).json()["items"]
    (of_session,) = (await client.get("/sessions/s")).json()["traces"]
    changed = (await client.patch(f"/traces/{trace}", json={"name": "b"})).json()
    for shown in ((await client.get(f"/traces/{trace}")).json(), of_session, changed):
        assert (shown["total_tokens"], shown["total_cost"]) == (listed["total_tokens"], listed["total_cost"])
    assert listed["total_tokens"] == 9 and listed["total_cost"] > 0.5
