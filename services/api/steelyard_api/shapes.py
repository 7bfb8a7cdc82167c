"""The shapes of the HTTP contract: what is accepted and what is answered."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from steelyard.filters import Moment, SessionRunFilters, TraceFilters
from steelyard.metrics.sessions import HEAVIEST
from steelyard.traces import Span, SpanKind, SpanStatus, Trace, TraceStatus, milliseconds

T = TypeVar("T")
DEEPEST = 200
# Stands for an id of the reader's; no example makes a thing of this id, or the first who pastes it would own it.
EXAMPLE = "00000000-0000-0000-0000-000000000000"


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


When = Moment
Json = Annotated[Any, BeforeValidator(_shallow)]
Object = Annotated[dict[str, Any], BeforeValidator(_shallow)]
Name = Annotated[str, Field(min_length=1, max_length=512)]
Short = Annotated[str, Field(max_length=255)]
Cost = Annotated[dict[Short, Annotated[float, Field(strict=True, allow_inf_nan=False)]], Field(max_length=100)]
Tag = Annotated[str, Field(max_length=255)]
Tags = Annotated[list[Tag], Field(max_length=200)]


class Shape(BaseModel):
    """Of the contract. Fields that mean the same everywhere are explained in one place, WORDS."""

    model_config = ConfigDict(extra="ignore")

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        made = handler(core)
        for name, field in handler.resolve_ref_schema(made).get("properties", {}).items():
            if "description" not in field and name in WORDS:
                field["description"] = WORDS[name]
        return made


WORDS = {
    "add_tags": "put on each of the traces",
    "author_user_id": "who signed in and said so",
    "avg_score": "the average",
    "avg_traces_per_session": "the average of the sessions in the bucket",
    "bucket_min": "belongs to this bucket",
    "category": "trace",
    "completed_at": "when it ended; null before",
    "completion_start_time": "when the first token arrived",
    "completion_tokens": "tokens that models wrote",
    "config_id": "not used",
    "calls": "how often a model was asked",
    "cost": "in dollars: a total, or its parts",
    "input_tokens": "tokens that the model read",
    "output_tokens": "tokens that the model wrote",
    "count": "how many scores",
    "created_at": "when it was made",
    "data_type": "what kind of value it has",
    "date_from": "traces that started at this time or later",
    "date_to": "traces that started before this time",
    "description": "in one or two sentences",
    "detail": "a sentence",
    "ended_at": "when it ended; null while it goes on",
    "environment": "where the agent ran, e.g. production",
    "error": "what went wrong, in the agent's words",
    "error_message": "why it could not do its work, was stopped, or is paused",
    "eval_run_id": "the run it comes from",
    "field": "where it is, like spans.3.name, or the name of a parameter or header",
    "filters": "which traces",
    "first_seen": "start of the first trace",
    "id": "its id",
    "input": "any JSON: what was asked or given",
    "items": "this page",
    "key": "its short name",
    "kind": "what the step is",
    "last_seen": "start of the last trace",
    "latency_ms": "from start to end; null while it goes on",
    "latest_score_at": "when the newest was made",
    "limit": "the most items that a page was to have",
    "max_score": "the highest",
    "median_score": "the one in the middle",
    "message": "what is wrong with it",
    "metadata": "whatever the sender put there",
    "metric": "what it measures and how",
    "metric_name": "the metric's or score's name",
    "metric_names": "by what the traces are scored",
    "min_score": "the lowest",
    "model": "the model's name, as the agent gave it",
    "model_parameters": "e.g. temperature",
    "name": "its name",
    "offset": "how many items were skipped",
    "output": "any JSON: what was answered or found",
    "p50_latency_ms": "half of the traces were at most this slow",
    "p90_latency_ms": "nine of ten traces were at most this slow",
    "p99_latency_ms": "all but one of a hundred traces were at most this slow",
    "parent_span_id": "the span this one happened in",
    "project_id": "the project it belongs to",
    "prompt": "the text",
    "prompt_tokens": "tokens that models read",
    "reason": "why, in words",
    "release": "the agent's version",
    "remove_tags": "taken off each of the traces",
    "replaced_at": "when it was changed",
    "said_at": "when it was said",
    "sampling_rate": "the part of the matching traces that is scored",
    "session_count": "sessions that began in the bucket",
    "session_id": "the conversation it belongs to",
    "source": "who says so",
    "span_count": "how many steps it has",
    "span_id": "the span's id",
    "spans": "its steps, in the order they started",
    "stage": "extract or compare",
    "started_at": "when it began",
    "status": "how it stands",
    "success_count": "how many were scored",
    "tags": "words to find it by",
    "time_to_first_token_ms": "from the start to the first token",
    "token_usage": "e.g. prompt_tokens and completion_tokens",
    "total": "how many match in all",
    "total_cost": "in dollars, as the spans say",
    "total_span_count": "steps of all its traces",
    "total_tokens": "tokens that models read and wrote, as the spans say",
    "trace_count": "how many traces",
    "trace_id": "the trace's id",
    "traces": "a page of them",
    "updated_at": "when it was last changed",
    "user_id": "whom the agent worked for",
    "value": "as text",
}


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
    cost: Cost | None = Field(None, description="in dollars; `total`, or parts that are added up")

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "name": "answer",
                    "kind": "LLM",
                    "model": "gpt-5.4-mini",
                    "started_at": "2026-11-20T09:00:02Z",
                    "token_usage": {"prompt_tokens": 120, "completion_tokens": 30},
                }
            ]
        },
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
    tags: Tags = Field([], description="merged with what is there")
    environment: Short | None = Field(None, description="e.g. production")
    release: Short | None = Field(None, description="the agent's version")
    spans: list[SpanIn] = Field([], max_length=500, description="the agent's steps, in any order")

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "name": "find-train",
                    "session_id": "trip-1",
                    "started_at": "2026-11-20T09:00:00Z",
                    "ended_at": "2026-11-20T09:00:04Z",
                    "input": "Which train gets me to Lyon before noon?",
                    "output": "The 08:12 train reaches Lyon at 10:47, before noon.",
                    "spans": [
                        {
                            "name": "timetable",
                            "kind": "TOOL",
                            "started_at": "2026-11-20T09:00:01Z",
                            "input": {"to": "Lyon"},
                            "output": [{"leaves": "08:12", "arrives": "10:47"}],
                        }
                    ],
                }
            ]
        },
    )


class TracePatch(Shape):
    """Only the fields that are in the body are touched. null clears a field that may be empty; of `name` and `status`,
    which may not, it changes nothing."""

    name: Name | None = None
    status: TraceStatus | None = None
    input: Json = Field(None, description="replaces what is there")
    output: Json = Field(None, description="replaces what is there")
    metadata: Object | None = Field(None, description="merged with what is there, key by key at the top level")
    ended_at: When | None = None
    session_id: Short | None = Field(None, description="null takes the trace out of its session")
    user_id: Short | None = None
    tags: Tags | None = Field(None, description="replaces the tags; null removes all")
    environment: Short | None = None
    release: Short | None = None

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [{"status": "ERROR", "session_id": None}]})


class SpanPatch(Shape):
    """Only the fields that are in the body are touched. null clears a field that may be empty; of `name`, `kind` and
    `status`, which may not, it changes nothing."""

    name: Name | None = None
    kind: SpanKind | None = None
    status: SpanStatus | None = None
    input: Json = None
    output: Json = None
    model: Short | None = None
    token_usage: Object | None = Field(None, description="replaces what is there")
    metadata: Object | None = Field(None, description="merged with what is there")
    ended_at: When | None = None
    error: str | None = None
    completion_start_time: When | None = None
    model_parameters: Object | None = None
    cost: Cost | None = Field(None, description="replaces what is there")

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [{"status": "OK", "output": "3 flights"}]})


class TraceIds(Shape):
    trace_ids: list[UUID] = Field(
        min_length=1, max_length=500, description="ids that the project lacks are passed over"
    )

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [{"trace_ids": [EXAMPLE]}]})


class Retag(TraceIds):
    """A tag that is both added and removed is there afterwards."""

    add_tags: Tags = []
    remove_tags: Tags = []

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"examples": [{"trace_ids": [EXAMPLE], "add_tags": ["reviewed"], "remove_tags": ["new"]}]},
    )


class Deleted(Shape):
    deleted: int = Field(description="traces that were there and are gone, with their spans and scores")


class Updated(Shape):
    updated: int = Field(description="how many of the traces the project has; their tags are as asked now")


class SpansAccepted(Shape):
    span_ids: list[UUID] = Field(description="in the order of the request")


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
    total_tokens: int
    total_cost: float
    version: int = Field(description="moves with every change of the trace or of a span")
    spans: list[SpanOut]

    @classmethod
    def of(cls, trace: Trace, sums: Mapping[str, Any]) -> "TraceOut":
        fields = dict(trace) | dict(sums) | {"spans": [SpanOut.of(trace.trace_id, s) for s in trace.spans]}
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


class TraceBucket(Shape):
    """Traces that started in one hour, day or week (UTC; weeks begin on Monday)."""

    bucket: datetime = Field(description="when it begins")
    trace_count: int
    error_count: int = Field(description="traces with status ERROR")
    avg_latency_ms: float | None = Field(description="of the traces that ended; null where none did")
    p50_latency_ms: float | None
    p90_latency_ms: float | None
    p99_latency_ms: float | None


class UsageBucket(Shape):
    """What the traces that started in one hour, day or week used up, as their spans say."""

    bucket: datetime = Field(description="when it begins")
    total_tokens: int
    prompt_tokens: int
    completion_tokens: int
    total_cost: float = Field(description="in dollars")


class ModelUse(Shape):
    model: str
    call_count: int = Field(description="spans that name it")
    total_tokens: int
    total_cost: float = Field(description="in dollars")


class UserListed(Shape):
    user_id: str
    trace_count: int
    first_seen: datetime
    last_seen: datetime
    error_count: int = Field(description="traces with status ERROR")


class SessionListed(Shape):
    """What all traces of a session sum up to."""

    session_id: str
    trace_count: int
    first_trace_at: datetime = Field(description="when its first trace started")
    last_trace_at: datetime | None = Field(description="when its last trace started")
    total_latency_ms: float | None = Field(description="of all its traces together; null while none has ended")
    has_error: bool = Field(description="whether a trace has status ERROR")
    user_id: str | None = Field(description="of the last trace that names one")
    tags: list[str] = Field(description="of all its traces, sorted; the first 200")
    tag_count: int = Field(description="how many tags its traces have")
    total_span_count: int
    total_tokens: int
    total_cost: float = Field(description="in dollars")


class SessionOut(SessionListed):
    """The sums are of the whole session, `traces` is a page of it, in the order of the conversation."""

    traces: list[TraceOut]


class SessionBucket(Shape):
    """Sessions that began in one hour, day or week (UTC; weeks begin on Monday)."""

    bucket: datetime = Field(description="when it begins")
    session_count: int
    avg_traces_per_session: float | None
    avg_session_duration_ms: float | None = Field(description="from the first trace's start to the last end")


class SessionDeleted(Shape):
    deleted: int = Field(description="traces of the session that are gone, with their spans and scores")


RunName = Annotated[Name | None, Field(description="a label for people")]
Metrics = Annotated[
    list[Short], Field(min_length=1, max_length=100, description="names from GET /evaluations/trace-metrics")
]
Model = Annotated[
    Short | None,
    Field(
        description="the judge, e.g. openai/gpt-5.4-mini: letters, digits and . _ - : @ in parts between slashes; the "
        "deployment's default when left out"
    ),
]


MaxCost = Annotated[
    float | None,
    Field(
        strict=True,
        gt=0,
        le=1_000_000,
        allow_inf_nan=False,
        description="a hard limit in dollars: the run stops sending before it could be passed, finishes what is under way, and "
        "says of the rest that it was not scored for that",
    ),
]
UnknownPrice = Annotated[
    bool,
    Field(
        strict=True,
        description="start with max_cost_usd although nobody lists the model's price; what it costs then counts as nothing",
    ),
]
Reuse = Annotated[
    bool,
    Field(
        strict=True,
        description="take answers that other runs of the project paid for, where the same was asked of the same model",
    ),
]
Grouped = Annotated[
    bool | None,
    Field(
        strict=True,
        description="ask about several metrics in one call: cheaper, and another measurement; the deployment's way when left out",
    ),
]


AnyTags = Annotated[tuple[Tag, ...], Field(max_length=200)]


class RunFilters(TraceFilters):
    """Which traces a run means. As they are stored they have no bounds: a run may be older than these."""

    session_id: Short | None = Field(None, description="exactly this one")
    user_id: Short | None = Field(None, description="exactly this one")
    tags: AnyTags | None = Field(None, description="traces with any of these tags")
    name: Annotated[str, Field(max_length=512)] | None = Field(
        None, description="part of the trace's name, in any case"
    )


class SessionsFilters(SessionRunFilters):
    """Which sessions a run means; bounded as the filters of traces are."""

    user_id: Short | None = Field(None, description="sessions with a trace of exactly this user")
    tags: AnyTags | None = Field(None, description="sessions with a trace that has any of these tags")


class Limited(Shape):
    """What a run asks for beside what it means."""

    max_cost_usd: MaxCost = None
    allow_unknown_price: UnknownPrice = False
    grouped: Grouped = None


class RunIn(Limited):
    """Which traces by which metrics."""

    name: RunName = None
    metrics: Metrics
    filters: RunFilters = Field(RunFilters(), description="all traces of the project when left out")
    sampling_rate: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = Field(
        1.0, description="part of the matching traces: floor(n x rate), at least one"
    )
    model: Model = None
    reuse: Reuse = False

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {"name": "weekly", "metrics": ["task_completion", "coherence"], "filters": {"session_id": "trip-1"}}
            ]
        },
    )


class BatchRunIn(Limited):
    """These traces by these metrics."""

    trace_ids: list[UUID] = Field(
        min_length=1, max_length=10_000, description="each counts once, however often it stands here"
    )
    metrics: Metrics
    name: RunName = None
    model: Model = None
    reuse: Reuse = False

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"trace_ids": [EXAMPLE], "metrics": ["task_completion"]}]}
    )


SessionMetricNames = Annotated[
    list[Short], Field(min_length=1, max_length=100, description="names from GET /evaluations/session-metrics")
]
Weight = Annotated[float, Field(strict=True, ge=0, le=HEAVIEST, allow_inf_nan=False)]
Weights = Annotated[
    Annotated[dict[Short, Weight], Field(max_length=100)] | None,
    Field(description="how much each signal counts, by its name; a signal that is not named keeps its usual weight"),
]


class SessionRunIn(Limited):
    """Which sessions by which metrics."""

    name: RunName = None
    metrics: SessionMetricNames
    filters: SessionsFilters = Field(SessionsFilters(), description="all sessions of the project when left out")
    sampling_rate: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = Field(
        1.0, description="part of the matching sessions: floor(n x rate), at least one"
    )
    model: Model = None
    signal_weights: Weights = None

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "name": "how reliable",
                    "metrics": ["agent_reliability", "agent_consistency"],
                    "filters": {"min_trace_count": 1},
                    "signal_weights": {"loop_detection": 1.5},
                }
            ]
        },
    )


class BatchSessionRunIn(Limited):
    """These sessions by these metrics."""

    session_ids: list[Short] = Field(
        min_length=1, max_length=10_000, description="each counts once, however often it stands here"
    )
    metrics: SessionMetricNames
    name: RunName = None
    model: Model = None
    signal_weights: Weights = None

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"session_ids": ["trip-1"], "metrics": ["agent_reliability"]}]}
    )


class RunStatus(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class RunOut(Shape):
    """A run and how far it is. What it scores are traces, or sessions where `target_type` says so; `evaluated_count`
    counts those of them all of whose metrics are settled."""

    id: UUID
    name: str | None
    status: RunStatus = Field(
        description="PENDING until its pairs are written, RUNNING, COMPLETED when every pair is settled, also if some were "
        "not scored; FAILED when it could not do its work at all, with `error_message`"
    )
    metric_names: list[str]
    total_traces: int = Field(description="traces that the run means, or sessions")
    total_targets: int = Field(description="the same number as total_traces")
    evaluated_count: int = Field(description="traces or sessions all of whose metrics are settled")
    failed_count: int = Field(description="trace+metric or session+metric pairs that were not scored")
    created_at: datetime
    completed_at: datetime | None
    project_id: UUID
    target_type: str = Field(description="TRACE or SESSION")
    filters: dict[str, Any] = Field(
        description="as they were asked for; of a run of sessions with the weights of all signals in `signal_weights`, where "
        "some were given"
    )
    sampling_rate: float
    model: str | None = Field(description="the judge that was asked for, null for the default")
    judge_model: str = Field(description="the judge that scores")
    monitor_id: UUID | None = Field(description="the monitor that made it")
    parent_run_id: UUID | None = Field(description="the run whose failures it retries")
    max_cost_usd: float | None = Field(description="the limit it was given, in dollars")
    reuse: bool = Field(description="whether it takes answers that other runs paid for")
    grouped: bool | None = Field(
        description="whether it asks about several metrics at once; null for the deployment's way"
    )
    error_message: str | None
    paused_until: datetime | None = Field(
        description="of a run that is paused because its judge's quota is exhausted: when one pair is tried again; null "
        "where it is not paused, and while it is being tried"
    )


class Spent(Shape):
    """What calls to a model cost, failed ones included."""

    metric: str = Field(description="for which metric")
    model: str = Field(description="the model that was asked")
    calls: int
    failed_calls: int = Field(description="calls that brought no usable answer")
    input_tokens: int
    output_tokens: int
    cached_tokens: int = Field(description="of the input, read again from the provider's cache")
    cost_usd: float = Field(description="of the calls whose price is known")
    unpriced_calls: int = Field(description="calls to a model whose price nobody lists")
    avg_seconds: float = Field(description="how long a call took")


class UsageOut(Shape):
    """What was spent, in all and by metric and model."""

    calls: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int = Field(description="of the input, read again from the provider's cache")
    cost_usd: float = Field(description="of the calls whose price is known")
    unpriced_calls: int = Field(description="calls to a model whose price nobody lists")
    max_cost_usd: float | None = Field(None, description="the run's limit")
    by_metric: list[Spent] = Field(description="the same by metric and model")


class EstimateOut(Shape):
    """What a run would mean and take, without asking anyone. Tokens are estimated from the newest matching traces."""

    total_targets: int = Field(description="traces, or sessions")
    pairs: int = Field(description="traces times metrics; of sessions, their traces times signals")
    judge_model: str = Field(description="the judge that would score")
    calls: int = Field(description="to the model, when nothing has to be asked twice")
    input_tokens: int
    output_tokens: int
    cost_usd: float | None = Field(description="null where nobody lists the model's price")
    seconds: float = Field(description="with one judge process, by how long the latest calls took")


class ScoreSource(StrEnum):
    AUTOMATED = "AUTOMATED"
    ANNOTATION = "ANNOTATION"
    PROGRAMMATIC = "PROGRAMMATIC"


class GivenSource(StrEnum):
    """AUTOMATED is what judges say, and nobody else."""

    ANNOTATION = "ANNOTATION"
    PROGRAMMATIC = "PROGRAMMATIC"


class ScoreStatus(StrEnum):
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    PENDING = "PENDING"


class ScoreType(StrEnum):
    NUMERIC = "NUMERIC"
    BOOLEAN = "BOOLEAN"
    CATEGORICAL = "CATEGORICAL"


Value = Annotated[
    str | bool | int | float,
    Field(
        description='NUMERIC: a number from 0 to 1, like "0.85"; BOOLEAN: "true" or "false"; CATEGORICAL: a word of at most '
        "255 characters, like PASS. Numbers and booleans of JSON are understood too."
    ),
]
Reason = Annotated[str | None, Field(max_length=20_000, description="why, in words")]


class ScoreIn(Shape):
    """A score by a person (ANNOTATION) or by a program (PROGRAMMATIC)."""

    trace_id: UUID
    name: str = Field(min_length=1, max_length=255, description="a metric's name or a label of yours")
    value: Value
    data_type: ScoreType = ScoreType.NUMERIC
    source: GivenSource = GivenSource.ANNOTATION
    reason: Reason = None
    metadata: Object = Field({}, description="whatever belongs to it")

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "trace_id": EXAMPLE,
                    "name": "quality",
                    "value": "0.9",
                    "source": "PROGRAMMATIC",
                    "reason": "the booking exists",
                }
            ]
        },
    )


class ScorePatch(Shape):
    """What is not in the body stays as it is."""

    value: Value | None = None
    reason: Reason = None
    metadata: Object | None = Field(None, description="replaces what is there")

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"value": "0.95", "reason": "checked by hand"}]}
    )


class ScoreOut(Shape):
    """One score. `value` is text, and null with a reason where there is none."""

    id: UUID
    trace_id: UUID
    name: str
    value: str | None
    status: ScoreStatus = Field(
        description="SUCCESS; FAILED: not scored, and `reason` says why; PENDING: parked until its trace arrives"
    )
    source: ScoreSource = Field(description="AUTOMATED: a judge; ANNOTATION: a person; PROGRAMMATIC: a program")
    created_at: datetime
    project_id: UUID
    data_type: ScoreType
    eval_run_id: UUID | None = Field(description="the run it comes from; null for others, and when its run was deleted")
    author_user_id: str | None = Field(description="who signed in and said so")
    reason: str | None
    environment: str | None = Field(description="the trace's")
    config_id: str | None
    metadata: dict[str, Any] = Field(description="a judge's: its model, version, tokens and what it saw")
    trace_version: int | None = Field(description="which version of the trace was scored")
    updated_at: datetime


class ScoreBefore(Shape):
    """What a score said before it was changed."""

    value: str | None
    data_type: ScoreType
    source: ScoreSource
    status: ScoreStatus
    reason: str | None
    author_user_id: str | None
    eval_run_id: UUID | None
    metadata: dict[str, Any]
    said_at: datetime
    replaced_at: datetime


class SessionScoreOut(Shape):
    """One score of a session. `value` is text, and null with a reason where there is none."""

    id: UUID
    session_id: str
    project_id: UUID
    name: str
    data_type: ScoreType
    value: str | None
    source: ScoreSource = Field(description="AUTOMATED: folded from the signals of the session's traces")
    status: ScoreStatus = Field(description="SUCCESS; FAILED: not scored, and `reason` says why")
    eval_run_id: UUID | None = Field(description="the run it comes from; null when that was deleted")
    author_user_id: str | None
    reason: str | None
    metadata: dict[str, Any] = Field(
        description="the weights, what each trace's signals were, and how they were folded"
    )
    created_at: datetime
    updated_at: datetime
    session_version: str | None = Field(
        description="the same as long as the session's traces are the same and unchanged"
    )
    traces_seen: int = Field(description="how many traces the session had for this score")
    snapshot_at: datetime = Field(description="as of when the session was looked at")


class SessionScoreBefore(Shape):
    """What a metric said of the session in one run."""

    metric_name: str
    score: float | None = Field(description="null where it was not scored")
    eval_run_id: UUID | None = Field(description="the run it comes from; null when that was deleted")
    created_at: datetime | None
    status: ScoreStatus
    session_version: str | None = Field(description="changes when the session's traces do")
    traces_seen: int = Field(description="how many traces the session had")
    snapshot_at: datetime = Field(description="as of when the session was looked at")


class SessionCompared(Shape):
    """A session at its place among the others."""

    session_id: str
    score: float | None = Field(description="the newest value that the metric has for it")
    evaluated_at: datetime | None = Field(description="when that was made")
    eval_run_id: UUID | None = Field(description="the run it comes from; null when that was deleted")
    trace_count: int = Field(description="how many traces the session has now")
    last_trace_at: datetime = Field(description="when its last trace started")
    session_version: str | None = Field(description="what the session was when it was scored")
    worst_trace: str | None = Field(description="the id of the trace that counted most against it")


class ScoreSummary(Shape):
    """One metric's scores. Averages are of NUMERIC and BOOLEAN ones (true is 1); CATEGORICAL ones are only counted."""

    metric_name: str
    avg_score: float | None
    min_score: float | None
    max_score: float | None
    median_score: float | None
    success_count: int
    failed_count: int = Field(description="pairs that were not scored")
    latest_score_at: datetime | None


class ScoreTrend(Shape):
    bucket: datetime = Field(description="when the hour, day or week begins, in UTC; weeks begin on Monday")
    metric_name: str
    avg_score: float
    count: int = Field(description="scores with a number in it")


class ScoreBucket(Shape):
    bucket: int = Field(description="1 is the lowest")
    bucket_min: float
    bucket_max: float = Field(description="belongs to the next bucket; 1.0 to the last one")
    count: int


class Preview(Shape):
    stage: str
    prompt: str


class MetricOut(Shape):
    """What a metric measures and how."""

    name: str
    description: str
    category: str = Field(description="trace")
    default_threshold: float = Field(description="a score at or above it is a success")
    prompt_preview: list[Preview] = Field(description="what a judge is asked, stage by stage")


class SessionMetricOut(MetricOut):
    """What a metric of sessions measures. It asks no judge itself: it folds signals of the session's traces."""

    category: str = Field(description="session")
    signal_weights: dict[str, float] = Field(description="the signals that it folds, with their usual weights")


class FiltersOut(Shape):
    date_from: datetime | None = None
    date_to: datetime | None = None
    status: TraceStatus | None = None
    session_id: str | None = None
    user_id: str | None = None
    tags: list[str] | None = None
    name: str | None = None


class RunTemplate(Shape):
    """A form for a run by one metric, filled in with what is used when nothing is said."""

    metric: MetricOut
    filters: FiltersOut
    sampling_rate: float
    model: str | None = Field(description="the deployment's judge")


class ProviderOut(Shape):
    key: str
    name: str
    description: str
    available: bool = Field(description="whether this deployment can use it")
    message: str = Field(description="which model is the default, or what is missing")


class FieldError(Shape):
    field: str
    message: str


class Failure(Shape):
    """Why a request was refused."""

    detail: str
    errors: list[FieldError] = Field([], description="one for each field that it is about")
