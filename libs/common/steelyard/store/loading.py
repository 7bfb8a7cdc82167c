"""What a judge loads of a trace: all of it up to a bound, beyond that the head and the tail of each long value.

The database measures and cuts; this process never holds more. A cut says how much is missing and its hash: whatever is
derived from the content (marks, answers, signals) still differs where only the unseen part does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from steelyard.store.database import Tx
from steelyard.traces import Span, SpanKind, SpanStatus, Trace

# Characters of all values of a trace together. A judge is shown 77,000.
WHOLE = 1024 * 1024
# The first and the last of them; between these a line says how many are left out.
MOST_SPANS = 2000
# Characters of one value: the longest of these with which the whole trace fits.
LADDER = tuple(2**n for n in range(5, 20))
# No compression that Postgres stores values in makes more than this of a byte.
EXPANSION = 255


@dataclass(frozen=True)
class Loaded:
    """`size` is in characters; without a trace it is too large to be loaded whole."""

    trace: Trace | None
    size: int


def most(stored: int | None) -> int:
    """What loading may come to, of a trace that takes so many bytes as it is stored; None is one of very many spans."""
    return WHOLE if stored is None else min(WHOLE, EXPANSION * stored)


def surely_large(stored: int | None) -> bool:
    """Stored values are never larger than they are."""
    return stored is None or stored > 4 * WHOLE


async def load(tx: Tx, ids: Sequence[UUID]) -> dict[UUID, Loaded]:
    """Traces that fit are whole, spans in the order they started; ids that are not there are left out."""
    rows = (await tx.execute(_TRACES, {"ids": list(ids), "whole": WHOLE, "spans": MOST_SPANS})).all()
    fitting = [r.trace_id for r in rows if r.fits]
    spans: dict[UUID, list[Span]] = {trace_id: [] for trace_id in fitting}
    if fitting:
        for r in await tx.execute(_SPANS, {"ids": fitting}):
            spans[r.trace_id].append(_span(r))
    return {r.trace_id: Loaded(_trace(r, spans[r.trace_id]) if r.fits else None, r.size) for r in rows}


async def load_cut(tx: Tx, trace_id: UUID) -> Loaded | None:
    """A trace that does not fit: whole statements for it alone, since they read all of it, inside the database."""
    ends = {"id": trace_id, "half": MOST_SPANS // 2}
    cap = (await tx.execute(_CAP, ends | {"caps": list(LADDER), "whole": WHOLE})).scalar() or LADDER[0]
    cuts = ends | {"cap": cap, "head": cap * 7 // 10, "tail": cap - cap * 7 // 10}
    row = (await tx.execute(_CUT_TRACE, cuts)).first()
    if row is None:
        return None
    spans = [_span(r) for r in await tx.execute(_CUT_SPANS, cuts)]
    left_out = (await tx.execute(_LEFT_OUT, ends)).one()
    if left_out.spans:
        half = MOST_SPANS // 2
        spans.insert(half, _stands_for(left_out.spans, left_out.digest, spans[half - 1]))
    return Loaded(_trace(row, spans), WHOLE)


def _stands_for(count: int, digest: str, before: Span) -> Span:
    """A line in the middle of the record. A chain, which no metric takes for a step."""
    return Span.model_construct(
        span_id=UUID(digest[:32]),
        name=f"{count} spans are left out here, sha256 {digest[:16]}",
        kind=SpanKind.CHAIN,
        status=SpanStatus.UNSET,
        started_at=before.started_at,
    )


def _span(r: Any) -> Span:
    return Span.model_construct(**{k: v for k, v in r._mapping.items() if k != "trace_id"})


def _trace(r: Any, spans: Sequence[Span]) -> Trace:
    fields = {k: v for k, v in r._mapping.items() if k not in ("fits", "size")}
    return Trace.model_construct(**fields, tags=(), spans=tuple(spans))


_TRACE_VALUES = ("name", "input", "output", "metadata", "session_id", "user_id", "environment", "release")
_SPAN_VALUES = (
    "name", "kind", "status", "input", "output", "model", "token_usage", "metadata", "error", "model_parameters", "cost",
)  # fmt: skip
_JSON, _OBJECTS = ("input", "output"), ("token_usage", "model_parameters", "cost")


def _characters(table: str, columns: Sequence[str]) -> str:
    return " + ".join(f"coalesce(length({table}.{c}::text), 0)" for c in columns)


def _stored(table: str, columns: Sequence[str]) -> str:
    return " + ".join(f"coalesce(pg_column_size({table}.{c}), 0)" for c in columns)


def _plain(table: str, column: str) -> str:
    """A string without its quotes and escapes: its head and tail are what people would read."""
    value = f"{table}.{column}"
    if column in _JSON:
        return f"CASE json_typeof({value}) WHEN 'string' THEN {value} #>> '{{}}' ELSE {value}::text END AS {column}"
    return f"{value}::text AS {column}"


def _cut(table: str, column: str) -> str:
    """`v` holds the plain values, read once; `c` the bounds."""
    v = f"v.{column}"
    cut = (
        f"left({v}, c.head) || ' …' || length({v}) - c.cap || ' characters cut, sha256 ' || "
        f"left(encode(sha256(convert_to({v}, 'UTF8')), 'hex'), 16) || '… ' || right({v}, c.tail)"
    )
    if column in _JSON:
        cut = f"to_json({cut})"
    elif column in _OBJECTS:
        cut = f"json_build_object('cut', {cut})"
    elif column == "metadata":
        cut = f"jsonb_build_object('cut', {cut})"
    return f"CASE WHEN length({v}) > c.cap THEN {cut} ELSE {table}.{column} END AS {column}"


def cut_json(value: str, most_characters: int) -> str:
    """One value of type json, for statements of others: as it is, or as a string of its head, what is missing, its tail."""
    head = most_characters * 7 // 10
    whole = f"{value}::text"
    return (
        f"CASE WHEN length({whole}) > {most_characters} THEN to_json(left({whole}, {head}) || ' …' || "
        f"length({whole}) - {most_characters} || ' characters cut, sha256 ' || "
        f"left(encode(sha256(convert_to({whole}, 'UTF8')), 'hex'), 16) || '… ' || "
        f"right({whole}, {most_characters - head})) ELSE {value} END"
    )


# As it is stored, nothing of it read: for statements of others, with the trace as `t`. Null for very many spans.
STORED = f"""
    CASE WHEN t.span_count <= {MOST_SPANS} THEN {_stored("t", _TRACE_VALUES)} + coalesce(
        (SELECT sum({_stored("s", _SPAN_VALUES)} + 100) FROM spans s WHERE s.trace_id = t.trace_id), 0
    ) END
"""
_TRACE_REST = "t.trace_id, t.project_id, t.status, t.started_at, t.ended_at, t.version"
_SPAN_REST = "s.trace_id, s.span_id, s.parent_span_id, s.started_at, s.ended_at, s.completion_start_time"
# A trace that does not fit sends nothing of what is long, and its spans are not asked for.
_TRACES = text(
    f"""
    SELECT {_TRACE_REST}, x.size, x.size <= :whole AND x.spans <= :spans AS fits,
        {", ".join(f"CASE WHEN x.size <= :whole THEN t.{c} END AS {c}" for c in _TRACE_VALUES)}
    FROM traces t CROSS JOIN LATERAL (
        SELECT count(*) AS spans, {_characters("t", _TRACE_VALUES)}
            + coalesce(sum({_characters("s", _SPAN_VALUES)}), 0) AS size
        FROM spans s WHERE s.trace_id = t.trace_id AND s.project_id = t.project_id
    ) x
    WHERE t.trace_id = ANY(CAST(:ids AS uuid[]))
    """
)
# Foreign keys look past row-level security: a span counts only where its trace is of the same project.
_SPANS = text(
    f"""
    SELECT {_SPAN_REST}, {", ".join(f"s.{c}" for c in _SPAN_VALUES)}
    FROM spans s JOIN traces t ON t.trace_id = s.trace_id AND t.project_id = s.project_id
    WHERE s.trace_id = ANY(CAST(:ids AS uuid[])) ORDER BY s.trace_id, s.started_at, s.position
    """
)
_PLACED = """
    placed AS MATERIALIZED (
        SELECT s.span_id, row_number() OVER (ORDER BY s.started_at, s.position) AS n, count(*) OVER () AS spans
        FROM spans s JOIN traces t ON t.trace_id = s.trace_id AND t.project_id = s.project_id WHERE s.trace_id = :id
    ),
    ends AS MATERIALIZED (SELECT span_id, n FROM placed WHERE n <= :half OR n > spans - :half)
"""
_CAP = text(
    f"""
    WITH {_PLACED}, lengths AS MATERIALIZED (
        SELECT v.n FROM spans s JOIN ends USING (span_id) CROSS JOIN LATERAL (
            VALUES {", ".join(f"(length(s.{c}::text))" for c in _SPAN_VALUES)}
        ) v (n) WHERE s.trace_id = :id
        UNION ALL
        SELECT v.n FROM traces t CROSS JOIN LATERAL (
            VALUES {", ".join(f"(length(t.{c}::text))" for c in _TRACE_VALUES)}
        ) v (n) WHERE t.trace_id = :id
    )
    SELECT cap FROM unnest(CAST(:caps AS int[])) AS k (cap)
    WHERE (SELECT sum(least(n, cap)) FROM lengths) <= :whole ORDER BY cap DESC LIMIT 1
    """
)
_BOUNDS = "(SELECT CAST(:cap AS int) AS cap, CAST(:head AS int) AS head, CAST(:tail AS int) AS tail) c"
_CUT_TRACE = text(
    f"""
    SELECT {_TRACE_REST}, {", ".join(_cut("t", c) for c in _TRACE_VALUES)}
    FROM traces t CROSS JOIN {_BOUNDS}
    CROSS JOIN LATERAL (SELECT {", ".join(_plain("t", c) for c in _TRACE_VALUES)} OFFSET 0) v
    WHERE t.trace_id = :id AND CAST(:half AS int) > 0
    """
)
_CUT_SPANS = text(
    f"""
    WITH {_PLACED}
    SELECT {_SPAN_REST}, {", ".join(_cut("s", c) for c in _SPAN_VALUES)}
    FROM spans s JOIN ends USING (span_id) CROSS JOIN {_BOUNDS}
    CROSS JOIN LATERAL (SELECT {", ".join(_plain("s", c) for c in _SPAN_VALUES)} OFFSET 0) v
    WHERE s.trace_id = :id ORDER BY ends.n
    """
)
_LEFT_OUT = text(
    f"""
    WITH {_PLACED}
    SELECT count(*) AS spans, encode(sha256(string_agg(sha256(convert_to(s::text, 'UTF8')), ''::bytea ORDER BY n)), 'hex')
        AS digest
    FROM spans s JOIN placed USING (span_id)
    WHERE s.trace_id = :id AND n > :half AND n <= placed.spans - :half
    """
)
