"""All five services as processes on a real Kafka and Postgres, with a model on loopback: what tests do with them."""

import asyncio
from typing import Any

import httpx
from sqlalchemy import text

from eventually import DEADLINE, eventually
from steelyard.store import access
from steelyard.store.database import Database
from steelyard_local.client import Client
from steelyard_local.processes import Home
from steelyard_local.stack import Services

METRICS = ["task_completion", "confidence", "coherence"]
# Conversations that one judge has at once.
SLOTS = 16


class System:
    """All services as processes, and a model server on loopback that takes its time."""

    def __init__(self, services: Services, home: Home, database: Database, stub: str) -> None:
        self.services, self.home, self.database, self.stub = services, home, database, stub
        self._client: Client | None = None

    async def start(self, *names: str) -> None:
        await asyncio.to_thread(self.services.start, *names)

    def pid(self, name: str) -> int:
        return self.services.child(name).pid

    async def kill(self, name: str) -> None:
        await asyncio.to_thread(self.services.kill, name)

    async def stop(self, name: str) -> None:
        await asyncio.to_thread(self.services.stop, name)

    async def call(self, verb: str, path: str, *body: Any) -> Any:
        if self._client is None:
            key = await new_key(self.services.env["API_DATABASE_URL"])
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

    async def done(self, run_id: str, seconds: float = 2 * DEADLINE) -> dict[str, Any]:
        async def finished() -> dict[str, Any] | None:
            found = await self.run(run_id)
            return found if found["status"] in ("COMPLETED", "FAILED") else None

        done: dict[str, Any] = await eventually(finished, f"run {run_id} is done", seconds)
        return done

    async def evaluated(self, run_id: str, count: int) -> None:
        async def enough() -> bool:
            return bool((await self.run(run_id))["evaluated_count"] >= count)

        await eventually(enough, f"{count} traces are evaluated")

    async def calls(self) -> int:
        return int((await self.stats())["calls"])

    async def stats(self) -> dict[str, Any]:
        """What the model was asked so far."""
        async with httpx.AsyncClient(trust_env=False) as client:
            return dict((await client.get(f"{self.stub}/stats")).json())

    async def tell(self, **behaviour: Any) -> None:
        """How the model answers from now on."""
        async with httpx.AsyncClient(trust_env=False) as client:
            (await client.post(f"{self.stub}/control", json=behaviour)).raise_for_status()

    async def rows(self, sql: str) -> list[dict[str, Any]]:
        async with self.database.begin() as tx:
            return [dict(r._mapping) for r in await tx.execute(text(sql))]


async def new_key(api_url: str) -> str:
    """As `python -m steelyard_api.keys` makes one, without a process."""
    database = Database(api_url, pool=1)
    async with database.begin() as tx:
        key, _ = await access.make_key(tx, "tests", "tests")
    await database.stop()
    return key
