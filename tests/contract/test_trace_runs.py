"""/evaluations as real clients use it: what is accepted, what is refused and how."""

from typing import Any

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
    client: httpx.AsyncClient, asked: Any, status: int, field: str, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
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
