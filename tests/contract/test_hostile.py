"""Bad input has a status of the contract and a sentence, never a 500."""

import gzip
import json
from typing import Any

import httpx
import pytest

TRACE: dict[str, Any] = {"name": "t", "started_at": "2026-03-01T10:00:00Z"}


def body(**fields: Any) -> bytes:
    return json.dumps({**TRACE, **fields}).encode()


def deep(levels: int) -> bytes:
    return b'{"name":"t","started_at":"2026-03-01T10:00:00Z","input":' + b"[" * levels + b"]" * levels + b"}"


BODIES = {
    "not JSON": b"hello",
    "empty": b"",
    "half a body": b'{"name": "t"',
    "not UTF-8": b'{"name": "\xff\xfe"}',
    "lone surrogate": b'{"name": "\\ud800", "started_at": "2026-03-01T10:00:00Z"}',
    "NaN": b'{"name": "t", "started_at": "2026-03-01T10:00:00Z", "input": NaN}',
    "Infinity": b'{"name": "t", "started_at": "2026-03-01T10:00:00Z", "spans": [{"cost": {"a": Infinity}}]}',
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "depth 5000": deep(5000),
    "depth 201": deep(201),
    "huge exponent": b'{"name": "t", "started_at": 1e400}',
    "5000 digits": b'{"name": "t", "started_at": "2026-03-01T10:00:00Z", "spans": [{"span_id": ' + b"9" * 5000 + b"}]}",
    "year 10000": body(started_at="10000-01-01T00:00:00Z"),
    "leaves the calendar": body(started_at="0001-01-01T00:00:00+14:00"),
    "not a date": body(started_at="soon"),
    "empty name": body(name=""),
    "long name": body(name="x" * 513),
    "wrong status": body(status="DONE"),
    "span without a name": body(spans=[{"started_at": TRACE["started_at"]}]),
    "501 spans": body(spans=[{**TRACE}] * 501),
    "bad id": body(trace_id="123"),
    "metadata no object": body(metadata=[1]),
    "tags no list": body(tags="a"),
    "tag no text": body(tags=[1]),
    "session too long": body(session_id="s" * 256),
}


@pytest.mark.parametrize("kind", BODIES)
async def test_a_bad_trace_is_a_422_that_names_the_field(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post("/traces", content=BODIES[kind], headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    said = answer.json()
    assert said["detail"] == "Validation error"
    assert all(e["field"] and e["message"] for e in said["errors"])


ACCEPTED = {
    "year 9999": body(started_at="9999-12-31T23:59:59Z"),
    "year 1": body(started_at="0001-01-01T00:00:00Z"),
    "NUL": body(name="\x00", session_id="a\x00", input={"\x00": "\x00"}, metadata={"\x00": 1}),
    "right to left": body(name="\u202eabc\u200b", tags=["\u202e"]),
    "proto": body(metadata={"__proto__": {"a": 1}, "constructor": 1}),
    "SQL": body(name="'; DROP TABLE traces; --", session_id="%_\\", user_id="$1"),
    "depth 190": deep(190),
    "big integer": body(input=2**63, metadata={"n": 2**70}),
    "tiny": body(input=5e-324),
    "duplicate keys": b'{"name": "a", "name": "b", "started_at": "2026-03-01T10:00:00Z"}',
    "huge usage": body(
        spans=[{**TRACE, "token_usage": {"total_tokens": 1e300, "prompt_tokens": "many"}, "cost": {"a": 1e300}}]
    ),
    "nulls": body(status=None, input=None, session_id=None, ended_at=None, environment=None),
    "ended before it started": body(ended_at="2020-01-01T00:00:00Z"),
}


@pytest.mark.parametrize("kind", ACCEPTED)
async def test_what_is_accepted_can_be_listed_read_and_run(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post("/traces", content=ACCEPTED[kind], headers={"Content-Type": "application/json"})
    assert answer.status_code == 202, answer.text
    read = await client.get(f"/traces/{answer.json()['trace_id']}")
    assert read.status_code == 200, read.text
    assert (await client.get("/traces")).json()["total"] == 1
    assert (await client.post("/evaluations/trace-runs", json={"metrics": ["coherence"]})).status_code == 202


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=201", "limit=-1", "limit=9223372036854775808", "offset=-1", "offset=9223372036854775808",
        "limit=abc", "status=DONE", "sort_by=password", "started_after=soon", "started_after=0001-01-01T00:00:00%2B14:00",
        "session_id=" + "s" * 300,
    ],
)  # fmt: skip
async def test_a_bad_query_is_a_422(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"/traces?{query}")
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == query.split("=")[0], answer.text


@pytest.mark.parametrize(
    "query", ["name=%00", "session_id=%00", "tags=%00", "user_id=%ff", "name=%ED%A0%80", "name=%25'--"]
)
async def test_a_strange_query_finds_nothing_or_is_refused(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"/traces?{query}")
    assert answer.status_code in (200, 422), answer.text


async def test_a_large_body_is_refused_by_its_header_and_by_its_size(client: httpx.AsyncClient) -> None:
    large = body(input="x" * 2_100_000)
    assert (await client.post("/traces", content=large)).status_code == 413

    async def unannounced() -> Any:
        for _ in range(30):
            yield b"x" * 100_000

    answer = await client.post("/traces", content=unannounced(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413 and "MAX_BODY_MB" in answer.json()["detail"]


async def test_gzip_is_understood_and_its_bombs_are(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert (await client.post("/traces", content=gzip.compress(body()), headers=headers)).status_code == 202
    bomb = gzip.compress(body(input="x" * 50_000_000))
    assert len(bomb) < 100_000
    assert (await client.post("/traces", content=bomb, headers=headers)).status_code == 413
    assert (await client.post("/traces", content=b"not gzip", headers=headers)).status_code == 422


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""]
)
async def test_a_wrong_content_type_is_no_500(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post("/traces", content=body(), headers={"Content-Type": kind})
    assert answer.status_code in (202, 415, 422), answer.text


@pytest.mark.parametrize(
    "path", ["/traces/123", "/traces/%00", "/evaluations/trace-runs/1", "/nowhere", "/traces/../x"]
)
async def test_a_bad_path_is_a_404_or_422(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code in (404, 422) and answer.json()["detail"]


async def test_the_request_id_is_echoed_or_made(client: httpx.AsyncClient) -> None:
    answer = await client.get("/traces", headers={"X-Request-ID": "mine-1"})
    assert answer.headers["X-Request-ID"] == "mine-1"
    assert (await client.get("/nowhere")).headers["X-Request-ID"]


async def test_a_project_name_may_be_strange(client: httpx.AsyncClient) -> None:
    for name in ("a" * 255, "p/q", "'; --", "\xfc"):
        assert (await client.get("/traces", headers={b"X-Project-Name": name.encode("latin-1")})).status_code == 200
    assert (await client.get("/traces", headers={"X-Project-Name": "a" * 256})).status_code == 422
    assert (await client.get("/traces", headers={"X-Project-ID": "1", "X-Project-Name": ""})).status_code == 404
