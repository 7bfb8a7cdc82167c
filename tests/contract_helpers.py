"""Small steps that several contract tests take."""

from typing import Any

import httpx


async def new_trace(client: httpx.AsyncClient, **fields: Any) -> str:
    trace = {"name": "trip", "started_at": "2026-03-01T10:00:00Z", "input": "hi", "output": "hello", **fields}
    answer = await client.post("/traces", json=trace)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["trace_id"])
