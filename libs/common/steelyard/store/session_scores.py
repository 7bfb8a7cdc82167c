"""Scores of sessions: what the signals of their traces folded into, once for each run and metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Uuid, any_, cast, func, literal, select, text, tuple_
from sqlalchemy.dialects.postgresql import ARRAY

from steelyard.store.database import Tx, dumps
from steelyard.store.scores import narrowed
from steelyard.store.tables import SessionScore

_S = SessionScore.__table__.c  # type: ignore[attr-defined]
_SHOWN = (
    _S.id, _S.session_id, _S.project_id, _S.name, _S.data_type, _S.value, _S.source, _S.status, _S.eval_run_id,
    _S.author_user_id, _S.reason, _S.metadata, _S.created_at, _S.updated_at, _S.session_version, _S.traces_seen,
    _S.snapshot_at,
)  # fmt: skip


async def put(tx: Tx, scores: Sequence[Mapping[str, Any]]) -> None:
    """In the transaction that settled the last signal; an id derives from run, session and metric."""
    if scores:
        await tx.execute(_PUT, {"rows": dumps(list(scores))})


@dataclass(frozen=True)
class SessionScoreFilters:
    """All exact; `date_from` is inclusive, `date_to` exclusive, both of the score's creation."""

    session_id: str | None = None
    name: str | None = None
    source: str | None = None
    status: str | None = None
    eval_run_id: UUID | None = None
    date_from: datetime | None = None
    date_to: datetime | None = None

    def sql(self, project: UUID) -> list[ColumnElement[bool]]:
        exact = {
            _S.session_id: self.session_id, _S.name: self.name, _S.source: self.source, _S.status: self.status,
            _S.eval_run_id: self.eval_run_id,
        }  # fmt: skip
        return narrowed(_S, project, exact, self.date_from, self.date_to)


async def page(
    tx: Tx, project: UUID, filters: SessionScoreFilters, limit: int, offset: int
) -> tuple[list[dict[str, Any]], int]:
    where = filters.sql(project)
    total = (await tx.execute(select(func.count()).select_from(SessionScore).where(*where))).scalar_one()
    # What is skipped is read in the index alone: the rows are long.
    newest = select(_S.id).where(*where).order_by(_S.created_at.desc(), _S.id).limit(limit).offset(offset)
    ids = (await tx.execute(newest)).scalars().all()
    shown = select(*_SHOWN).where(_S.id == any_(cast(ids, ARRAY(Uuid))))
    return [dict(r._mapping) for r in await tx.execute(shown.order_by(_S.created_at.desc(), _S.id))], total


async def of_run(
    tx: Tx, project: UUID, run_id: UUID, after: tuple[str, str] | None, limit: int
) -> list[dict[str, Any]]:
    """By session and name, those behind `after`: two readings of one run show the same order."""
    where = [_S.eval_run_id == run_id, _S.project_id == project]
    if after is not None:
        where.append(tuple_(_S.session_id, _S.name) > tuple_(*(literal(part) for part in after)))
    rows = await tx.execute(select(*_SHOWN).where(*where).order_by(_S.session_id, _S.name).limit(limit))
    return [dict(r._mapping) for r in rows]


async def of_session(tx: Tx, project: UUID, session_id: str) -> list[dict[str, Any]]:
    """All of them, the newest first."""
    where = (_S.project_id == project, _S.session_id == session_id)
    rows = await tx.execute(select(*_SHOWN).where(*where).order_by(_S.created_at.desc(), _S.name, _S.id))
    return [dict(r._mapping) for r in rows]


async def any_of(tx: Tx, project: UUID, session_id: str) -> bool:
    """Whether anything is known of the session: its traces may be gone and its scores may not."""
    return bool((await tx.execute(_ANY, {"project": project, "session": session_id})).scalar())


async def delete(tx: Tx, project: UUID, score_id: UUID) -> bool:
    return bool((await tx.execute(_DELETE, {"id": score_id, "project": project})).rowcount)


async def delete_session(tx: Tx, project: UUID, session_id: str) -> int:
    """Of a session that is deleted with its traces."""
    return (await tx.execute(_DELETE_SESSION, {"project": project, "session": session_id})).rowcount


# Analytics; what is added up, over time and by value, is in `scores`.


async def history(tx: Tx, project: UUID, session_id: str, name: str | None, limit: int) -> list[dict[str, Any]]:
    """The newest ones, the oldest of them first."""
    given = {"project": project, "session": session_id, "name": name, "limit": limit}
    return [dict(r._mapping) for r in reversed((await tx.execute(_HISTORY, given)).all())]


async def comparison(
    tx: Tx, project: UUID, name: str, descending: bool, limit: int, offset: int
) -> tuple[list[dict[str, Any]], int]:
    """Sessions that still exist by the newest value that the metric has for each; ties are by id, so pages never
    overlap. A later failure hides no value: it says nothing about the session."""
    given = {"project": project, "name": name, "limit": limit, "offset": offset}
    found = [dict(r._mapping) for r in await tx.execute(_RANKED[descending], given)]
    if not found:  # past the end no row says it
        return [], int((await tx.execute(_COUNT_RANKED, given)).scalar_one()) if offset else 0
    return [{k: v for k, v in r.items() if k != "total"} for r in found], int(found[0]["total"])


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
_ANY = text(
    """
    SELECT EXISTS (SELECT 1 FROM session_scores WHERE project_id = :project AND session_id = :session)
        OR EXISTS (SELECT 1 FROM sessions WHERE project_id = :project AND session_id = :session)
    """
)
_DELETE = text("DELETE FROM session_scores WHERE id = :id AND project_id = :project")
_DELETE_SESSION = text("DELETE FROM session_scores WHERE project_id = :project AND session_id = :session")
_HISTORY = text(
    """
    SELECT name AS metric_name, number AS score, eval_run_id, created_at, status, session_version, traces_seen, snapshot_at
    FROM session_scores
    WHERE project_id = :project AND session_id = :session AND (CAST(:name AS text) IS NULL OR name = :name)
    ORDER BY created_at DESC, name DESC, id DESC LIMIT :limit
    """
)
# Out of an index alone: the rows themselves, whose metadata is long, are read for one page only.
_LATEST = """
    SELECT DISTINCT ON (c.session_id) c.session_id, c.number, c.created_at, s.trace_count, s.last_trace_at
    FROM session_scores c JOIN sessions s ON s.project_id = c.project_id AND s.session_id = c.session_id
    WHERE c.project_id = :project AND c.name = :name AND c.status = 'SUCCESS' AND c.number IS NOT NULL
    ORDER BY c.session_id, c.created_at DESC, c.number
"""
_COUNT_RANKED = text(
    """
    SELECT count(*) FROM (
        SELECT DISTINCT session_id FROM session_scores
        WHERE project_id = :project AND name = :name AND status = 'SUCCESS' AND number IS NOT NULL
    ) scored JOIN sessions s ON s.project_id = :project AND s.session_id = scored.session_id
    """
)


def _ranked(order: str) -> str:
    return f"""
    SELECT l.session_id, l.number AS score, l.created_at AS evaluated_at, c.eval_run_id, l.trace_count, l.last_trace_at,
        c.session_version, c.metadata ->> 'worst_trace' AS worst_trace, l.total
    FROM (
        SELECT *, count(*) OVER () AS total FROM ({_LATEST}) latest ORDER BY number {order}, session_id LIMIT :limit OFFSET :offset
    ) l CROSS JOIN LATERAL (
        SELECT eval_run_id, session_version, metadata FROM session_scores
        WHERE project_id = :project AND session_id = l.session_id AND name = :name AND created_at = l.created_at
            AND status = 'SUCCESS' AND number = l.number
        ORDER BY id LIMIT 1
    ) c ORDER BY l.number {order}, l.session_id
    """


_RANKED = {False: text(_ranked("ASC")), True: text(_ranked("DESC"))}
