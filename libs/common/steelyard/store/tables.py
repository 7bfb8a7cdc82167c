"""The tables. Rows are written by the verbs beside this file; migrations/ brings a database here."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Computed,
    DateTime,
    Float,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import UserDefinedType
from sqlmodel import Field, SQLModel


class Xid8(UserDefinedType[str]):
    """Postgres' 64-bit transaction id: with a run's snapshot it tells what the run's count had seen."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "XID8"


def _when(nullable: bool = False, now: bool = False) -> Any:
    default = func.now() if now else None
    return Field(sa_column=Column(DateTime(timezone=True), nullable=nullable, server_default=default))


def _text(nullable: bool = False, default: str | None = None, **more: Any) -> Any:
    server = text(f"'{default}'") if default is not None else None
    return Field(sa_column=Column(Text, nullable=nullable, server_default=server, **more))


def _json(nullable: bool = True) -> Any:
    """`json`, not `jsonb`: what a user sent comes back as it was, key order included."""
    return Field(sa_column=Column(JSON, nullable=nullable))


def _object() -> Any:
    return Field(sa_column=Column(JSONB, nullable=False, server_default=text("'{}'")))


def _count(default: int = 0, large: bool = False) -> Any:
    kind = BigInteger if large else Integer
    return Field(sa_column=Column(kind, nullable=False, server_default=text(str(default))))


def _sum() -> Any:
    return Field(sa_column=Column(Float, nullable=False, server_default=text("0")))


NUMBER = """CASE WHEN status = 'SUCCESS' THEN
    CASE data_type WHEN 'NUMERIC' THEN value::float8 WHEN 'BOOLEAN' THEN (value = 'true')::int::float8 END
END"""


class Organization(SQLModel, table=True):
    __tablename__ = "organizations"

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    name: str = _text(unique=True)
    external_id: str | None = _text(nullable=True, unique=True)
    created_at: datetime = _when(now=True)


class Project(SQLModel, table=True):
    __tablename__ = "projects"
    __table_args__ = (UniqueConstraint("org_id", "name"),)

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    org_id: UUID = Field(foreign_key="organizations.id", ondelete="CASCADE")
    name: str = _text()
    description: str = _text(default="")
    created_at: datetime = _when(now=True)


class ApiKey(SQLModel, table=True):
    """Of a key only its hash is kept; `prefix` lets its owner recognise it."""

    __tablename__ = "api_keys"

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    org_id: UUID = Field(foreign_key="organizations.id", ondelete="CASCADE")
    name: str = _text()
    prefix: str = _text()
    hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False, unique=True))
    created_at: datetime = _when(now=True)
    expires_at: datetime | None = _when(nullable=True)
    revoked_at: datetime | None = _when(nullable=True)


class KeyUsage(SQLModel, table=True):
    """How much of the minute's limit API processes have taken for a caller; lost in a crash, which costs nothing."""

    __tablename__ = "key_usage"
    __table_args__ = {"prefixes": ["UNLOGGED"]}

    caller: str = Field(sa_column=Column(Text, primary_key=True))
    window_start: datetime = _when()
    taken: int = Field(sa_column=Column(Integer, nullable=False))


class RateLimit(SQLModel, table=True):
    """When a project last did something that is limited: exact over any number of API processes."""

    __tablename__ = "rate_limits"

    project_id: UUID = Field(primary_key=True, foreign_key="projects.id", ondelete="CASCADE")
    scope: str = Field(sa_column=Column(Text, primary_key=True))
    times: list[datetime] = Field(sa_column=Column(ARRAY(DateTime(timezone=True)), nullable=False))


class IdempotencyKey(SQLModel, table=True):
    """The answer to a creating request, written in its transaction: the same request again is answered with it."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("idempotency_keys_old", "created_at"),)

    project_id: UUID = Field(primary_key=True, foreign_key="projects.id", ondelete="CASCADE")
    scope: str = Field(sa_column=Column(Text, primary_key=True))
    key: str = Field(sa_column=Column(Text, primary_key=True))
    request_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    status: int = Field(sa_column=Column(Integer, nullable=False))
    response: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime = _when(now=True)


class TraceRow(SQLModel, table=True):
    """`version` moves with every write to the trace or to one of its spans; `created_xid` never. The sums over its
    spans are kept here, so that lists and trends read no JSON."""

    __tablename__ = "traces"
    __table_args__ = (
        Index(
            "traces_newest",
            "project_id",
            text("started_at DESC"),
            "trace_id",
            postgresql_include=["status", "ended_at"],
        ),
        Index("traces_name", "project_id", "name", "trace_id"),
        Index(
            "traces_user",
            "project_id",
            "user_id",
            "started_at",
            postgresql_where=text("user_id IS NOT NULL"),
            postgresql_include=["status"],
        ),
        Index(
            "traces_session", "project_id", "session_id", "started_at", postgresql_where=text("session_id IS NOT NULL")
        ),
    )

    trace_id: UUID = Field(primary_key=True)
    project_id: UUID = Field(foreign_key="projects.id", ondelete="CASCADE")
    name: str = _text()
    status: str = _text()
    input: Any = _json()
    output: Any = _json()
    attributes: dict[str, Any] = Field(sa_column=Column("metadata", JSONB, nullable=False, server_default=text("'{}'")))
    started_at: datetime = _when()
    ended_at: datetime | None = _when(nullable=True)
    session_id: str | None = _text(nullable=True)
    user_id: str | None = _text(nullable=True)
    tags: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False, server_default=text("'{}'")))
    environment: str | None = _text(nullable=True)
    release: str | None = _text(nullable=True)
    span_count: int = _count()
    prompt_tokens: int = _count(large=True)
    completion_tokens: int = _count(large=True)
    total_tokens: int = _count(large=True)
    total_cost: float = _sum()
    version: int = _count(1)
    ingested_at: datetime = _when(now=True)
    created_xid: Any = Field(sa_column=Column(Xid8, nullable=False, server_default=text("pg_current_xact_id()")))


class TraceTag(SQLModel, table=True):
    """A trace's tags as rows, kept up by triggers on `traces`: an index leads to them under row-level security too."""

    __tablename__ = "trace_tags"

    project_id: UUID = Field(primary_key=True, foreign_key="projects.id", ondelete="CASCADE")
    tag: str = Field(sa_column=Column(Text, primary_key=True))
    started_at: datetime = Field(sa_column=Column(DateTime(timezone=True), primary_key=True))
    trace_id: UUID = Field(primary_key=True)


class SpanRow(SQLModel, table=True):
    """`position` keeps the order of arrival where spans start at the same moment. Tokens and cost are read out of
    `token_usage` and `cost` when they arrive."""

    __tablename__ = "spans"
    __table_args__ = (
        Index(
            "spans_models",
            "project_id",
            "started_at",
            postgresql_where=text("model IS NOT NULL"),
            postgresql_include=["model", "total_tokens", "total_cost"],
        ),
    )

    trace_id: UUID = Field(primary_key=True, foreign_key="traces.trace_id", ondelete="CASCADE")
    span_id: UUID = Field(primary_key=True)
    project_id: UUID = Field(nullable=False)
    parent_span_id: UUID | None = None
    position: int = _count()
    name: str = _text()
    kind: str = _text()
    status: str = _text()
    input: Any = _json()
    output: Any = _json()
    model: str | None = _text(nullable=True)
    token_usage: Any = _json()
    attributes: dict[str, Any] = Field(sa_column=Column("metadata", JSONB, nullable=False, server_default=text("'{}'")))
    started_at: datetime = _when()
    ended_at: datetime | None = _when(nullable=True)
    error: str | None = _text(nullable=True)
    completion_start_time: datetime | None = _when(nullable=True)
    model_parameters: Any = _json()
    cost: Any = _json()
    prompt_tokens: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    completion_tokens: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    total_tokens: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    total_cost: float | None = None


class Session(SQLModel, table=True):
    """A view of traces that triggers on `traces` keep up: see the migrations that make them. `tags` are the first 200 of
    `tag_count`."""

    __tablename__ = "sessions"
    __table_args__ = (Index("sessions_recent", "project_id", text("last_trace_at DESC"), "session_id"),)

    project_id: UUID = Field(primary_key=True, foreign_key="projects.id", ondelete="CASCADE")
    session_id: str = Field(sa_column=Column(Text, primary_key=True))
    trace_count: int = Field(sa_column=Column(Integer, nullable=False))
    error_count: int = Field(sa_column=Column(Integer, nullable=False))
    first_trace_at: datetime = _when()
    last_trace_at: datetime = _when()
    ended_at: datetime = _when()
    latency_ms: float | None = None
    span_count: int = Field(sa_column=Column(BigInteger, nullable=False))
    total_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    total_cost: float = Field(sa_column=Column(Float, nullable=False))
    user_id: str | None = _text(nullable=True)
    tags: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    tag_count: int | None = None


class SessionTag(SQLModel, table=True):
    """Of how many of the session's traces a tag is; kept up by the same triggers, under the session's lock."""

    __tablename__ = "session_tags"
    __table_args__ = (Index("session_tags_tag", "project_id", "tag", "session_id"),)

    project_id: UUID = Field(primary_key=True, foreign_key="projects.id", ondelete="CASCADE")
    session_id: str = Field(sa_column=Column(Text, primary_key=True))
    tag: str = Field(sa_column=Column(Text, primary_key=True))
    n: int = Field(sa_column=Column(Integer, nullable=False))


class Run(SQLModel, table=True):
    """`left` is targets not yet evaluated plus the hold that RunExpanded releases; at zero the run is finished.

    A deleted run is hidden at once (`deleted_at`); its rows are swept later, in pages."""

    __tablename__ = "runs"
    __table_args__ = (
        Index("runs_newest", "project_id", text("created_at DESC"), "id"),
        Index("runs_unfinished", "created_at", postgresql_where=text("status IN ('PENDING', 'RUNNING')")),
        Index("runs_deleted", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
        Index("runs_children", "parent_run_id", postgresql_where=text("parent_run_id IS NOT NULL")),
    )

    id: UUID = Field(primary_key=True)
    project_id: UUID = Field(foreign_key="projects.id", ondelete="CASCADE")
    name: str | None = _text(nullable=True)
    target_type: str = _text(default="TRACE")
    status: str = _text(default="PENDING")
    metric_names: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False))
    filters: dict[str, Any] = _object()
    sampling_rate: float = Field(sa_column=Column(Float, nullable=False, server_default=text("1")))
    model: str | None = _text(nullable=True)
    judge_model: str = _text()
    monitor_id: UUID | None = None
    parent_run_id: UUID | None = None
    root_run_id: UUID | None = None
    max_cost_usd: float | None = None
    pair_cost_usd: float | None = None
    reuse: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    grouped: bool | None = None
    error_message: str | None = _text(nullable=True)
    stopping: str | None = _text(nullable=True)
    paused_why: str | None = _text(nullable=True)
    paused_until: datetime | None = _when(nullable=True)
    total_targets: int = _count()
    evaluated_count: int = _count()
    failed_count: int = _count()
    settled_count: int = _count()
    pairs_written: int = _count()
    left: int = _count(1)
    held: bool = Field(default=True, sa_column_kwargs={"server_default": text("true")})
    snapshot: str = _text()
    targets_written: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    expanded: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    cursor: str | None = _text(nullable=True)
    expansion_failures: int = _count()
    expand_after: datetime | None = _when(nullable=True)
    created_at: datetime = _when(now=True)
    completed_at: datetime | None = _when(nullable=True)
    deleted_at: datetime | None = _when(nullable=True)


class Target(SQLModel, table=True):
    """A trace or a session of a run; `left` counts its pairs that are not settled. Of a session: `size` is how many
    traces it had, `metrics` what a retry asks of it (all of the run's, where it is null), `failed_metrics` what came of
    it."""

    __tablename__ = "targets"

    run_id: UUID = Field(primary_key=True, foreign_key="runs.id", ondelete="CASCADE")
    target: str = Field(sa_column=Column(Text, primary_key=True))
    project_id: UUID = Field(nullable=False)
    left: int = _count()
    size: int = _count()
    metrics: list[str] | None = Field(default=None, sa_column=Column(ARRAY(Text), nullable=True))
    failed_metrics: list[str] | None = Field(default=None, sa_column=Column(ARRAY(Text), nullable=True))


class Fold(SQLModel, table=True):
    """A session of a run of which nothing is owed any more, until it is folded."""

    __tablename__ = "folds"
    __table_args__ = (Index("folds_waiting", "since"),)

    run_id: UUID = Field(primary_key=True, foreign_key="runs.id", ondelete="CASCADE")
    target: str = Field(sa_column=Column(Text, primary_key=True))
    project_id: UUID = Field(nullable=False)
    size: int = Field(sa_column=Column(Integer, nullable=False))
    since: datetime = _when(now=True)


class Pair(SQLModel, table=True):
    """One trace by one metric: owed, dispatched, settled, each exactly once. In a run of sessions `place` is the
    trace's place in its session, from 0, as it was when the run was expanded; `value` and `trace_version` are what is folded.
    `deaths`: how many judges died while they had it under way; `deaths_alone`: of these, how many had nothing else."""

    __tablename__ = "pairs"
    __table_args__ = (
        Index("pairs_owed", "run_id", "available_at", "trace_id", "metric", postgresql_where=text("status = 'owed'")),
        Index("pairs_undeliverable", "run_id", postgresql_where=text("status = 'owed' AND redispatches > 5")),
        Index("pairs_dispatched", "run_id", "dispatched_at", postgresql_where=text("status = 'dispatched'")),
        Index("pairs_failed", "run_id", "trace_id", "metric", postgresql_where=text("outcome = 'FAILED'")),
        Index(
            "pairs_session",
            "run_id",
            "target",
            "place",
            postgresql_where=text("place IS NOT NULL"),
        ),
    )

    run_id: UUID = Field(primary_key=True, foreign_key="runs.id", ondelete="CASCADE")
    trace_id: UUID = Field(primary_key=True)
    metric: str = Field(sa_column=Column(Text, primary_key=True))
    project_id: UUID = Field(nullable=False)
    target: str = _text()
    status: str = _text(default="owed")
    outcome: str | None = _text(nullable=True)
    reason: str | None = _text(nullable=True)
    available_at: datetime = _when(now=True)
    dispatched_at: datetime | None = _when(nullable=True)
    dispatch_no: int = _count()
    attempts: int = _count()
    redispatches: int = _count()
    job_partition: int | None = None
    job_offset: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    job_incarnation: UUID | None = None
    settled_at: datetime | None = _when(nullable=True)
    place: int | None = None
    value: float | None = None
    trace_version: int | None = None
    deaths: int = _count()
    deaths_alone: int = _count()


class Begun(SQLModel, table=True):
    """A pair that a judge has under way, by the judge's incarnation; `alone` where it has nothing else. Unlogged: it costs
    no WAL and no wait, and a crash of Postgres, which empties it, is no judge's death."""

    __tablename__ = "begun"
    __table_args__ = ({"prefixes": ["UNLOGGED"]},)

    run_id: UUID = Field(primary_key=True)
    trace_id: UUID = Field(primary_key=True)
    metric: str = Field(sa_column=Column(Text, primary_key=True))
    judge: UUID = Field(primary_key=True)
    alone: bool


class TraceScore(SQLModel, table=True):
    """No foreign key to the trace: settling looks under the trace's lock whether it is still there, and a score may be
    parked (PENDING) before its trace arrives. `number` is what analytics count."""

    __tablename__ = "trace_scores"
    __table_args__ = (
        Index("trace_scores_run", "eval_run_id", "project_id", text("created_at DESC"), "id"),
        Index("trace_scores_source", "project_id", "source", text("created_at DESC")),
        Index("trace_scores_data_type", "project_id", "data_type", text("created_at DESC")),
        Index("trace_scores_environment", "project_id", "environment", text("created_at DESC")),
        Index("trace_scores_trace", "trace_id", "name", text("created_at DESC")),
        Index("trace_scores_newest", "project_id", text("created_at DESC"), "id"),
        Index(
            "trace_scores_name",
            "project_id",
            "name",
            text("created_at DESC"),
            postgresql_include=["status", "number"],
        ),
        Index("trace_scores_parked", "trace_id", postgresql_where=text("status = 'PENDING'")),
    )

    id: UUID = Field(primary_key=True)
    project_id: UUID = Field(foreign_key="projects.id", ondelete="CASCADE")
    trace_id: UUID
    eval_run_id: UUID | None = Field(default=None, foreign_key="runs.id", ondelete="SET NULL")
    name: str = _text()
    value: str | None = _text(nullable=True)
    data_type: str = _text(default="NUMERIC")
    source: str = _text(default="AUTOMATED")
    status: str = _text(default="SUCCESS")
    reason: str | None = _text(nullable=True)
    environment: str | None = _text(nullable=True)
    author_user_id: str | None = _text(nullable=True)
    config_id: str | None = _text(nullable=True)
    attributes: dict[str, Any] = Field(sa_column=Column("metadata", JSONB, nullable=False, server_default=text("'{}'")))
    trace_version: int | None = None
    number: float | None = Field(default=None, sa_column=Column(Float, Computed(NUMBER, persisted=True), nullable=True))
    created_at: datetime = _when(now=True)
    updated_at: datetime = _when(now=True)


class SessionScore(SQLModel, table=True):
    """What the signals of a session's traces fold into. `session_version` tells apart what the session was each time."""

    __tablename__ = "session_scores"
    __table_args__ = (
        Index("session_scores_run", "eval_run_id", "project_id", "session_id"),
        Index("session_scores_session", "project_id", "session_id", "name", text("created_at DESC")),
        Index("session_scores_source", "project_id", "source", text("created_at DESC"), "id"),
        Index("session_scores_newest", "project_id", text("created_at DESC"), "id"),
        Index(
            "session_scores_name",
            "project_id",
            "name",
            text("created_at DESC"),
            postgresql_include=["status", "number", "session_id"],
        ),
    )

    id: UUID = Field(primary_key=True)
    project_id: UUID = Field(foreign_key="projects.id", ondelete="CASCADE")
    session_id: str = _text()
    eval_run_id: UUID | None = Field(default=None, foreign_key="runs.id", ondelete="SET NULL")
    name: str = _text()
    value: str | None = _text(nullable=True)
    data_type: str = _text(default="NUMERIC")
    source: str = _text(default="AUTOMATED")
    status: str = _text(default="SUCCESS")
    reason: str | None = _text(nullable=True)
    author_user_id: str | None = _text(nullable=True)
    attributes: dict[str, Any] = Field(sa_column=Column("metadata", JSONB, nullable=False, server_default=text("'{}'")))
    session_version: str | None = _text(nullable=True)
    traces_seen: int = _count()
    snapshot_at: datetime = _when()
    number: float | None = Field(default=None, sa_column=Column(Float, Computed(NUMBER, persisted=True), nullable=True))
    created_at: datetime = _when(now=True)
    updated_at: datetime = _when(now=True)


class ScoreHistory(SQLModel, table=True):
    """What a score said before somebody changed it: a judge's word stays comparable with people's."""

    __tablename__ = "score_history"
    __table_args__ = (Index("score_history_score", "score_id"),)

    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    score_id: UUID = Field(foreign_key="trace_scores.id", ondelete="CASCADE")
    project_id: UUID = Field(nullable=False)
    value: str | None = _text(nullable=True)
    data_type: str = _text()
    source: str = _text()
    status: str = _text()
    reason: str | None = _text(nullable=True)
    author_user_id: str | None = _text(nullable=True)
    eval_run_id: UUID | None = None
    attributes: dict[str, Any] = Field(sa_column=Column("metadata", JSONB, nullable=False, server_default=text("'{}'")))
    said_at: datetime = _when()
    replaced_at: datetime = _when(now=True)


class Answer(SQLModel, table=True):
    """A reply that was paid for and understood, by what was asked: asked again, it is found and not bought again."""

    __tablename__ = "answers"
    __table_args__ = (Index("answers_key", "project_id", "key"), Index("answers_old", "created_at"))

    project_id: UUID = Field(primary_key=True, foreign_key="projects.id", ondelete="CASCADE")
    root_run_id: UUID = Field(primary_key=True)
    key: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    model: str = _text()
    reply: Any = Field(sa_column=Column(JSONB, nullable=False))
    created_at: datetime = _when(now=True)


class Call(SQLModel, table=True):
    """One question to a model, failed ones too: what it cost and how it ended."""

    __tablename__ = "calls"
    __table_args__ = (
        Index("calls_run", "run_id"),
        Index("calls_newest", "project_id", text("created_at DESC")),
    )

    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    project_id: UUID = Field(foreign_key="projects.id", ondelete="CASCADE")
    run_id: UUID
    trace_id: UUID
    metric: str = _text()
    metric_version: str = _text()
    stage: str = _text()
    model: str = _text()
    attempt: int
    outcome: str = _text()
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost: float | None = None
    seconds: float
    created_at: datetime = _when(now=True)


class RunSpending(SQLModel, table=True):
    """The sum of a run's calls, in a row of its own: judges add to it while the aggregator counts in the run's."""

    __tablename__ = "run_spending"

    run_id: UUID = Field(primary_key=True)
    project_id: UUID
    calls: int = _count()
    cost: float = _sum()
    unpriced: int = _count()


class OutboxRow(SQLModel, table=True):
    """A message that is owed to Kafka; its row is deleted in the transaction that saw it acknowledged."""

    __tablename__ = "outbox"

    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    topic: str = _text()
    key: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    value: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    headers: dict[str, Any] = _object()
    created_at: datetime = _when(now=True)


TENANT_TABLES = (
    "traces", "trace_tags", "spans", "sessions", "session_tags", "runs", "targets", "folds", "pairs", "trace_scores",
    "score_history", "rate_limits", "idempotency_keys", "answers", "calls", "run_spending", "session_scores",
)  # fmt: skip
