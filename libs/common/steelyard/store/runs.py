"""Runs: asked for, listed, read."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text
from sqlmodel import col

from steelyard.store.database import Tx, dumps
from steelyard.store.tables import Run

_R = Run.__table__.c  # type: ignore[attr-defined]
_SHOWN = (
    _R.id, _R.project_id, _R.name, _R.target_type, _R.status, _R.metric_names, _R.filters, _R.sampling_rate, _R.model,
    _R.judge_model, _R.monitor_id, _R.parent_run_id, _R.error_message, _R.total_targets, _R.evaluated_count,
    _R.failed_count, _R.created_at, _R.completed_at,
)  # fmt: skip


async def put(tx: Tx, run: Mapping[str, Any]) -> dict[str, Any]:
    """The run as asked for; its targets are written by the resolver, from the snapshot that counted them."""
    await tx.execute(_PUT, {**run, "filters": dumps(run["filters"])})
    found = await get(tx, run["project_id"], run["id"])
    assert found is not None, "the run was written in this transaction"
    return found


async def get(tx: Tx, project: UUID, run_id: UUID) -> dict[str, Any] | None:
    row = (await tx.execute(select(*_SHOWN).where(_R.id == run_id, _R.project_id == project))).one_or_none()
    return dict(row._mapping) if row else None


async def page(tx: Tx, project: UUID, status: str | None, limit: int, offset: int) -> tuple[list[dict[str, Any]], int]:
    where = [col(Run.project_id) == project] + ([col(Run.status) == status] if status else [])
    total = (await tx.execute(select(func.count()).select_from(Run).where(*where))).scalar_one()
    rows = await tx.execute(
        select(*_SHOWN).where(*where).order_by(_R.created_at.desc(), _R.id).limit(limit).offset(offset)
    )
    return [dict(r._mapping) for r in rows], total


_PUT = text(
    """
    INSERT INTO runs (
        id, project_id, name, target_type, metric_names, filters, sampling_rate, model, judge_model,
        total_targets, snapshot
    ) VALUES (
        :id, :project_id, :name, 'TRACE', :metric_names, CAST(:filters AS jsonb), :sampling_rate, :model,
        :judge_model, :total_targets, :snapshot
    )
    """
)
