"""What a judge would be asked, without a trace: the first words of each stage, for people who choose metrics."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from steelyard.metrics.judging import Case, Embed, Embedded, Metric, Question
from steelyard.metrics.rules import rule
from steelyard.traces import Span, SpanKind, Trace

_WHEN = datetime(2026, 1, 1, tzinfo=UTC)
# With a tool and a plan: without them, some metrics would have nothing to ask.
_SAMPLE = Trace(
    trace_id=UUID(int=0),
    project_id=UUID(int=0),
    name="your trace",
    input="what the user asked",
    output="what the agent answered",
    started_at=_WHEN,
    spans=(
        Span(
            span_id=UUID(int=1),
            name="a model",
            kind=SpanKind.LLM,
            input={"tools": [{"name": "a tool", "description": "what it does"}]},
            output="Plan:\n1. what the agent does first\n2. what it does then",
            started_at=_WHEN,
        ),
        Span(
            span_id=UUID(int=2),
            name="a tool",
            kind=SpanKind.TOOL,
            input={"an": "argument"},
            output="its result",
            started_at=_WHEN,
        ),
    ),
)


def previews(metric: Metric) -> list[tuple[str, str]]:
    """The real prompts of a sample trace: the conversation itself is asked, so they cannot go stale."""
    case, stages = Case(_SAMPLE), list[tuple[str, str]]()
    talk, answer = metric.judging(case), None
    while True:
        try:
            asked: Question | Embed = talk.send(answer)
        except StopIteration:
            return stages
        if isinstance(asked, Question):
            stages.append((asked.stage, f"{asked.system}\n\n{asked.prompt}"))
        answer = _sample_answer(asked)


def _sample_answer(asked: Question | Embed) -> Any:
    if isinstance(asked, Embed):
        return Embedded(tuple((1.0, 0.0) for _ in asked.texts), "sample")
    ruling = rule(asked.case, asked.reply)
    return ruling.reply if ruling else None
