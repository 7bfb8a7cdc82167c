"""Runs: asked for, listed, read."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, case, func, select, text, update

from steelyard.store.database import Tx, dumps
from steelyard.store.tables import Run

TRACES, SESSIONS = "TRACE", "SESSION"
_R = Run.__table__.c  # type: ignore[attr-defined]
# What is over, or is being stopped, is not paused, whatever it was.
_PAUSED = (_R.status.in_(("PENDING", "RUNNING")), _R.stopping.is_(None), _R.paused_why.is_not(None))
_SHOWN = (
    _R.id, _R.project_id, _R.name, _R.target_type, _R.status, _R.metric_names, _R.filters, _R.sampling_rate, _R.model,
    _R.judge_model, _R.monitor_id, _R.parent_run_id, _R.error_message, _R.total_targets, _R.evaluated_count,
    _R.failed_count, _R.created_at, _R.completed_at, _R.max_cost_usd, _R.pair_cost_usd, _R.reuse, _R.grouped, _R.root_run_id,
    case((and_(*_PAUSED), _R.paused_why)).label("paused_why"), case((and_(*_PAUSED), _R.paused_until)).label("paused_until"),
)  # fmt: skip


async def put(tx: Tx, run: Mapping[str, Any]) -> dict[str, Any]:
    """The run as asked for; what it means is written by the resolver, from the snapshot that counted it."""
    given: dict[str, Any] = {
        "name": None,
        "filters": {},
        "sampling_rate": 1.0,
        "model": None,
        "parent_run_id": None,
        "snapshot": None,
        "target_type": TRACES,
    }
    given |= {"root_run_id": None, "max_cost_usd": None, "pair_cost_usd": None, "reuse": False, "grouped": None}
    given |= run
    await tx.execute(_PUT, {**given, "filters": dumps(given["filters"])})
    found = await get(tx, run["project_id"], run["id"], given["target_type"])
    assert found is not None, "the run was written in this transaction"
    return found


async def get(tx: Tx, project: UUID, run_id: UUID, target_type: str = TRACES) -> dict[str, Any] | None:
    row = (await tx.execute(select(*_SHOWN).where(_R.id == run_id, *_visible(project, target_type)))).one_or_none()
    return dict(row._mapping) if row else None


async def page(
    tx: Tx, project: UUID, status: str | None, limit: int, offset: int, target_type: str = TRACES
) -> tuple[list[dict[str, Any]], int]:
    where = [*_visible(project, target_type), *([_R.status == status] if status else [])]
    total = (await tx.execute(select(func.count()).select_from(Run).where(*where))).scalar_one()
    rows = await tx.execute(
        select(*_SHOWN).where(*where).order_by(_R.created_at.desc(), _R.id).limit(limit).offset(offset)
    )
    return [dict(r._mapping) for r in rows], total


async def hide(tx: Tx, project: UUID, run_id: UUID, with_scores: bool, target_type: str = TRACES) -> bool:
    """Gone at once, whatever state it is in; its pairs and targets are swept later. The lock waits for results that are
    being settled right now; later ones find the run gone and change nothing."""
    if not (await tx.execute(_LOCK, {"id": run_id, "project": project, "type": target_type})).scalar():
        return False
    await tx.execute(_HIDE, {"id": run_id, "why": "deleted with its scores" if with_scores else "deleted"})
    return True


async def resume(tx: Tx, project: UUID, run_id: UUID, target_type: str = TRACES) -> bool:
    """The next turn of a dispatcher tries a paused run's model, whatever time it was to wait for. False when it is not
    paused."""
    paused = update(Run).where(_R.id == run_id, *_visible(project, target_type), *_PAUSED)
    return bool((await tx.execute(paused.values(paused_until=None))).rowcount)


async def treat_scores(tx: Tx, project: UUID, run_id: UUID, with_scores: bool) -> None:
    """Of a hidden run, in a transaction of its own: settling must not wait for a hundred thousand rows."""
    for table in ("trace_scores", "session_scores"):
        verb = f"DELETE FROM {table}" if with_scores else f"UPDATE {table} SET eval_run_id = NULL"
        given = {"id": run_id, "project": project}
        await tx.execute(text(f"{verb} WHERE eval_run_id = :id AND project_id = :project"), given)


async def hold(tx: Tx, project: UUID, run_id: UUID, target_type: str = TRACES) -> bool:
    """Against its deletion, until this transaction ends."""
    return bool((await tx.execute(_HOLD, {"id": run_id, "project": project, "type": target_type})).scalar())


def _visible(project: UUID, target_type: str) -> tuple[ColumnElement[bool], ...]:
    return _R.project_id == project, _R.target_type == target_type, _R.deleted_at.is_(None)


_PUT = text(
    """
    INSERT INTO runs (
        id, project_id, name, target_type, metric_names, filters, sampling_rate, model, judge_model,
        total_targets, snapshot, parent_run_id, root_run_id, max_cost_usd, pair_cost_usd, reuse, grouped
    ) VALUES (
        :id, :project_id, :name, :target_type, :metric_names, CAST(:filters AS jsonb), :sampling_rate, :model,
        :judge_model, :total_targets, coalesce(CAST(:snapshot AS text), pg_current_snapshot()::text), :parent_run_id,
        :root_run_id, :max_cost_usd, :pair_cost_usd, :reuse, :grouped
    )
    """
)
_OF = "SELECT 1 FROM runs WHERE id = :id AND project_id = :project AND target_type = :type AND deleted_at IS NULL"
_LOCK = text(f"{_OF} FOR UPDATE")
_HOLD = text(f"{_OF} FOR KEY SHARE")
_HIDE = text("UPDATE runs SET deleted_at = now(), stopping = :why WHERE id = :id")
