"""Idempotency-Key: what creates something may be sent again, and has its effect once."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from addresses import Urls
from contract_helpers import new_trace
from steelyard.store import once
from steelyard.store.database import Database

TRACE = {"name": "trip", "started_at": "2026-03-01T10:00:00Z"}
TABLES = ("traces", "spans", "runs", "targets", "trace_scores", "outbox")
RUNS, SCORES = "/evaluations/trace-runs", "/evaluations/trace-scores"


async def requests(client: httpx.AsyncClient) -> dict[str, tuple[str, Any]]:
    """One of each kind of creating request, but for the retry, which needs a run that failed."""
    trace = await new_trace(client)
    return {
        "trace": ("/traces", TRACE),
        "spans": (f"/traces/{trace}/spans", [TRACE]),
        "run": (RUNS, {"metrics": ["coherence"]}),
        "batch run": (f"{RUNS}/batch", {"metrics": ["coherence"], "trace_ids": [trace]}),
        "score": (SCORES, {"trace_id": trace, "name": "q", "value": "1"}),
    }


async def census(database: Database) -> tuple[int, ...]:
    async with database.begin() as tx:
        return tuple([(await tx.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one() for table in TABLES])


@pytest.mark.parametrize("kind", ["trace", "spans", "run", "batch run", "score"])
async def test_the_same_request_again_has_the_same_answer_and_no_effect(
    client: httpx.AsyncClient, database: Database, kind: str
) -> None:
    path, body = (await requests(client))[kind]
    first = await client.post(path, json=body, headers={"Idempotency-Key": "mine"})
    assert first.status_code in (201, 202), first.text
    there = await census(database)
    again = await client.post(path, json=body, headers={"Idempotency-Key": "mine"})
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["Idempotency-Replayed"] == "true" and "Idempotency-Replayed" not in first.headers
    assert await census(database) == there
    another = await client.post(path, json=body, headers={"Idempotency-Key": "another"})
    assert another.status_code == first.status_code and await census(database) != there


@pytest.mark.parametrize("kind", ["trace", "spans", "run", "batch run", "score"])
async def test_another_body_with_the_same_key_is_a_422(
    client: httpx.AsyncClient, database: Database, kind: str
) -> None:
    path, body = (await requests(client))[kind]
    await client.post(path, json=body, headers={"Idempotency-Key": "mine"})
    there = await census(database)
    other = [{**body[0], "name": "other"}] if isinstance(body, list) else {**body, "name": "other"}
    answer = await client.post(path, json=other, headers={"Idempotency-Key": "mine"})
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "Idempotency-Key"
    assert await census(database) == there


async def test_a_request_that_is_still_worked_on_is_a_409(
    client: httpx.AsyncClient, api_database: Database, urls: Urls
) -> None:
    trace = await new_trace(client)
    project = (await client.get(f"/traces/{trace}")).json()["project_id"]
    async with api_database.begin(project) as tx:
        assert await once.alone(tx, project, f"POST {RUNS}", "mine")
        answer = await client.post(RUNS, json={"metrics": ["coherence"]}, headers={"Idempotency-Key": "mine"})
        assert answer.status_code == 409 and answer.json()["errors"][0]["field"] == "Idempotency-Key"
        assert answer.headers["Retry-After"] == "1"
    answer = await client.post(RUNS, json={"metrics": ["coherence"]}, headers={"Idempotency-Key": "mine"})
    assert answer.status_code == 202


async def test_ten_at_once_have_one_effect(client: httpx.AsyncClient, database: Database) -> None:
    await new_trace(client)
    asked = {"json": {"metrics": ["coherence"]}, "headers": {"Idempotency-Key": "mine"}}
    answers = await asyncio.gather(*(client.post(RUNS, **asked) for _ in range(10)))  # type: ignore[arg-type]
    assert {a.status_code for a in answers} <= {202, 409}
    assert len({a.json()["id"] for a in answers if a.status_code == 202}) == 1
    assert (await client.get(RUNS)).json()["total"] == 1


async def test_a_refused_request_is_not_remembered(client: httpx.AsyncClient) -> None:
    asked = {"json": {"metrics": ["coherence"]}, "headers": {"Idempotency-Key": "mine"}}
    assert (await client.post(RUNS, **asked)).status_code == 400  # type: ignore[arg-type]
    await new_trace(client)
    assert (await client.post(RUNS, **asked)).status_code == 202  # type: ignore[arg-type]


async def test_a_key_belongs_to_a_project_and_a_path(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "mine"}
    first = (await client.post("/traces", json=TRACE, headers=key)).json()["trace_id"]
    other = await client.post("/traces", json=TRACE, headers={**key, "X-Project-Name": "other"})
    assert other.json()["trace_id"] != first
    score = {"trace_id": first, "name": "q", "value": "1"}
    assert (await client.post(SCORES, json=score, headers=key)).status_code == 201


@pytest.mark.parametrize("word", ["", "k" * 256])
async def test_a_key_has_1_to_255_characters(client: httpx.AsyncClient, word: str) -> None:
    answer = await client.post("/traces", json=TRACE, headers={"Idempotency-Key": word})
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "Idempotency-Key", answer.text


async def test_answers_are_forgotten_after_a_day(client: httpx.AsyncClient, database: Database) -> None:
    first = await client.post("/traces", json=TRACE, headers={"Idempotency-Key": "mine"})
    async with database.begin() as tx:
        assert await once.forget(tx, hours=24, page=10) == 0
        await tx.execute(text("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'"))
        assert await once.forget(tx, hours=24, page=10) == 1
    again = await client.post("/traces", json=TRACE, headers={"Idempotency-Key": "mine"})
    assert again.status_code == 202 and again.content != first.content
