"""/evaluations as real clients use it: what is accepted, what is refused and how."""

from datetime import datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from contract_helpers import new_trace
from steelyard.events import RunRequested, decode
from steelyard.store.database import Database

RUNS = "/evaluations/trace-runs"
METRICS = [
    "task_completion",
    "tool_correctness",
    "argument_correctness",
    "step_efficiency",
    "confidence",
    "plan_adherence",
    "plan_quality",
    "coherence",
]


async def test_a_run_is_answered_with_what_it_means(client: httpx.AsyncClient, database: Database) -> None:
    for n in range(4):
        await new_trace(client, tags=["x"] if n else [])
    asked = {
        "name": "weekly",
        "metrics": ["coherence", "confidence", "coherence"],
        "filters": {"tags": ["x"]},
        "sampling_rate": 0.7,
    }
    answer = await client.post(RUNS, json=asked)
    run = answer.json()
    assert answer.status_code == 202
    assert (run["status"], run["total_traces"], run["total_targets"], run["target_type"]) == ("PENDING", 2, 2, "TRACE")
    assert (run["metric_names"], run["filters"], run["sampling_rate"]) == (
        ["coherence", "confidence"],
        {"tags": ["x"]},
        0.7,
    )
    assert (run["evaluated_count"], run["failed_count"], run["model"], run["monitor_id"]) == (0, 0, None, None)
    assert run["judge_model"] == "heuristic/rules-v1"
    assert (await client.get(f"{RUNS}/{run['id']}")).json() == run
    assert (await client.get(RUNS, params={"status": "PENDING"})).json()["items"] == [run]
    assert (await client.get(RUNS, params={"status": "FAILED"})).json() == {
        "items": [],
        "total": 0,
        "limit": 50,
        "offset": 0,
    }
    assert (await client.get(f"{RUNS}/{run['id']}/scores")).json() == []
    async with database.begin() as tx:
        (row,) = (await tx.execute(text("SELECT topic, value FROM outbox"))).all()
    event = decode(bytes(row.value))
    assert isinstance(event, RunRequested) and str(event.run_id) == run["id"]


@pytest.mark.parametrize(
    ("asked", "status", "field"),
    [
        ({"metrics": ["nonsense"]}, 400, "metrics"),
        ({"metrics": ["loop_detection"]}, 400, "metrics"),
        ({"metrics": []}, 422, "metrics"),
        ({}, 422, "metrics"),
        ({"metrics": "coherence"}, 422, "metrics"),
        ({"metrics": ["coherence"], "sampling_rate": 0}, 400, "sampling_rate"),
        ({"metrics": ["coherence"], "sampling_rate": 1.5}, 422, "sampling_rate"),
        ({"metrics": ["coherence"], "model": "openai/gpt-5"}, 400, "model"),
        ({"metrics": ["coherence"], "model": "nobody/knows"}, 400, "model"),
        ({"metrics": ["coherence"], "model": "heuristic/rules-v9"}, 400, "model"),
        ({"metrics": ["coherence"], "filters": {"session_id": "none like it"}}, 400, "filters"),
        ({"metrics": ["coherence"], "filters": {"status": "DONE"}}, 400, "filters.status"),
        ({"metrics": ["coherence"], "filters": {"colour": "red"}}, 400, "filters.colour"),
        ({"metrics": ["coherence"], "filters": {"date_from": "yesterday"}}, 400, "filters.date_from"),
        ([], 422, "body"),
    ],
)
async def test_a_run_that_cannot_be_is_refused_by_its_field(
    client: httpx.AsyncClient, asked: Any, status: int, field: str, database: Database
) -> None:
    await new_trace(client)
    answer = await client.post(RUNS, json=asked)
    assert answer.status_code == status, answer.text
    assert [e["field"] for e in answer.json()["errors"]] == [field]
    async with database.begin() as tx:
        assert (await tx.execute(text("SELECT count(*) FROM runs"))).scalar() == 0


async def test_the_metrics_say_what_they_are(client: httpx.AsyncClient) -> None:
    metrics = (await client.get("/evaluations/trace-metrics")).json()
    assert [m["name"] for m in metrics] == METRICS
    for m in metrics:
        assert m["description"] and m["category"] == "trace" and m["default_threshold"] == 0.5
    assert [p["stage"] for p in metrics[0]["prompt_preview"]] == ["extract", "compare"]
    assert "nonce" in metrics[0]["prompt_preview"][0]["prompt"]
    assert metrics[-1]["prompt_preview"] == []


async def test_the_callers_trace_goes_on_into_what_a_run_announces(
    client: httpx.AsyncClient, database: Database
) -> None:
    await new_trace(client)
    parent = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    assert (await client.post(RUNS, json={"metrics": ["coherence"]}, headers=parent)).status_code == 202
    async with database.begin() as tx:
        headers = (await tx.execute(text("SELECT headers FROM outbox"))).scalar_one()
    assert "ab" * 16 in headers["traceparent"]


async def paused(database: Database, run: str, until: str | None) -> None:
    """As a dispatcher writes it down."""
    async with database.begin() as tx:
        when = None if until is None else datetime.fromisoformat(until)
        statement = text("UPDATE runs SET paused_why = 'the quota of m is exhausted', paused_until = :u WHERE id = :id")
        await tx.execute(statement, {"id": UUID(run), "u": when})


async def test_a_paused_run_says_why_and_until_when_and_is_resumed(
    client: httpx.AsyncClient, database: Database
) -> None:
    await new_trace(client)
    run = (await client.post(RUNS, json={"metrics": ["coherence"]})).json()
    assert (run["paused_until"], run["error_message"]) == (None, None)
    resume = f"{RUNS}/{run['id']}/resume"
    assert (await client.post(resume)).status_code == 409
    await paused(database, run["id"], "2030-01-01T00:00:00+00:00")
    shown = (await client.get(f"{RUNS}/{run['id']}")).json()
    assert shown["status"] == "PENDING" and shown["paused_until"] == "2030-01-01T00:00:00Z"
    assert shown["error_message"] == (
        f"paused: the quota of m is exhausted; tried again at 2030-01-01T00:00:00Z; POST {resume} tries at once"
    )
    stranger = {"X-Project-Name": "stranger"}
    assert (await client.post(resume, headers=stranger)).status_code == 404
    resumed = await client.post(resume)
    assert resumed.status_code == 200 and resumed.json()["paused_until"] is None
    assert resumed.json()["error_message"] == "paused: the quota of m is exhausted; being tried again"
    assert (await client.post(resume)).json() == resumed.json(), "asking twice is asking once"


@pytest.mark.parametrize("ended", ["status = 'COMPLETED'", "stopping = 'budget', error_message = 'stopped'"])
async def test_what_is_over_or_being_stopped_is_not_paused(
    client: httpx.AsyncClient, database: Database, ended: str
) -> None:
    await new_trace(client)
    run = (await client.post(RUNS, json={"metrics": ["coherence"]})).json()
    await paused(database, run["id"], "2030-01-01T00:00:00+00:00")
    async with database.begin() as tx:
        await tx.execute(text(f"UPDATE runs SET {ended}"))
    shown = (await client.get(f"{RUNS}/{run['id']}")).json()
    assert shown["paused_until"] is None and "paused" not in str(shown["error_message"])
    assert (await client.post(f"{RUNS}/{run['id']}/resume")).status_code == 409
