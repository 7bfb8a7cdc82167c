"""Scores: what judges, programs and people said about traces; a score that is changed keeps what it said before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, TextClause, func, literal, select, text, tuple_
from sqlalchemy.dialects.postgresql import distinct_on

from steelyard.store.database import Tx, dumps
from steelyard.store.tables import ScoreHistory, TraceScore

TRACE_SCORES, SESSION_SCORES = "trace_scores", "session_scores"
_S = TraceScore.__table__.c  # type: ignore[attr-defined]
_H = ScoreHistory.__table__.c  # type: ignore[attr-defined]
_SHOWN = (
    _S.id, _S.trace_id, _S.name, _S.value, _S.status, _S.source, _S.created_at, _S.project_id, _S.data_type,
    _S.eval_run_id, _S.author_user_id, _S.reason, _S.environment, _S.config_id, _S.metadata, _S.updated_at,
    _S.trace_version,
)  # fmt: skip


@dataclass(frozen=True)
class ScoreFilters:
    """All exact; `date_from` is inclusive, `date_to` exclusive, both of the score's creation."""

    trace_id: UUID | None = None
    name: str | None = None
    source: str | None = None
    status: str | None = None
    data_type: str | None = None
    eval_run_id: UUID | None = None
    environment: str | None = None
    date_from: datetime | None = None
    date_to: datetime | None = None

    def sql(self, project: UUID) -> list[ColumnElement[bool]]:
        exact = {
            _S.trace_id: self.trace_id, _S.name: self.name, _S.source: self.source, _S.status: self.status,
            _S.data_type: self.data_type, _S.eval_run_id: self.eval_run_id, _S.environment: self.environment,
        }  # fmt: skip
        return narrowed(_S, project, exact, self.date_from, self.date_to)


def narrowed(
    columns: Any, project: UUID, exact: Mapping[Any, Any], since: datetime | None, until: datetime | None
) -> list[ColumnElement[bool]]:
    """Of either table of scores: the project's, with what was asked for, created within this time."""
    found: list[ColumnElement[bool]] = [columns.project_id == project]
    found += [column == wanted for column, wanted in exact.items() if wanted is not None]
    if since is not None:
        found.append(columns.created_at >= since)
    if until is not None:
        found.append(columns.created_at < until)
    return found


async def of_run(
    tx: Tx, project: UUID, run_id: UUID, after: tuple[UUID, str] | None, limit: int
) -> list[dict[str, Any]]:
    """By trace and name, those behind `after`: two readings of one run show the same order."""
    where = [_S.eval_run_id == run_id, _S.project_id == project]
    if after is not None:
        where.append(tuple_(_S.trace_id, _S.name) > tuple_(literal(after[0]), literal(after[1])))
    rows = await tx.execute(select(*_SHOWN).where(*where).order_by(_S.trace_id, _S.name).limit(limit))
    return [dict(r._mapping) for r in rows]


async def page(
    tx: Tx, project: UUID, filters: ScoreFilters, limit: int, offset: int
) -> tuple[list[dict[str, Any]], int]:
    where = filters.sql(project)
    total = (await tx.execute(select(func.count()).select_from(TraceScore).where(*where))).scalar_one()
    newest = select(*_SHOWN).where(*where).order_by(_S.created_at.desc(), _S.id).limit(limit).offset(offset)
    return [dict(r._mapping) for r in await tx.execute(newest)], total


async def latest_of(tx: Tx, project: UUID, trace_id: UUID) -> list[dict[str, Any]]:
    """The newest of each name, whatever its status."""
    newest = (
        select(*_SHOWN)
        .ext(distinct_on(_S.name))
        .where(_S.trace_id == trace_id, _S.project_id == project)
        .order_by(_S.name, _S.created_at.desc(), _S.id)
    )
    return [dict(r._mapping) for r in await tx.execute(newest)]


async def get(tx: Tx, project: UUID, score_id: UUID) -> dict[str, Any] | None:
    row = (await tx.execute(select(*_SHOWN).where(_S.id == score_id, _S.project_id == project))).one_or_none()
    return dict(row._mapping) if row else None


async def put(tx: Tx, project: UUID, score: Mapping[str, Any], park: bool) -> dict[str, Any] | None:
    """None when the project lacks the trace and the score may not be parked.

    A trace that is being ingested right now is waited for: every ingest holds the project's gate as one of many, who
    parks holds it alone. So a score finds its trace, or the trace finds the score, and none slips between."""
    held = await _held(tx, project, score["trace_id"])
    if held is None and park:
        await tx.execute(_GATE, {"project": str(project)})
        held = await _held(tx, project, score["trace_id"])
    if held is None and not park:
        return None
    environment, version = held or (None, None)
    given = {**score, "project": project, "metadata": dumps(score["metadata"]), "environment": environment}
    given |= {"version": version, "status": "PENDING" if held is None else "SUCCESS"}
    await tx.execute(_PUT, given)
    return await get(tx, project, score["id"])


async def _held(tx: Tx, project: UUID, trace_id: UUID) -> tuple[str | None, int] | None:
    row = (await tx.execute(_HOLD_TRACE, {"trace": trace_id, "project": project})).one_or_none()
    return (row.environment, row.version) if row else None


async def lock(tx: Tx, project: UUID, score_id: UUID) -> dict[str, Any] | None:
    where = (_S.id == score_id, _S.project_id == project)
    row = (await tx.execute(select(*_SHOWN).where(*where).with_for_update())).one_or_none()
    return dict(row._mapping) if row else None


async def change(tx: Tx, before: Mapping[str, Any], after: Mapping[str, Any], author: str | None) -> None:
    """What it said before goes into the history; the caller holds its lock."""
    await tx.execute(_KEEP, {"id": before["id"]})
    given = {"id": before["id"], "value": after["value"], "reason": after["reason"], "author": author}
    await tx.execute(_CHANGE, given | {"metadata": dumps(after["metadata"]), "status": after["status"]})


async def delete(tx: Tx, project: UUID, score_id: UUID) -> bool:
    return bool((await tx.execute(_DELETE, {"id": score_id, "project": project})).rowcount)


async def history(tx: Tx, project: UUID, score_id: UUID) -> list[dict[str, Any]]:
    """What it said before, the newest first."""
    columns = (_H.value, _H.data_type, _H.source, _H.status, _H.reason, _H.author_user_id, _H.eval_run_id, _H.metadata,
               _H.said_at, _H.replaced_at)  # fmt: skip
    rows = select(*columns).where(_H.score_id == score_id, _H.project_id == project).order_by(_H.id.desc())
    return [dict(r._mapping) for r in await tx.execute(rows)]


async def prune_parked(tx: Tx, hours: float, page: int) -> int:
    """Scores whose trace never came."""
    return (await tx.execute(_PRUNE_PARKED, {"hours": hours, "page": page})).rowcount


# Analytics, of scores of either kind.


async def summary(
    tx: Tx, project: UUID, since: datetime | None, until: datetime | None, kind: str = TRACE_SCORES
) -> list[dict[str, Any]]:
    return await _rows(tx, _SUMMARY[kind], project=project, since=since, until=until)


async def trend(
    tx: Tx,
    project: UUID,
    name: str,
    granularity: str,
    since: datetime | None,
    until: datetime | None,
    kind: str = TRACE_SCORES,
) -> list[dict[str, Any]]:
    given = {"project": project, "name": name, "granularity": granularity, "since": since, "until": until}
    return await _rows(tx, _TREND[kind], **given)


async def distribution(
    tx: Tx,
    project: UUID,
    name: str,
    buckets: int,
    since: datetime | None,
    until: datetime | None,
    kind: str = TRACE_SCORES,
) -> Sequence[dict[str, Any]]:
    """All buckets, the empty ones too; the last one holds 1.0."""
    given = {"project": project, "name": name, "buckets": buckets, "since": since, "until": until}
    return await _rows(tx, _DISTRIBUTION[kind], **given)


async def _rows(tx: Tx, statement: Any, **given: Any) -> list[dict[str, Any]]:
    return [dict(r._mapping) for r in await tx.execute(statement, given)]


def _of_either(statement: str) -> dict[str, TextClause]:
    """Once for the scores of traces, once for those of sessions."""
    return {kind: text(statement.replace("SCORES", kind)) for kind in (TRACE_SCORES, SESSION_SCORES)}


_HOLD_TRACE = text(
    "SELECT environment, version FROM traces WHERE trace_id = :trace AND project_id = :project FOR KEY SHARE"
)
_GATE = text("SELECT pg_advisory_xact_lock(hashtextextended(:project, 11))")
_PUT = text(
    """
    INSERT INTO trace_scores (
        id, project_id, trace_id, name, value, data_type, source, status, reason, environment, author_user_id, metadata,
        trace_version
    ) VALUES (
        :id, :project, :trace_id, :name, :value, :data_type, :source, :status, :reason, :environment, :author_user_id,
        CAST(:metadata AS jsonb), :version
    )
    """
)
_KEEP = text(
    """
    INSERT INTO score_history (
        score_id, project_id, value, data_type, source, status, reason, author_user_id, eval_run_id, metadata, said_at
    )
    SELECT id, project_id, value, data_type, source, status, reason, author_user_id, eval_run_id, metadata, updated_at
    FROM trace_scores WHERE id = :id
    """
)
_CHANGE = text(
    """
    UPDATE trace_scores SET value = :value, reason = :reason, metadata = CAST(:metadata AS jsonb), status = :status,
        source = 'ANNOTATION', author_user_id = :author, updated_at = now()
    WHERE id = :id
    """
)
_DELETE = text("DELETE FROM trace_scores WHERE id = :id AND project_id = :project")
_PRUNE_PARKED = text(
    """
    DELETE FROM trace_scores WHERE id IN (
        SELECT id FROM trace_scores WHERE status = 'PENDING' AND created_at < now() - make_interval(secs => 3600 * :hours)
        LIMIT :page FOR UPDATE SKIP LOCKED
    )
    """
)
_WINDOW = """
    created_at >= coalesce(CAST(:since AS timestamptz), '-infinity')
        AND created_at < coalesce(CAST(:until AS timestamptz), 'infinity')
"""
_SUMMARY = _of_either(
    f"""
    SELECT name AS metric_name, avg(number) AS avg_score, min(number) AS min_score, max(number) AS max_score,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY number) AS median_score,
        count(*) FILTER (WHERE status = 'SUCCESS') AS success_count,
        count(*) FILTER (WHERE status = 'FAILED') AS failed_count, max(created_at) AS latest_score_at
    FROM SCORES WHERE project_id = :project AND status <> 'PENDING' AND {_WINDOW}
    GROUP BY name ORDER BY name
    """
)
_TREND = _of_either(
    f"""
    SELECT date_trunc(:granularity, created_at, 'UTC') AS bucket, name AS metric_name, avg(number) AS avg_score,
        count(*) AS count
    FROM SCORES WHERE project_id = :project AND name = :name AND number IS NOT NULL AND {_WINDOW}
    GROUP BY 1, 2 ORDER BY 1
    """
)
# numeric, so that 0.29 of 100 buckets belongs to the one that begins at 0.29: as a double it would be 28.999….
_DISTRIBUTION = _of_either(
    f"""
    WITH counted AS (
        SELECT least(width_bucket(number::numeric, 0, 1, :buckets), :buckets) AS bucket, count(*) AS n
        FROM SCORES WHERE project_id = :project AND name = :name AND number IS NOT NULL AND {_WINDOW}
        GROUP BY 1
    )
    SELECT b AS bucket, ((b - 1)::numeric / :buckets)::float8 AS bucket_min, (b::numeric / :buckets)::float8 AS bucket_max,
        coalesce(n, 0) AS count
    FROM generate_series(1, CAST(:buckets AS int)) AS b LEFT JOIN counted ON counted.bucket = b ORDER BY b
    """
)
