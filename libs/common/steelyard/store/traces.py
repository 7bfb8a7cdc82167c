"""Traces and their spans: written as upserts by their own ids, read whole or in pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, Uuid, any_, cast, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import col

from steelyard.filters import TraceFilters
from steelyard.store.database import Tx, dumps
from steelyard.store.tables import TraceRow, TraceTag
from steelyard.traces import MOST, Span, Trace, usage

_T = TraceRow.__table__.c  # type: ignore[attr-defined]
_G = TraceTag.__table__.c  # type: ignore[attr-defined]
_LATENCY = _T.ended_at - _T.started_at
# As their indexes are: a column that is never null says nothing of nulls, or Postgres sorts what it could read in order.
SORTS: Mapping[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {  # descending, ascending
    "started_at": ((_T.started_at.desc(), _T.trace_id), (_T.started_at, _T.trace_id.desc())),
    "name": ((_T.name.desc(), _T.trace_id.desc()), (_T.name, _T.trace_id)),
    "status": ((_T.status.desc(), _T.trace_id), (_T.status, _T.trace_id)),
    "ended_at": ((_T.ended_at.desc().nulls_last(), _T.trace_id), (_T.ended_at, _T.trace_id)),
    "latency": ((_LATENCY.desc().nulls_last(), _T.trace_id), (_LATENCY, _T.trace_id)),
}


class Foreign(Exception):
    """The id belongs to another project; to this one it is as unknown as a random one."""


@dataclass(frozen=True)
class Arrival:
    """A trace as it was sent: fields that were not are None, so is what a span does not say."""

    trace: Mapping[str, Any]
    spans: Sequence[Mapping[str, Any]]

    @property
    def trace_id(self) -> UUID:
        return UUID(str(self.trace["trace_id"]))


async def put(tx: Tx, project: UUID, trace: Mapping[str, Any], spans: Sequence[Mapping[str, Any]]) -> None:
    """New, or an update: what was not sent is kept, metadata and tags merge."""
    if await put_many(tx, project, [Arrival(trace, spans)]):
        raise Foreign


async def put_many(tx: Tx, project: UUID, arrivals: Sequence[Arrival]) -> set[UUID]:
    """All of them in few statements; what was sent twice is written in the order of arrival. Returns foreign ids."""
    await tx.execute(_GATE, {"project": str(project)})
    foreign: set[UUID] = set()
    waiting = list(arrivals)
    while waiting:
        wave = {a.trace_id: a for a in reversed(waiting)}  # of each id the first one
        taken = {id(a) for a in wave.values()}
        waiting = [a for a in waiting if id(a) not in taken]
        left = await _put_wave(tx, project, dict(sorted(wave.items())))
        # Neither new nor ours: another project's, or one that was just being deleted and is gone now.
        foreign |= await _put_wave(tx, project, {i: wave[i] for i in sorted(left)}) if left else set()
    return foreign


async def _put_wave(tx: Tx, project: UUID, wave: Mapping[UUID, Arrival]) -> set[UUID]:
    """Sorted by id, so that two writers who meet wait for each other and never in a circle."""
    given = {"project": project, "traces": dumps([_as_sent(a) for a in wave.values()])}
    new = {r.trace_id for r in await tx.execute(_NEW_TRACES, given)}
    if new:
        spans = [s for i in sorted(new) for s in _numbered(wave[i])]
        await tx.execute(_NEW_SPANS, {"project": project, "spans": dumps(spans), "new": sorted(new)})
    return (
        await _update(tx, project, {i: a for i, a in wave.items() if i not in new}) if len(new) < len(wave) else set()
    )


async def _update(tx: Tx, project: UUID, known: Mapping[UUID, Arrival]) -> set[UUID]:
    """What row-level security hides is not found here, though it was in the way of the insert: it is foreign."""
    await tx.execute(_LOCK_TRACES, {"ids": list(known), "project": project})
    given = {"project": project, "traces": dumps([_as_sent(a) for a in known.values()])}
    updated = {r.trace_id for r in await tx.execute(_KNOWN_TRACES, given)}
    await _put_spans(tx, project, {i: known[i].spans for i in updated})
    return set(known) - updated


async def _put_spans(tx: Tx, project: UUID, spans: Mapping[UUID, Sequence[Mapping[str, Any]]]) -> None:
    rows = [row for i in sorted(spans) for row in _numbered(Arrival({"trace_id": i}, spans[i]))]
    if rows:
        await tx.execute(_PUT_SPANS, {"project": project, "spans": dumps(rows)})
        await tx.execute(_ADD_UP, {"ids": sorted(i for i in spans if spans[i])})


async def add_spans(tx: Tx, project: UUID, trace_id: UUID, spans: Sequence[Mapping[str, Any]]) -> bool:
    """False when the project has no such trace."""
    if not await _touch(tx, project, trace_id):
        return False
    await _put_spans(tx, project, {trace_id: spans})
    return True


async def patch(tx: Tx, project: UUID, trace_id: UUID, changes: Mapping[str, Any]) -> bool:
    """Only what `changes` names is touched, null clears it; metadata merges, tags are replaced."""
    if not await _touch(tx, project, trace_id):
        return False
    sets, given = _changes(changes, TRACE_COLUMNS)
    if sets:
        await tx.execute(text(f"UPDATE traces SET {sets} WHERE trace_id = :id"), {**given, "id": trace_id})
    return True


async def patch_span(tx: Tx, project: UUID, trace_id: UUID, span_id: UUID, changes: Mapping[str, Any]) -> bool:
    if not await _touch(tx, project, trace_id):
        return False
    sets, given = _changes(changes, SPAN_COLUMNS)
    found = text(f"UPDATE spans SET {sets or 'name = name'} WHERE trace_id = :id AND span_id = :span")
    if not (await tx.execute(found, {**given, "id": trace_id, "span": span_id})).rowcount:
        return False
    if "token_usage" in changes or "cost" in changes:
        await tx.execute(_ADD_UP, {"ids": [trace_id]})
    return True


async def _touch(tx: Tx, project: UUID, trace_id: UUID) -> bool:
    """Locks the trace and moves its version: whatever follows is a change of it."""
    return bool((await tx.execute(_TOUCH, {"id": trace_id, "project": project})).rowcount)


async def delete(tx: Tx, project: UUID, ids: Sequence[UUID]) -> int:
    """With their spans and scores; ids that the project lacks are passed over."""
    found = [r.trace_id for r in await tx.execute(_LOCK_TRACES_TO_DELETE, {"ids": list(ids), "project": project})]
    return await _delete_locked(tx, found)


async def _delete_locked(tx: Tx, found: Sequence[UUID]) -> int:
    if found:
        await tx.execute(_DELETE_SCORES, {"ids": found})
        await tx.execute(_DELETE_TRACES, {"ids": found})
    return len(found)


async def delete_session(tx: Tx, project: UUID, session_id: str) -> int:
    given = {"project": project, "session": session_id}
    return await _delete_locked(tx, [r.trace_id for r in await tx.execute(_LOCK_SESSION_TO_DELETE, given)])


async def retag(tx: Tx, project: UUID, ids: Sequence[UUID], add: Sequence[str], remove: Sequence[str]) -> int:
    """A tag that is both added and removed is there afterwards. Counts the traces that the project has."""
    found = [r.trace_id for r in await tx.execute(_LOCK_TRACES, {"ids": list(ids), "project": project})]
    if found:
        await tx.execute(_RETAG, {"ids": found, "add": list(add), "remove": list(remove)})
    return len(found)


async def missing(tx: Tx, project: UUID, ids: Sequence[UUID]) -> list[UUID]:
    """Which of these the project lacks, in the order they were given."""
    there = {r.trace_id for r in await tx.execute(_THERE, {"ids": list(ids), "project": project})}
    return [i for i in ids if i not in there]


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


async def sums(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, dict[str, Any]]:
    """What lists show of these traces' spans, by the same columns: a judge has no use for it, so it is no part of a trace."""
    rows = await tx.execute(_SUMS, {"ids": list(ids)})
    return {r.trace_id: {"total_tokens": r.total_tokens, "total_cost": r.total_cost} for r in rows}


async def page(
    tx: Tx, project: UUID, filters: TraceFilters, sort_by: str, descending: bool, limit: int, offset: int
) -> tuple[list[dict[str, Any]], int]:
    where = [col(TraceRow.project_id) == project, *filters.sql()]
    total = select(func.count()).select_from(TraceRow).where(*where)
    ids = select(_T.trace_id).where(*where).order_by(*SORTS[sort_by][0 if descending else 1])
    if filters.only_tags_and_times():
        total, by_time = _tagged(project, filters, descending)
        ids = by_time if sort_by == "started_at" else ids
    found = [r.trace_id for r in await tx.execute(ids.limit(limit).offset(offset))]
    listed = {r.trace_id: dict(r._mapping) for r in await tx.execute(_LISTED, {"ids": found})}
    return [listed[i] for i in found if i in listed], (await tx.execute(total)).scalar_one()


def _tagged(project: UUID, filters: TraceFilters, descending: bool) -> tuple[Select[Any], Select[Any]]:
    """The count and the order by time out of the tags' own index: the traces themselves are not looked at."""
    where = [_G.project_id == project, *filters.of_tags()]
    if len(set(filters.tags or ())) == 1:
        total, ids = select(func.count()).select_from(TraceTag).where(*where), select(_G.trace_id, _G.started_at)
    else:
        total = select(func.count(_G.trace_id.distinct())).where(*where)
        ids = select(_G.trace_id, _G.started_at).distinct()
    order = (_G.started_at.desc(), _G.trace_id.desc()) if descending else (_G.started_at, _G.trace_id)
    return total, ids.where(*where).order_by(*order)


async def matching(tx: Tx, project: UUID, filters: TraceFilters) -> tuple[int, str]:
    """How many there are, and the snapshot that saw them: expansion takes only what it saw."""
    snapshot = text("pg_current_snapshot()::text")
    counted = select(func.count(), snapshot).select_from(TraceRow)
    row = (await tx.execute(counted.where(col(TraceRow.project_id) == project, *filters.sql()))).one()
    return int(row[0]), str(row[1])


async def sizes(
    tx: Tx, project: UUID, filters: TraceFilters | None, ids: Sequence[UUID], most: int
) -> tuple[float, int | None]:
    """Bytes of a trace with its spans, on average and at most, of the newest ones that a run would mean; None for the
    most where not all of them were looked at."""
    these = filters.sql() if filters else [_T.trace_id == any_(cast(list(ids), ARRAY(Uuid)))]
    where = [_T.project_id == project, *these]
    newest = select(_T.trace_id).where(*where).order_by(_T.started_at.desc()).limit(most + 1)
    return await sizes_of(tx, [r.trace_id for r in await tx.execute(newest)], most)


async def sizes_of(tx: Tx, chosen: Sequence[UUID], most: int) -> tuple[float, int | None]:
    row = (await tx.execute(_SIZES, {"ids": chosen[:most]})).one()
    return float(row.average or 0), int(row.most or 0) if len(chosen) <= most else None


def _as_sent(arrival: Arrival) -> dict[str, Any]:
    used = [usage(s.get("token_usage"), s.get("cost")) for s in _merged(arrival.spans)]
    sums = {name: sum(getattr(u, name) or 0 for u in used) for name in SUMS}
    sums |= {"total_cost": min(sums["total_cost"], MOST), "span_count": len(used)}
    return {**_NOTHING, **arrival.trace, **{k: min(n, MOST) for k, n in sums.items()}}


def _numbered(arrival: Arrival) -> list[dict[str, Any]]:
    return [
        {**s, **_used(s), "trace_id": arrival.trace["trace_id"], "position": n}
        for n, s in enumerate(_merged(arrival.spans))
    ]


def _used(span: Mapping[str, Any]) -> dict[str, Any]:
    return usage(span.get("token_usage"), span.get("cost"))._asdict()


def _merged(spans: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A span sent twice in one request is one span: the later one's fields win."""
    if len({s["span_id"] for s in spans}) == len(spans):
        return list(spans)
    merged: dict[Any, dict[str, Any]] = {}
    for span in spans:
        merged[span["span_id"]] = merged.get(span["span_id"], {}) | {k: v for k, v in span.items() if v is not None}
    return list(merged.values())


def _changes(changes: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """`a = :a, b = :b` for the columns that are named, from fixed words alone, and their values."""
    given = {k: dumps(v) if v is not None and columns[k] in ("json", "jsonb") else v for k, v in changes.items()}
    if "token_usage" in changes or "cost" in changes:
        used = _used(changes)
        names = [k for k in used if ("tokens" in k and "token_usage" in changes) or ("cost" in k and "cost" in changes)]
        given |= {k: used[k] for k in names}
    # Times go as text: the driver takes the calendar's first and last moment for the infinities, which nothing can read.
    given = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in given.items()}
    sets = [
        f"metadata = metadata || CAST(:{k} AS jsonb)" if k == "metadata" else f"{k} = {_cast(k, columns[k])}"
        for k in given
        if not (k == "metadata" and given[k] is None)
    ]
    return ", ".join(sets), given


def _cast(name: str, kind: str) -> str:
    return f"CAST(CAST(:{name} AS text) AS {kind})" if kind == "timestamptz" else f"CAST(:{name} AS {kind})"


_NOTHING: Mapping[str, Any] = dict.fromkeys(
    ("status", "input", "output", "metadata", "ended_at", "session_id", "user_id", "tags", "environment", "release")
)
SUMS = ("prompt_tokens", "completion_tokens", "total_tokens", "total_cost")
TRACE_COLUMNS: Mapping[str, str] = {
    "name": "text", "status": "text", "input": "json", "output": "json", "metadata": "jsonb", "ended_at": "timestamptz",
    "session_id": "text", "user_id": "text", "tags": "text[]", "environment": "text", "release": "text",
}  # fmt: skip
SPAN_COLUMNS: Mapping[str, str] = {
    "name": "text", "kind": "text", "status": "text", "input": "json", "output": "json", "model": "text",
    "token_usage": "json", "metadata": "jsonb", "ended_at": "timestamptz", "error": "text",
    "completion_start_time": "timestamptz", "model_parameters": "json", "cost": "json",
    "prompt_tokens": "bigint", "completion_tokens": "bigint", "total_tokens": "bigint", "total_cost": "float8",
}  # fmt: skip
_SENT_TRACES = """
    json_to_recordset(CAST(:traces AS json)) AS n (
        trace_id uuid, name text, status text, input json, output json, metadata jsonb, started_at timestamptz,
        ended_at timestamptz, session_id text, user_id text, tags text[], environment text, release text,
        span_count int, prompt_tokens bigint, completion_tokens bigint, total_tokens bigint, total_cost float8
    )
"""
_SENT_SPANS = """
    json_to_recordset(CAST(:spans AS json)) AS n (
        trace_id uuid, span_id uuid, parent_span_id uuid, position integer, name text, kind text, status text, input json,
        output json, model text, token_usage json, metadata jsonb, started_at timestamptz, ended_at timestamptz,
        error text, completion_start_time timestamptz, model_parameters json, cost json, prompt_tokens bigint,
        completion_tokens bigint, total_tokens bigint, total_cost float8
    )
"""
_SPAN_COLUMNS = """
    trace_id, span_id, project_id, parent_span_id, position, name, kind, status, input, output, model,
    token_usage, metadata, started_at, ended_at, error, completion_start_time, model_parameters, cost,
    prompt_tokens, completion_tokens, total_tokens, total_cost
"""
# Held by all who ingest at once: who parks a score for a trace that is on its way waits for them (see scores.put).
_GATE = text("SELECT pg_advisory_xact_lock_shared(hashtextextended(:project, 11))")
_NEW_TRACES = text(
    f"""
    INSERT INTO traces (
        trace_id, project_id, name, status, input, output, metadata, started_at, ended_at, session_id, user_id, tags,
        environment, release, span_count, prompt_tokens, completion_tokens, total_tokens, total_cost
    )
    SELECT trace_id, CAST(:project AS uuid), name, coalesce(status, 'COMPLETED'), input, output,
        coalesce(metadata, '{{}}'), started_at, ended_at, session_id, user_id, coalesce(tags, '{{}}'), environment,
        release, span_count, prompt_tokens, completion_tokens, total_tokens, total_cost
    FROM {_SENT_TRACES}
    ON CONFLICT (trace_id) DO NOTHING RETURNING trace_id
    """
)
# A score that came before its trace waits for it: it is attached in the transaction that brings the trace.
_NEW_SPANS = text(
    f"""
    WITH spans AS (
        INSERT INTO spans ({_SPAN_COLUMNS})
        SELECT trace_id, span_id, CAST(:project AS uuid), parent_span_id, position, name, coalesce(kind, 'OTHER'),
            coalesce(status, 'UNSET'), input, output, model, token_usage, coalesce(metadata, '{{}}'), started_at,
            ended_at, error, completion_start_time, model_parameters, cost, prompt_tokens, completion_tokens,
            total_tokens, total_cost
        FROM {_SENT_SPANS}
    )
    UPDATE trace_scores s SET status = 'SUCCESS', environment = t.environment, trace_version = t.version,
        updated_at = now()
    FROM traces t
    WHERE s.trace_id = ANY(CAST(:new AS uuid[])) AND s.status = 'PENDING' AND s.project_id = :project
        AND t.trace_id = s.trace_id
    """
)
_LOCK_TRACES = text(
    """
    SELECT trace_id FROM traces WHERE trace_id = ANY(CAST(:ids AS uuid[])) AND project_id = :project
    ORDER BY trace_id FOR NO KEY UPDATE
    """
)
_LOCK_TRACES_TO_DELETE = text(
    """
    SELECT trace_id FROM traces WHERE trace_id = ANY(CAST(:ids AS uuid[])) AND project_id = :project
    ORDER BY trace_id FOR UPDATE
    """
)
_LOCK_SESSION_TO_DELETE = text(
    """
    SELECT trace_id FROM traces WHERE project_id = :project AND session_id = :session ORDER BY trace_id FOR UPDATE
    """
)
_DELETE_SCORES = text("DELETE FROM trace_scores WHERE trace_id = ANY(CAST(:ids AS uuid[]))")
_DELETE_TRACES = text("DELETE FROM traces WHERE trace_id = ANY(CAST(:ids AS uuid[]))")
_TOUCH = text("UPDATE traces SET version = version + 1 WHERE trace_id = :id AND project_id = :project")
_THERE = text("SELECT trace_id FROM traces WHERE trace_id = ANY(CAST(:ids AS uuid[])) AND project_id = :project")
_RETAG = text(
    """
    UPDATE traces t SET version = version + 1, tags = ARRAY(
        SELECT tag FROM unnest(t.tags || CAST(:add AS text[])) WITH ORDINALITY AS u (tag, n)
        WHERE tag <> ALL(CAST(:remove AS text[])) OR tag = ANY(CAST(:add AS text[]))
        GROUP BY tag ORDER BY min(n)
    )
    WHERE trace_id = ANY(CAST(:ids AS uuid[]))
    """
)
_KNOWN_TRACES = text(
    f"""
    UPDATE traces t SET
        name = n.name,
        status = coalesce(n.status, t.status),
        input = coalesce(n.input, t.input),
        output = coalesce(n.output, t.output),
        metadata = t.metadata || coalesce(n.metadata, '{{}}'),
        started_at = n.started_at,
        ended_at = coalesce(n.ended_at, t.ended_at),
        session_id = coalesce(n.session_id, t.session_id),
        user_id = coalesce(n.user_id, t.user_id),
        tags = t.tags || ARRAY(SELECT unnest(n.tags) EXCEPT SELECT unnest(t.tags)),
        environment = coalesce(n.environment, t.environment),
        release = coalesce(n.release, t.release),
        version = t.version + 1
    FROM {_SENT_TRACES}
    WHERE t.trace_id = n.trace_id AND t.project_id = :project
    RETURNING t.trace_id
    """
)
# The traces' rows are locked by now, so what the join sees is what the upsert meets.
_PUT_SPANS = text(
    f"""
    INSERT INTO spans AS s ({_SPAN_COLUMNS})
    SELECT n.trace_id, n.span_id, CAST(:project AS uuid), coalesce(n.parent_span_id, o.parent_span_id),
        coalesce(o.position, coalesce(m.last + 1, 0) + n.position),
        n.name, coalesce(n.kind, o.kind, 'OTHER'), coalesce(n.status, o.status, 'UNSET'),
        coalesce(n.input, o.input), coalesce(n.output, o.output), coalesce(n.model, o.model),
        coalesce(n.token_usage, o.token_usage),
        coalesce(o.metadata, '{{}}') || coalesce(n.metadata, '{{}}'), n.started_at, coalesce(n.ended_at, o.ended_at),
        coalesce(n.error, o.error), coalesce(n.completion_start_time, o.completion_start_time),
        coalesce(n.model_parameters, o.model_parameters), coalesce(n.cost, o.cost),
        CASE WHEN n.token_usage IS NULL THEN o.prompt_tokens ELSE n.prompt_tokens END,
        CASE WHEN n.token_usage IS NULL THEN o.completion_tokens ELSE n.completion_tokens END,
        CASE WHEN n.token_usage IS NULL THEN o.total_tokens ELSE n.total_tokens END,
        CASE WHEN n.cost IS NULL THEN o.total_cost ELSE n.total_cost END
    FROM {_SENT_SPANS}
    LEFT JOIN spans o ON o.trace_id = n.trace_id AND o.span_id = n.span_id
    LEFT JOIN LATERAL (SELECT max(position) AS last FROM spans x WHERE x.trace_id = n.trace_id) m ON true
    ON CONFLICT (trace_id, span_id) DO UPDATE SET
        parent_span_id = excluded.parent_span_id, name = excluded.name, kind = excluded.kind,
        status = excluded.status, input = excluded.input, output = excluded.output, model = excluded.model,
        token_usage = excluded.token_usage, metadata = excluded.metadata, started_at = excluded.started_at,
        ended_at = excluded.ended_at, error = excluded.error,
        completion_start_time = excluded.completion_start_time,
        model_parameters = excluded.model_parameters, cost = excluded.cost,
        prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
        total_tokens = excluded.total_tokens, total_cost = excluded.total_cost
    """
)
_ADD_UP = text(
    f"""
    UPDATE traces t SET span_count = n.spans, prompt_tokens = n.prompt, completion_tokens = n.completion,
        total_tokens = n.total, total_cost = n.cost
    FROM (
        SELECT trace_id, count(*) AS spans, least(coalesce(sum(prompt_tokens), 0), {MOST}) AS prompt,
            least(coalesce(sum(completion_tokens), 0), {MOST}) AS completion,
            least(coalesce(sum(total_tokens), 0), {MOST}) AS total, least(coalesce(sum(total_cost), 0), {MOST}) AS cost
        FROM spans WHERE trace_id = ANY(CAST(:ids AS uuid[])) GROUP BY trace_id
    ) n WHERE n.trace_id = t.trace_id
    """
)
_TRACES = text(
    """
    SELECT trace_id, project_id, name, status, input, output, metadata, started_at, ended_at, session_id, user_id,
        tags, environment, release, version
    FROM traces WHERE trace_id = ANY(:ids) AND (CAST(:project AS uuid) IS NULL OR project_id = :project)
    """
)
_SUMS = text("SELECT trace_id, total_tokens, total_cost FROM traces WHERE trace_id = ANY(:ids)")
# Foreign keys look past row-level security: a span counts only where its trace is of the same project.
_SPANS = text(
    """
    SELECT s.trace_id, s.span_id, s.parent_span_id, s.name, s.kind, s.status, s.input, s.output, s.model, s.token_usage,
        s.metadata, s.started_at, s.ended_at, s.error, s.completion_start_time, s.model_parameters, s.cost
    FROM spans s JOIN traces t ON t.trace_id = s.trace_id AND t.project_id = s.project_id
    WHERE s.trace_id = ANY(:ids) ORDER BY s.trace_id, s.started_at, s.position
    """
)
_SIZES = text(
    """
    SELECT avg(n) AS average, max(n) AS most FROM (
        SELECT coalesce(octet_length(t.input::text), 0) + coalesce(octet_length(t.output::text), 0) + coalesce((
            SELECT sum(octet_length(name) + coalesce(octet_length(input::text), 0) + coalesce(octet_length(output::text), 0) + 40)
            FROM spans s WHERE s.trace_id = t.trace_id
        ), 0) AS n
        FROM traces t WHERE t.trace_id = ANY(CAST(:ids AS uuid[]))
    ) sized
    """
)
_LISTED = text(
    """
    SELECT trace_id, name, status, started_at, ended_at, session_id, user_id, tags, environment, release, span_count,
        total_tokens, total_cost
    FROM traces WHERE trace_id = ANY(CAST(:ids AS uuid[]))
    """
)
