"""Small traces of several kinds of agents for the tests of this folder: told by their steps."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from steelyard.metrics.judging import Case
from steelyard.traces import Span, SpanKind, SpanStatus, Trace, TraceStatus

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)
SPACE = UUID(int=7)


def span(n: int, kind: SpanKind, name: str, asked: Any = None, said: Any = None, error: str | None = None) -> Span:
    began = BEGAN + timedelta(seconds=n)
    return Span(
        span_id=uuid5(SPACE, str(n)),
        name=name,
        kind=kind,
        status=SpanStatus.ERROR if error else SpanStatus.OK,
        input=asked,
        output=said,
        error=error,
        started_at=began,
        ended_at=began + timedelta(milliseconds=250),
    )


def tools(*calls: tuple[str, Any, Any] | tuple[str, Any, Any, str]) -> tuple[Span, ...]:
    """(name, arguments, result) or, of a call that failed, (name, arguments, result, error)."""
    return tuple(span(n, SpanKind.TOOL, *call) for n, call in enumerate(calls))


def trace(asked: Any, said: Any, spans: tuple[Span, ...] = (), failed: bool = False) -> Trace:
    return Trace(
        trace_id=UUID(int=1),
        project_id=UUID(int=2),
        name="agent",
        status=TraceStatus.ERROR if failed else TraceStatus.COMPLETED,
        input=asked,
        output=said,
        started_at=BEGAN,
        ended_at=BEGAN + timedelta(seconds=9),
        spans=spans,
    )


def case(asked: Any, said: Any, spans: tuple[Span, ...] = (), failed: bool = False) -> Case:
    return Case(trace(asked, said, spans, failed), boundary="record-b0a7", nonce="n0nce")
