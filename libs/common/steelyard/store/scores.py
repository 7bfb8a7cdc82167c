"""Scores: what the judges and people said about traces."""

from typing import Any
from uuid import UUID

from sqlalchemy import select

from steelyard.store.database import Tx
from steelyard.store.tables import TraceScore

_S = TraceScore.__table__.c  # type: ignore[attr-defined]
_SHOWN = (
    _S.id, _S.trace_id, _S.name, _S.value, _S.status, _S.source, _S.created_at, _S.project_id, _S.data_type,
    _S.eval_run_id, _S.author_user_id, _S.reason, _S.environment, _S.config_id, _S.metadata, _S.updated_at,
)  # fmt: skip


async def of_run(tx: Tx, project: UUID, run_id: UUID) -> list[dict[str, Any]]:
    """By trace and name: two readings of one run show the same order."""
    where = (_S.eval_run_id == run_id, _S.project_id == project)
    rows = await tx.execute(select(*_SHOWN).where(*where).order_by(_S.trace_id, _S.name))
    return [dict(r._mapping) for r in rows]
