"""What tests of session evaluations share: sessions to score, and scores as the workers write them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx
from sqlalchemy import text

from contract_helpers import new_trace
from steelyard.store import session_scores
from steelyard.store.database import Database

RUNS, SCORES = "/evaluations/session-runs", "/evaluations/session-scores"
ANALYTICS = "/evaluations/analytics/session-scores"
STRANGE = [
    "analytics", "history", "summary", "a/b", "a/b/", "/", "..", "a b", "ü/✓", "%2F", "?x=1#y", "s" * 255, "😀" * 255,
    "a\x00b", ".", "a\nb", "'; --", str(uuid4()),
]  # fmt: skip
BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


async def new_session(client: httpx.AsyncClient, name: str, traces: int = 1, **fields: Any) -> UUID:
    """The project's id, which who writes scores must know."""
    for _ in range(traces):
        trace = await new_trace(client, session_id=name, **fields)
    return UUID((await client.get(f"/traces/{trace}")).json()["project_id"])


def a_score(project: UUID, session: str, value: float | None = 0.5, **fields: Any) -> dict[str, Any]:
    """As who folds writes it; without a value it failed."""
    made = {
        "id": uuid4(), "project_id": project, "session_id": session, "eval_run_id": None, "name": "agent_reliability",
        "value": None if value is None else repr(value), "status": "FAILED" if value is None else "SUCCESS",
        "reason": "because", "metadata": {"worst_trace": "t"}, "session_version": "v1", "traces_seen": 2,
        "snapshot_at": BEGAN.isoformat(),
    }  # fmt: skip
    return made | fields


async def put(database: Database, *scores: dict[str, Any], day: int | None = None) -> list[UUID]:
    """In one transaction, so they are of the same moment; `day` says of which."""
    async with database.begin() as tx:
        await session_scores.put(tx, scores)
        if day is not None:
            moved = text("UPDATE session_scores SET created_at = :at, updated_at = :at WHERE id = ANY(:ids)")
            await tx.execute(moved, {"at": BEGAN + timedelta(days=day), "ids": [s["id"] for s in scores]})
    return [s["id"] for s in scores]


def spelled(name: str) -> str:
    """In a path, so that no client makes anything else of it."""
    return quote(name, safe="").replace(".", "%2E")
