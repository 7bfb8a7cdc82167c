"""Six times the database refuses writes under a run through real processes: it waits, and goes on."""

import asyncio
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventually import eventually
from forkserver import home_of_forks
from servers_down import read_only
from steelyard.events import dead
from steelyard.kafka import Cluster, Readers
from steelyard_local.client import Client, ready
from steelyard_local.processes import LaunchFailed, free_port
from steelyard_local.stack import Stack, environment

NAMES = ("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
TESTS = Path(__file__).parents[1]
TRACES = 160
METRICS = ["task_completion", "confidence"]


@pytest.mark.faults
async def test_six_failovers_under_a_run_fail_no_pair_and_pay_for_nothing_twice() -> None:
    home, port = home_of_forks("failover"), free_port()
    given = {k: v for k, v in environment().items() if k not in ("KAFKA_BOOTSTRAP", "DATABASE_URL")}
    given |= {"JUDGE_BASE_URL": f"http://127.0.0.1:{port}/v1", "JUDGE_MODEL": "openai/stub", "JUDGE_SLOTS": "16"}
    stack = Stack(home, given, lambda _: None, organization="tests")
    command = [sys.executable, "-m", "stub_model", "--port", str(port), "--delay", "0.3"]
    home.start("stub", command, env=os.environ | {"PYTHONPATH": str(TESTS)})
    try:
        await asyncio.to_thread(stack.start, NAMES)
        await _six_windows(stack, f"http://127.0.0.1:{port}")
    finally:
        await asyncio.to_thread(stack.close)
        home.close()


async def _six_windows(stack: Stack, stub: str) -> None:
    client = Client(stack.services.base_url, stack.key or "", "p")
    trace = {"started_at": "2026-03-01T10:00:00Z"}
    for n in range(TRACES):
        await asyncio.to_thread(
            client.post, "/traces", trace | {"name": f"t{n}", "input": f"q {n}", "output": f"a {n}"}
        )
    run = str((await asyncio.to_thread(client.post, "/evaluations/trace-runs", {"metrics": METRICS}))["id"])
    pids = {name: stack.services.child(name).pid for name in NAMES}
    for window in range(6):
        await _evaluated(client, run, 20 * (window + 1))
        async with read_only(stack.env["DATABASE_URL"], cut=window % 2 == 1):
            for name in NAMES:
                await eventually(partial(ready, stack.services.url(name)), f"{name} says that it is not ready")
            async with httpx.AsyncClient(base_url=client.base_url, headers=client.headers(), trust_env=False) as http:
                refused = await http.post("/traces", json=trace | {"name": "refused"})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    done = await _evaluated(client, run, TRACES)
    assert (done["status"], done["failed_count"]) == ("COMPLETED", 0)
    assert {name: stack.services.child(name).pid for name in NAMES if stack.services.child(name).alive()} == pids
    assert await _dead_letters(stack) == 0
    async with httpx.AsyncClient(trust_env=False) as http:
        calls = (await http.get(f"{stub}/stats")).json()["calls"]
    # Two questions for the one metric, one for the other: nothing was paid twice, although no window waited for anybody.
    assert calls == 3 * TRACES


async def _evaluated(client: Client, run_id: str, count: int) -> dict[str, Any]:
    async def enough() -> Any:
        try:
            run = await asyncio.to_thread(client.get, f"/evaluations/trace-runs/{run_id}")
        except LaunchFailed:
            return None  # the database is on its way back
        return run if run["evaluated_count"] >= count and (count < TRACES or run["status"] == "COMPLETED") else None

    found: dict[str, Any] = await eventually(enough, f"{count} traces are evaluated")
    return found


async def _dead_letters(stack: Stack) -> int:
    readers = Readers(Cluster(stack.env["KAFKA_BOOTSTRAP"], stack.env.get("TOPIC_PREFIX", "")))
    await readers.start()
    ends = [await readers.ends(dead(topic), 1) for topic in ("jobs.trace", "scores.trace", "runs.requested")]
    await readers.stop()
    return sum(n for end in ends for n in end.values())
