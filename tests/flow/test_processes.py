"""A run through all five services as real processes, and what kill -9 does to it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from addresses import Infra, Urls
from eventually import eventually
from steelyard.kafka import Cluster
from steelyard.store.database import Database
from steelyard_local.client import Client
from steelyard_local.processes import Home, free_port
from steelyard_local.stack import Services

TESTS = Path(__file__).parents[1]
METRICS = ["task_completion", "confidence", "coherence"]


class System:
    """All services as processes, and a model server on loopback that takes its time."""

    def __init__(self, services: Services, home: Home, database: Database, stub: str) -> None:
        self.services, self.home, self.database, self.stub = services, home, database, stub
        self._client: Client | None = None

    async def start(self, *names: str) -> None:
        await asyncio.to_thread(self.services.start, *names)

    async def kill(self, name: str) -> None:
        await asyncio.to_thread(self.services.kill, name)

    async def stop(self, name: str) -> None:
        await asyncio.to_thread(self.services.stop, name)

    async def call(self, verb: str, path: str, *body: Any) -> Any:
        if self._client is None:
            key = await asyncio.to_thread(self.services.new_key, "tests")
            self._client = Client(self.services.base_url, key, "project")
        return await asyncio.to_thread(getattr(self._client, verb), path, *body)

    async def ingest(self, count: int, session: str = "s") -> list[str]:
        made = []
        for n in range(count):
            trace = {"name": f"trace {n}", "started_at": "2026-03-01T10:00:00Z", "session_id": session}
            trace |= {"input": f"What is {n} plus {n}?", "output": f"{n} plus {n} is {2 * n}, as asked."}
            made.append((await self.call("post", "/traces", trace))["trace_id"])
        return made

    async def request(self, **asked: Any) -> str:
        run = await self.call("post", "/evaluations/trace-runs", {"metrics": METRICS, **asked})
        return str(run["id"])

    async def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.call("get", f"/evaluations/trace-runs/{run_id}")
        return found

    async def done(self, run_id: str, seconds: float = 120) -> dict[str, Any]:
        async def finished() -> dict[str, Any] | None:
            found = await self.run(run_id)
            return found if found["status"] in ("COMPLETED", "FAILED") else None

        done: dict[str, Any] = await eventually(finished, f"run {run_id} is done", seconds)
        return done

    async def evaluated(self, run_id: str, count: int) -> None:
        async def enough() -> bool:
            return bool((await self.run(run_id))["evaluated_count"] >= count)

        await eventually(enough, f"{count} traces are evaluated", 90)

    async def calls(self) -> int:
        async with httpx.AsyncClient() as client:
            return int((await client.get(f"{self.stub}/stats")).json()["calls"])

    async def rows(self, sql: str) -> list[dict[str, Any]]:
        async with self.database.begin() as tx:
            return [dict(r._mapping) for r in await tx.execute(text(sql))]


@pytest.fixture
def home() -> Iterator[Home]:
    made = Home.fresh("flow")
    yield made
    made.close()


@pytest.fixture
async def system(home: Home, infra: Infra, urls: Urls, topics: Cluster, database: Database) -> AsyncIterator[System]:
    port = free_port()
    command = [sys.executable, "-m", "stub_model", "--port", str(port), "--delay", "0.3"]
    home.start("stub", command, env=os.environ | {"PYTHONPATH": str(TESTS)})
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")} | urls.environment()
    environment |= {
        "KAFKA_BOOTSTRAP": infra.bootstrap,
        "TOPIC_PREFIX": topics.prefix,
        "KAFKA_SESSION_SECONDS": "6",
        "REDISPATCH_SECONDS": "4",
        "JUDGE_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "JUDGE_MODEL": "openai/stub",
        "JUDGE_SLOTS": "16",
    }
    yield System(Services(home, environment), home, database, f"http://127.0.0.1:{port}")


async def test_a_run_goes_through_five_processes(system: System) -> None:
    await system.start("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
    traces = await system.ingest(12)
    run = await system.done(await system.request())
    assert (run["status"], run["total_traces"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 12, 12, 0)
    scores = await system.call("get", f"/evaluations/trace-runs/{run['id']}/scores")
    assert sorted((s["trace_id"], s["name"]) for s in scores) == sorted((t, m) for t in traces for m in METRICS)
    for s in scores:
        assert s["status"] == "SUCCESS" and 0 <= float(s["value"]) <= 1 and s["reason"], s
        assert s["metadata"]["success"] is (float(s["value"]) >= s["metadata"]["threshold"])
    judged = {s["name"]: s["metadata"].get("judge", {}).get("model") for s in scores}
    assert judged == {"task_completion": "openai/stub", "confidence": "openai/stub", "coherence": None}
    # Two questions for the one metric, one for the other, none for embeddings: nothing was asked twice.
    assert await system.calls() == 12 * 3


async def test_a_judge_killed_in_the_middle_costs_no_score_and_makes_none_twice(system: System) -> None:
    await system.start("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
    await system.ingest(80)
    run_id = await system.request()
    await system.evaluated(run_id, 10)
    await system.kill("judge-1")
    assert (await system.run(run_id))["status"] == "RUNNING"
    await system.start("judge-1")
    run = await system.done(run_id)
    assert (run["evaluated_count"], run["failed_count"]) == (80, 0)
    pairs = await system.rows("SELECT outcome FROM pairs")
    assert [p["outcome"] for p in pairs] == ["SUCCESS"] * 240
    assert len(await system.rows("SELECT DISTINCT trace_id, name FROM trace_scores")) == 240
    assert len(await system.rows("SELECT 1 FROM trace_scores")) == 240
    # At most what was in flight is paid again: sixteen conversations of up to two calls.
    assert 240 <= await system.calls() <= 240 + 2 * 16


@pytest.mark.faults
async def test_every_service_killed_in_turn_and_every_pair_has_one_score(system: System) -> None:
    names = ("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
    await system.start(*names)
    await system.ingest(200)
    run_id = await system.request()
    for share, name in enumerate(("resolver-1", "aggregator-1", "judge-1", "scheduler-1", "api-1"), 1):
        await system.evaluated(run_id, 20 * share)
        await system.kill(name)
        await system.start(name)
    run = await system.done(run_id)
    assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 200, 0)
    assert len(await system.rows("SELECT 1 FROM trace_scores")) == 600
    (counted,) = await system.rows('SELECT "left", settled_count FROM runs')
    assert counted == {"left": 0, "settled_count": 600}


@pytest.mark.faults
async def test_a_run_of_ten_is_done_while_a_run_of_two_thousand_is_under_way(system: System) -> None:
    await system.start("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
    await asyncio.gather(system.ingest(1000, "large"), system.ingest(5, "small"))
    large = await system.request(metrics=["task_completion", "confidence"], filters={"session_id": "large"})
    await system.evaluated(large, 20)
    small = await system.request(metrics=["task_completion", "confidence"], filters={"session_id": "small"})
    done = await system.done(small)
    ahead = await system.run(large)
    assert (done["evaluated_count"], done["failed_count"]) == (5, 0)
    assert ahead["status"] == "RUNNING" and ahead["evaluated_count"] < 900


@pytest.mark.faults
async def test_a_second_judge_joins_and_one_leaves_in_the_middle(system: System) -> None:
    await system.start("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
    await system.ingest(150)
    run_id = await system.request()
    await system.evaluated(run_id, 10)
    await system.start("judge-2")
    await system.evaluated(run_id, 50)
    await system.stop("judge-1")
    run = await system.done(run_id)
    assert (run["evaluated_count"], run["failed_count"]) == (150, 0)
    # Both changes were announced: what was in flight could finish, and nothing was paid twice.
    assert await system.calls() == 450
