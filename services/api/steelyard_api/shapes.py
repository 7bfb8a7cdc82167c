"""The shapes of the HTTP contract: what is accepted and what is answered."""

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from steelyard.filters import TraceFilters
from steelyard.traces import Span, SpanKind, SpanStatus, Trace, TraceStatus, milliseconds

T = TypeVar("T")
DEEPEST = 200


def _in_utc(when: datetime) -> datetime:
    """A time without a zone is UTC. Moving one at the calendar's edge would leave the calendar."""
    try:
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except OverflowError as e:
        raise ValueError("a time between the years 1 and 9999, in UTC too") from e


def _shallow(value: Any) -> Any:
    """Level by level, without recursion: a deep value must not be the one to find the interpreter's limit."""
    level, depth = [value], 0
    while level:
        if (depth := depth + 1) > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        level = [
            child for v in level if isinstance(v, dict | list) for child in (v.values() if isinstance(v, dict) else v)
        ]
    return value


When = Annotated[datetime, AfterValidator(_in_utc)]
Json = Annotated[Any, BeforeValidator(_shallow)]
Object = Annotated[dict[str, Any], BeforeValidator(_shallow)]
Name = Annotated[str, Field(min_length=1, max_length=512)]
Short = Annotated[str, Field(max_length=255)]


class Shape(BaseModel):
    model_config = ConfigDict(extra="ignore")


class SpanIn(Shape):
    """One step of the agent. The same id again updates the span."""

    span_id: UUID | None = Field(None, description="yours, or ours when it is left out")
    parent_span_id: UUID | None = Field(None, description="the span this one happened in")
    name: Name
    kind: SpanKind | None = Field(None, description="OTHER when left out")
    status: SpanStatus | None = Field(None, description="UNSET when left out")
    input: Json = Field(None, description="any JSON: messages, arguments, a query")
    output: Json = Field(None, description="any JSON: a reply, a result, documents")
    model: Short | None = Field(None, description="the model that was asked, for LLM and EMBEDDING spans")
    token_usage: Object | None = Field(None, description="e.g. prompt_tokens and completion_tokens")
    metadata: Object = Field({}, description="merged with what is there")
    started_at: When
    ended_at: When | None = None
    error: str | None = Field(None, description="what went wrong, in the agent's words")
    completion_start_time: When | None = Field(None, description="when the first token arrived")
    model_parameters: Object | None = None
    cost: dict[str, Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None, description="in dollars; total, or parts that are added up"
    )


class TraceIn(Shape):
    """One run of an agent. The same id again updates the trace: what is not sent stays, metadata and tags merge."""

    trace_id: UUID | None = Field(None, description="yours, or ours when it is left out")
    name: Name
    status: TraceStatus | None = Field(None, description="COMPLETED when left out")
    input: Json = Field(None, description="what the agent was asked")
    output: Json = Field(None, description="what it answered")
    metadata: Object = Field({}, description="merged with what is there")
    started_at: When
    ended_at: When | None = None
    session_id: Short | None = Field(None, description="traces of one conversation share it")
    user_id: Short | None = None
    tags: list[str] = Field([], max_length=200)
    environment: Short | None = Field(None, description="e.g. production")
    release: Short | None = Field(None, description="the agent's version")
    spans: list[SpanIn] = Field([], max_length=500)


class TraceAccepted(Shape):
    """The trace is stored: the next request sees it."""

    trace_id: UUID
    task_id: str = Field(description="the id of this request, as in X-Request-ID")


class SpanOut(Shape):
    span_id: UUID
    trace_id: UUID
    parent_span_id: UUID | None
    name: str
    kind: SpanKind
    status: SpanStatus
    input: Any
    output: Any
    model: str | None
    token_usage: dict[str, Any] | None
    metadata: dict[str, Any]
    started_at: datetime
    ended_at: datetime | None
    error: str | None
    completion_start_time: datetime | None
    model_parameters: dict[str, Any] | None
    cost: dict[str, float] | None
    latency_ms: float | None
    time_to_first_token_ms: float | None

    @classmethod
    def of(cls, trace_id: UUID, span: Span) -> "SpanOut":
        return cls(
            trace_id=trace_id,
            latency_ms=milliseconds(span.started_at, span.ended_at),
            time_to_first_token_ms=milliseconds(span.started_at, span.completion_start_time),
            **dict(span),
        )


class TraceOut(Shape):
    """A trace with its spans in the order they started."""

    trace_id: UUID
    project_id: UUID
    name: str
    status: TraceStatus
    input: Any
    output: Any
    metadata: dict[str, Any]
    started_at: datetime
    ended_at: datetime | None
    session_id: str | None
    user_id: str | None
    tags: list[str]
    environment: str | None
    release: str | None
    spans: list[SpanOut]

    @classmethod
    def of(cls, trace: Trace) -> "TraceOut":
        fields = dict(trace) | {"spans": [SpanOut.of(trace.trace_id, s) for s in trace.spans]}
        return cls(**fields)


class TraceListed(Shape):
    """A trace at a glance: what its spans sum up to, without them."""

    trace_id: UUID
    name: str
    status: TraceStatus
    started_at: datetime
    ended_at: datetime | None
    session_id: str | None
    user_id: str | None
    tags: list[str]
    environment: str | None
    release: str | None
    latency_ms: float | None
    span_count: int
    total_tokens: int
    total_cost: float


class Page(Shape, Generic[T]):
    """`total` counts everything that matches, `items` is this page of it."""

    items: list[T]
    total: int
    limit: int
    offset: int


class RunIn(Shape):
    """Which traces by which metrics."""

    name: Name | None = None
    metrics: list[str] = Field(min_length=1, max_length=100, description="names from GET /evaluations/trace-metrics")
    filters: TraceFilters = Field(TraceFilters(), description="all traces of the project when left out")
    sampling_rate: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        1.0, description="part of the matching traces: floor(n x rate), at least one"
    )
    model: Short | None = Field(None, description="the judge; the deployment's default when left out")


class RunOut(Shape):
    """A run and how far it is. `evaluated_count` counts traces all of whose metrics are settled."""

    id: UUID
    name: str | None
    status: str = Field(description="PENDING, RUNNING, COMPLETED or FAILED")
    metric_names: list[str]
    total_traces: int
    total_targets: int = Field(description="the same number as total_traces")
    evaluated_count: int
    failed_count: int = Field(description="trace+metric pairs that were not scored")
    created_at: datetime
    completed_at: datetime | None
    project_id: UUID
    target_type: str
    filters: dict[str, Any]
    sampling_rate: float
    model: str | None = Field(description="the judge that was asked for, null for the default")
    judge_model: str = Field(description="the judge that scores")
    monitor_id: UUID | None
    error_message: str | None


class ScoreOut(Shape):
    """One score. `value` is text, and null with a reason where there is none."""

    id: UUID
    trace_id: UUID
    name: str
    value: str | None
    status: str = Field(description="SUCCESS, FAILED or PENDING")
    source: str = Field(description="AUTOMATED, ANNOTATION or PROGRAMMATIC")
    created_at: datetime
    project_id: UUID
    data_type: str = Field(description="NUMERIC, BOOLEAN or CATEGORICAL")
    eval_run_id: UUID | None
    author_user_id: str | None
    reason: str | None
    environment: str | None
    config_id: str | None
    metadata: dict[str, Any]
    updated_at: datetime


class Preview(Shape):
    stage: str
    prompt: str


class MetricOut(Shape):
    """What a metric measures and how."""

    name: str
    description: str
    category: str
    default_threshold: float = Field(description="a score at or above it is a success")
    prompt_preview: list[Preview] = Field(description="what a judge is asked, stage by stage")


class FieldError(Shape):
    field: str
    message: str


class Failure(Shape):
    """Why a request was refused."""

    detail: str
    errors: list[FieldError] | None = None
