"""Traces and their spans: written as upserts by their own ids, read whole or in pages."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import col

from steelyard.filters import TraceFilters
from steelyard.store.database import Tx, dumps, sqlstate
from steelyard.store.tables import TraceRow
from steelyard.traces import Span, Trace

_T = TraceRow.__table__.c  # type: ignore[attr-defined]
SORTS: Mapping[str, ColumnElement[Any]] = {
    "started_at": _T.started_at,
    "ended_at": _T.ended_at,
    "name": _T.name,
    "status": _T.status,
    "latency": _T.ended_at - _T.started_at,
}


class Foreign(Exception):
    """The id belongs to another project; to this one it is as unknown as a random one."""


async def put(tx: Tx, project: UUID, trace: Mapping[str, Any], spans: Sequence[Mapping[str, Any]]) -> None:
    """New, or an update: what was not sent is kept, metadata and tags merge. The trace's row lock orders writers."""
    sent = {**_NOTHING, **trace, "project_id": project}
    for name in ("input", "output"):
        sent[name] = None if sent[name] is None else dumps(sent[name])
    sent["metadata"] = dumps(sent["metadata"] or {})
    try:
        put = (await tx.execute(_PUT_TRACE, sent)).scalar()
    except DBAPIError as e:
        # Row-level security refuses an update of a row that it hides.
        if sqlstate(e) == "42501":
            raise Foreign from e
        raise
    if put is None:
        raise Foreign
    if spans:
        numbered = [{**s, "position": n} for n, s in enumerate(_merged(spans))]
        await tx.execute(_PUT_SPANS, {"trace": trace["trace_id"], "project": project, "spans": dumps(numbered)})


async def get(tx: Tx, trace_id: UUID, project: UUID) -> Trace | None:
    return (await load(tx, [trace_id], project)).get(trace_id)


async def load(tx: Tx, ids: Sequence[UUID], project: UUID | None = None) -> dict[UUID, Trace]:
    """Whole traces, spans in the order they started; ids that are not there are left out."""
    rows = (await tx.execute(_TRACES, {"ids": list(ids), "project": project})).all()
    spans: dict[UUID, list[Span]] = {r.trace_id: [] for r in rows}
    for r in await tx.execute(_SPANS, {"ids": list(spans)}):
        fields = {k: v for k, v in r._mapping.items() if k != "trace_id"}
        spans[r.trace_id].append(Span.model_construct(**fields))
    return {
        r.trace_id: Trace.model_construct(
            **dict(r._mapping) | {"tags": tuple(r.tags), "spans": tuple(spans[r.trace_id])}
        )
        for r in rows
    }


async def page(
    tx: Tx, project: UUID, filters: TraceFilters, sort_by: str, descending: bool, limit: int, offset: int
) -> tuple[list[dict[str, Any]], int]:
    where = [col(TraceRow.project_id) == project, *filters.sql()]
    total = (await tx.execute(select(func.count()).select_from(TraceRow).where(*where))).scalar_one()
    order = SORTS[sort_by].desc().nulls_last() if descending else SORTS[sort_by].asc().nulls_last()
    ids = select(_T.trace_id).where(*where).order_by(order, _T.trace_id).limit(limit).offset(offset)
    found = [r.trace_id for r in await tx.execute(ids)]
    listed = {r.trace_id: dict(r._mapping) for r in await tx.execute(_LISTED, {"ids": found})}
    return [listed[i] for i in found if i in listed], total


async def matching(tx: Tx, project: UUID, filters: TraceFilters) -> tuple[int, str]:
    """How many there are, and the snapshot that saw them: expansion takes only what it saw."""
    snapshot = text("pg_current_snapshot()::text")
    counted = select(func.count(), snapshot).select_from(TraceRow)
    row = (await tx.execute(counted.where(col(TraceRow.project_id) == project, *filters.sql()))).one()
    return int(row[0]), str(row[1])


def _merged(spans: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A span sent twice in one request is one span: the later one's fields win."""
    merged: dict[Any, dict[str, Any]] = {}
    for span in spans:
        merged[span["span_id"]] = merged.get(span["span_id"], {}) | {k: v for k, v in span.items() if v is not None}
    return list(merged.values())


_NOTHING: Mapping[str, Any] = dict.fromkeys(
    ("status", "input", "output", "metadata", "ended_at", "session_id", "user_id", "tags", "environment", "release")
)

_PUT_TRACE = text(
    """
    INSERT INTO traces AS t (
        trace_id, project_id, name, status, input, output, metadata, started_at, ended_at,
        session_id, user_id, tags, environment, release
    ) VALUES (
        :trace_id, :project_id, :name, coalesce(CAST(:status AS text), 'COMPLETED'), CAST(:input AS json),
        CAST(:output AS json), CAST(:metadata AS jsonb), :started_at, :ended_at,
        :session_id, :user_id, coalesce(CAST(:tags AS text[]), '{}'), :environment, :release
    )
    ON CONFLICT (trace_id) DO UPDATE SET
        name = excluded.name,
        status = coalesce(CAST(:status AS text), t.status),
        input = coalesce(excluded.input, t.input),
        output = coalesce(excluded.output, t.output),
        metadata = t.metadata || excluded.metadata,
        started_at = excluded.started_at,
        ended_at = coalesce(excluded.ended_at, t.ended_at),
        session_id = coalesce(excluded.session_id, t.session_id),
        user_id = coalesce(excluded.user_id, t.user_id),
        tags = t.tags || ARRAY(SELECT unnest(excluded.tags) EXCEPT SELECT unnest(t.tags)),
        environment = coalesce(excluded.environment, t.environment),
        release = coalesce(excluded.release, t.release),
        version = t.version + 1
    WHERE t.project_id = excluded.project_id
    RETURNING t.version
    """
)
# The trace's row is locked by now, so what the join sees is what the upsert meets.
_PUT_SPANS = text(
    """
    INSERT INTO spans AS s (
        trace_id, span_id, project_id, parent_span_id, position, name, kind, status, input, output, model,
        token_usage, metadata, started_at, ended_at, error, completion_start_time, model_parameters, cost
    )
    SELECT :trace, n.span_id, :project, coalesce(n.parent_span_id, o.parent_span_id),
        coalesce(o.position, (SELECT coalesce(max(position) + 1, 0) FROM spans WHERE trace_id = :trace) + n.position),
        n.name, coalesce(n.kind, o.kind, 'OTHER'), coalesce(n.status, o.status, 'UNSET'),
        coalesce(n.input, o.input), coalesce(n.output, o.output), coalesce(n.model, o.model),
        coalesce(n.token_usage, o.token_usage),
        coalesce(o.metadata, '{}') || coalesce(n.metadata, '{}'), n.started_at, coalesce(n.ended_at, o.ended_at),
        coalesce(n.error, o.error), coalesce(n.completion_start_time, o.completion_start_time),
        coalesce(n.model_parameters, o.model_parameters), coalesce(n.cost, o.cost)
    FROM json_to_recordset(CAST(:spans AS json)) AS n (
        span_id uuid, parent_span_id uuid, position integer, name text, kind text, status text, input json,
        output json, model text, token_usage json, metadata jsonb, started_at timestamptz, ended_at timestamptz,
        error text, completion_start_time timestamptz, model_parameters json, cost json
    )
    LEFT JOIN spans o ON o.trace_id = :trace AND o.span_id = n.span_id
    ON CONFLICT (trace_id, span_id) DO UPDATE SET
        parent_span_id = excluded.parent_span_id, name = excluded.name, kind = excluded.kind,
        status = excluded.status, input = excluded.input, output = excluded.output, model = excluded.model,
        token_usage = excluded.token_usage, metadata = excluded.metadata, started_at = excluded.started_at,
        ended_at = excluded.ended_at, error = excluded.error,
        completion_start_time = excluded.completion_start_time,
        model_parameters = excluded.model_parameters, cost = excluded.cost
    """
)
_TRACES = text(
    """
    SELECT trace_id, project_id, name, status, input, output, metadata, started_at, ended_at, session_id, user_id,
        tags, environment, release, version
    FROM traces WHERE trace_id = ANY(:ids) AND (CAST(:project AS uuid) IS NULL OR project_id = :project)
    """
)
_SPANS = text(
    """
    SELECT trace_id, span_id, parent_span_id, name, kind, status, input, output, model, token_usage, metadata,
        started_at, ended_at, error, completion_start_time, model_parameters, cost
    FROM spans WHERE trace_id = ANY(:ids) ORDER BY trace_id, started_at, position
    """
)
# Numbers in users' own objects may be anything: only what is a number is added up.
_LISTED = text(
    """
    SELECT t.trace_id, t.name, t.status, t.started_at, t.ended_at, t.session_id, t.user_id, t.tags, t.environment,
        t.release, s.span_count, s.total_tokens, s.total_cost
    FROM traces t CROSS JOIN LATERAL (
        SELECT count(*) AS span_count,
            coalesce(sum(u.tokens), 0) AS total_tokens,
            coalesce(sum(c.cost), 0)::float8 AS total_cost
        FROM spans s
        LEFT JOIN LATERAL (
            SELECT coalesce(
                max(n) FILTER (WHERE key = 'total_tokens'),
                sum(n) FILTER (WHERE key IN ('prompt_tokens', 'completion_tokens', 'input_tokens', 'output_tokens'))
            )::bigint AS tokens
            FROM (
                SELECT key, least(greatest(value::text::numeric, 0), 1e15) AS n FROM json_each(
                    CASE WHEN json_typeof(s.token_usage) = 'object' THEN s.token_usage ELSE '{}' END
                ) WHERE json_typeof(value) = 'number'
            ) numbers
        ) u ON true
        LEFT JOIN LATERAL (
            SELECT coalesce(max(n) FILTER (WHERE key = 'total'), sum(n) FILTER (WHERE key <> 'total')) AS cost
            FROM (
                SELECT key, least(greatest(value::text::numeric, 0), 1e15) AS n FROM json_each(
                    CASE WHEN json_typeof(s.cost) = 'object' THEN s.cost ELSE '{}' END
                ) WHERE json_typeof(value) = 'number'
            ) numbers
        ) c ON true
        WHERE s.trace_id = t.trace_id
    ) s
    WHERE t.trace_id = ANY(:ids)
    """
)
