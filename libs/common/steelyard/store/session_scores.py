"""Scores of sessions: what the signals of their traces folded into, once for each run and metric."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import text

from steelyard.store.database import Tx, dumps


async def put(tx: Tx, scores: Sequence[Mapping[str, Any]]) -> None:
    """In the transaction that settled the last signal; an id derives from run, session and metric."""
    if scores:
        await tx.execute(_PUT, {"rows": dumps(list(scores))})


_PUT = text(
    """
    INSERT INTO session_scores (
        id, project_id, session_id, eval_run_id, name, value, status, reason, metadata, session_version, traces_seen,
        snapshot_at
    )
    SELECT id, project_id, session_id, eval_run_id, name, value, status, reason, metadata, session_version, traces_seen,
        snapshot_at
    FROM json_to_recordset(CAST(:rows AS json)) AS n (
        id uuid, project_id uuid, session_id text, eval_run_id uuid, name text, value text, status text, reason text,
        metadata jsonb, session_version text, traces_seen int, snapshot_at timestamptz
    )
    ON CONFLICT (id) DO NOTHING
    """
)
