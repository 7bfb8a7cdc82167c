"""The broker and the database are killed under a run, one after the other: it waits, and goes on."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from eventually import eventually
from forkserver import home_of_forks
from steelyard_local.client import Client
from steelyard_local.processes import LaunchFailed, free_port
from steelyard_local.stack import Stack, environment

NAMES = ("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
TESTS = Path(__file__).parents[1]


@pytest.mark.faults
async def test_kafka_and_postgres_may_die_under_a_run() -> None:
    home = home_of_forks("outage")
    port = free_port()
    given = {k: v for k, v in environment().items() if k not in ("KAFKA_BOOTSTRAP", "DATABASE_URL")}
    given |= {"JUDGE_BASE_URL": f"http://127.0.0.1:{port}/v1", "JUDGE_MODEL": "openai/stub", "JUDGE_SLOTS": "8"}
    # Its own broker and database: the session's are not this test's to kill. Durable, as kill -9 is no power cut.
    stack = Stack(home, given, lambda _: None, durable=True, organization="tests")
    command = [sys.executable, "-m", "stub_model", "--port", str(port), "--delay", "0.3"]
    home.start("stub", command, env=os.environ | {"PYTHONPATH": str(TESTS)})
    try:
        await asyncio.to_thread(stack.start, NAMES)
        await _survives(stack)
    finally:
        await asyncio.to_thread(stack.close)
        home.close()


async def _survives(stack: Stack) -> None:
    assert stack.key is not None
    client = Client(stack.services.base_url, stack.key, "p")
    for n in range(120):
        trace = {"name": f"t{n}", "started_at": "2026-03-01T10:00:00Z", "input": f"q {n}", "output": f"answer {n}"}
        await asyncio.to_thread(client.post, "/traces", trace)
    first = await request(client)
    await evaluated(client, first, 10)

    await asyncio.to_thread(stack.home.kill, "kafka")
    second = await request(client)  # accepted all the same: what it announces waits in the outbox
    await asyncio.to_thread(stack.start_one, "kafka")
    await evaluated(client, first, 60)

    await asyncio.to_thread(stack.home.kill, "postgres")
    with pytest.raises(LaunchFailed, match="503"):
        await asyncio.to_thread(client.get, "/traces")
    await asyncio.to_thread(stack.start_one, "postgres")

    for run_id in (first, second):
        run = await evaluated(client, run_id, 120)
        assert run["failed_count"] == 0
        scores = await asyncio.to_thread(client.get, f"/evaluations/trace-runs/{run_id}/scores")
        assert len({(s["trace_id"], s["name"]) for s in scores}) == len(scores) == 240


async def request(client: Client) -> str:
    asked = {"metrics": ["task_completion", "confidence"]}
    return str((await asyncio.to_thread(client.post, "/evaluations/trace-runs", asked))["id"])


async def evaluated(client: Client, run_id: str, count: int) -> dict[str, Any]:
    async def enough() -> Any:
        try:
            run = await asyncio.to_thread(client.get, f"/evaluations/trace-runs/{run_id}")
        except LaunchFailed:
            return None  # the database is on its way up
        done = run["evaluated_count"] >= count and (count < 120 or run["status"] == "COMPLETED")
        return run if done else None

    found: dict[str, Any] = await eventually(enough, f"{count} traces of {run_id} are evaluated")
    return found
