"""Sessions: what the traces of one conversation sum up to, kept by the database beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Text, any_, cast, collate, func, literal, select, text
from sqlalchemy.dialects.postgresql import ARRAY

from steelyard.filters import SessionRunFilters
from steelyard.store import traces
from steelyard.store.database import Tx
from steelyard.store.tables import Session, SessionTag, TraceRow

_S = Session.__table__.c  # type: ignore[attr-defined]
_G = SessionTag.__table__.c  # type: ignore[attr-defined]
_T = TraceRow.__table__.c  # type: ignore[attr-defined]
_SHOWN = (
    _S.session_id, _S.trace_count, _S.first_trace_at, _S.last_trace_at, _S.latency_ms.label("total_latency_ms"),
    (_S.error_count > 0).label("has_error"), _S.user_id, _S.tags, _S.tag_count, _S.span_count.label("total_span_count"),
    _S.total_tokens, _S.total_cost,
)  # fmt: skip
# As its index is: what is never null says nothing of nulls, or Postgres sorts what it could read in order.
SORTS: Mapping[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {  # descending, ascending
    "recent": ((_S.last_trace_at.desc(), _S.session_id), (_S.last_trace_at, _S.session_id.desc())),
    "trace_count": ((_S.trace_count.desc(), _S.session_id), (_S.trace_count, _S.session_id)),
    "latency": ((_S.latency_ms.desc().nulls_last(), _S.session_id), (_S.latency_ms, _S.session_id)),
    "cost": ((_S.total_cost.desc(), _S.session_id), (_S.total_cost, _S.session_id)),
}


@dataclass(frozen=True)
class SessionFilters:
    """A session is active from its first trace's start to its last one's; `part` is a part of its id, in any case."""

    user_id: str | None = None
    has_error: bool | None = None
    active_after: datetime | None = None
    active_before: datetime | None = None
    tags: tuple[str, ...] | None = None
    part: str | None = None
    min_trace_count: int | None = None

    @classmethod
    def of_run(cls, asked: SessionRunFilters) -> "SessionFilters":
        return cls(
            asked.user_id, asked.has_error, asked.date_from, asked.date_to, asked.tags, None, asked.min_trace_count
        )

    def sql(self, project: UUID) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = [_S.project_id == project]
        if self.user_id is not None:
            of_user = select(_T.session_id).where(_T.project_id == project, _T.user_id == self.user_id)
            found.append(_S.session_id.in_(of_user))
        if self.has_error is not None:
            found.append(_S.error_count > 0 if self.has_error else _S.error_count == 0)
        if self.active_after is not None:
            found.append(_S.last_trace_at >= self.active_after)
        if self.active_before is not None:
            found.append(_S.first_trace_at < self.active_before)
        if self.tags:
            found.append(_S.session_id.in_(select(_G.session_id).where(*self.of_tags(project))))
        if self.min_trace_count is not None:
            found.append(_S.trace_count >= self.min_trace_count)
        if self.part is not None:
            found.append(func.strpos(_folded(_S.session_id), _folded(literal(self.part))) > 0)
        return found

    def of_tags(self, project: UUID) -> tuple[ColumnElement[bool], ...]:
        return _G.project_id == project, _G.tag == any_(cast(list(self.tags or ()), ARRAY(Text)))

    def count(self, project: UUID) -> Select[int]:
        """How many match. Who asks for tags alone is answered out of their index: a plan that knows no values would look each
        of their sessions up."""
        if not self.tags or self != SessionFilters(tags=self.tags):
            return select(func.count()).select_from(Session).where(*self.sql(project))
        counted = func.count() if len(set(self.tags)) == 1 else func.count(_G.session_id.distinct())
        return select(counted).select_from(SessionTag).where(*self.of_tags(project))


async def page(
    tx: Tx, project: UUID, filters: SessionFilters, sort_by: str, descending: bool, limit: int, offset: int
) -> tuple[list[dict[str, Any]], int]:
    where = filters.sql(project)
    total = (await tx.execute(filters.count(project))).scalar_one()
    order = SORTS[sort_by][0 if descending else 1]
    rows = await tx.execute(select(*_SHOWN).where(*where).order_by(*order).limit(limit).offset(offset))
    return [dict(r._mapping) for r in rows], total


async def matching(tx: Tx, project: UUID, asked: SessionRunFilters) -> tuple[int, str]:
    """How many sessions a run means now, with the snapshot that counted them: the expansion takes what it saw."""
    counted = select(func.count(), cast(func.pg_current_snapshot(), Text)).where(
        *SessionFilters.of_run(asked).sql(project)
    )
    found, snapshot = (await tx.execute(counted.select_from(Session))).one()
    return int(found), str(snapshot)


async def missing(tx: Tx, project: UUID, wanted: Sequence[str]) -> list[str]:
    """Of these ids those that the project lacks, in the order they were given. Those that are there stay until this
    transaction ends: a run that names them counts on each."""
    named = (_S.project_id == project, _S.session_id == any_(cast(list(wanted), ARRAY(Text))))
    held = select(_S.session_id).where(*named).order_by(_S.session_id).with_for_update(read=True, key_share=True)
    there = {r.session_id for r in await tx.execute(held)}
    return [w for w in wanted if w not in there]


async def traces_in(tx: Tx, project: UUID, asked: SessionRunFilters) -> int:
    """How many traces the sessions that a run means have together."""
    summed = select(func.coalesce(func.sum(_S.trace_count), 0)).where(*SessionFilters.of_run(asked).sql(project))
    return int((await tx.execute(summed)).scalar_one())


async def sizes(
    tx: Tx, project: UUID, asked: SessionRunFilters | None, ids: Sequence[str], most: int
) -> tuple[float, int | None]:
    """Of traces of the sessions that match, or that are named: see `traces.sizes`. The sessions lead, the latest first, and
    no more traces are looked at than are asked for: the other way round all of the project's would be."""
    named = [_S.project_id == project, _S.session_id == any_(cast(list(ids), ARRAY(Text)))]
    where = SessionFilters.of_run(asked).sql(project) if asked else named
    meant = select(_S.session_id).where(*where).order_by(_S.last_trace_at.desc()).limit(most + 1).subquery()
    of_it = (
        select(_T.trace_id)
        .where(_T.project_id == project, _T.session_id == meant.c.session_id)
        .limit(most + 1)
        .lateral()
    )
    chosen = select(of_it.c.trace_id).select_from(meant.join(of_it, literal(True))).limit(most + 1)
    return await traces.sizes_of(tx, [r.trace_id for r in await tx.execute(chosen)], most)


async def get(tx: Tx, project: UUID, session_id: str) -> dict[str, Any] | None:
    where = (_S.project_id == project, _S.session_id == session_id)
    row = (await tx.execute(select(*_SHOWN).where(*where))).one_or_none()
    return dict(row._mapping) if row else None


async def traces_of(tx: Tx, project: UUID, session_id: str, limit: int, offset: int) -> list[UUID]:
    """In the order of the conversation."""
    given = {"project": project, "session": session_id, "limit": limit, "offset": offset}
    return [r.trace_id for r in await tx.execute(_TRACES, given)]


def _folded(said: Any) -> ColumnElement[str]:
    return func.lower(collate(said, "pg_c_utf8"))


_TRACES = text(
    """
    SELECT trace_id FROM traces WHERE project_id = :project AND session_id = :session
    ORDER BY started_at, trace_id LIMIT :limit OFFSET :offset
    """
)
