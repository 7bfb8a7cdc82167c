"""The tables. Rows are written by the verbs beside this file; migrations/ brings a database here."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
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


def _count(default: int = 0) -> Any:
    return Field(sa_column=Column(Integer, nullable=False, server_default=text(str(default))))


class Organization(SQLModel, table=True):
    __tablename__ = "organizations"

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    name: str = _text(unique=True)
    created_at: datetime = _when(now=True)


class Project(SQLModel, table=True):
    __tablename__ = "projects"
    __table_args__ = (UniqueConstraint("org_id", "name"),)

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    org_id: UUID = Field(foreign_key="organizations.id", ondelete="CASCADE")
    name: str = _text()
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


class TraceRow(SQLModel, table=True):
    """`version` moves with every write to the trace or to one of its spans; `created_xid` never."""

    __tablename__ = "traces"
    __table_args__ = (
        Index("traces_newest", "project_id", text("started_at DESC"), "trace_id"),
        Index(
            "traces_session", "project_id", "session_id", "started_at", postgresql_where=text("session_id IS NOT NULL")
        ),
        Index("traces_tags", "tags", postgresql_using="gin"),
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
    version: int = _count(1)
    ingested_at: datetime = _when(now=True)
    created_xid: Any = Field(sa_column=Column(Xid8, nullable=False, server_default=text("pg_current_xact_id()")))


class SpanRow(SQLModel, table=True):
    """`position` keeps the order of arrival where spans start at the same moment."""

    __tablename__ = "spans"

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


class Run(SQLModel, table=True):
    """`left` is targets not yet evaluated plus the hold that RunExpanded releases; at zero the run is finished."""

    __tablename__ = "runs"
    __table_args__ = (
        Index("runs_newest", "project_id", text("created_at DESC"), "id"),
        Index("runs_unfinished", "created_at", postgresql_where=text("status IN ('PENDING', 'RUNNING')")),
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
    error_message: str | None = _text(nullable=True)
    stopping: str | None = _text(nullable=True)
    total_targets: int = _count()
    evaluated_count: int = _count()
    failed_count: int = _count()
    settled_count: int = _count()
    left: int = _count(1)
    held: bool = Field(default=True, sa_column_kwargs={"server_default": text("true")})
    snapshot: str = _text()
    targets_written: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    expanded: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    cursor: str | None = _text(nullable=True)
    created_at: datetime = _when(now=True)
    completed_at: datetime | None = _when(nullable=True)


class Target(SQLModel, table=True):
    """A trace of a run; `left` counts its pairs that are not settled."""

    __tablename__ = "targets"

    run_id: UUID = Field(primary_key=True, foreign_key="runs.id", ondelete="CASCADE")
    target: str = Field(sa_column=Column(Text, primary_key=True))
    project_id: UUID = Field(nullable=False)
    left: int = _count()


class Pair(SQLModel, table=True):
    """One trace by one metric: owed, dispatched, settled, each exactly once."""

    __tablename__ = "pairs"
    __table_args__ = (
        Index("pairs_owed", "run_id", "available_at", "trace_id", "metric", postgresql_where=text("status = 'owed'")),
        Index("pairs_undeliverable", "run_id", postgresql_where=text("status = 'owed' AND redispatches > 5")),
        Index("pairs_dispatched", "run_id", "dispatched_at", postgresql_where=text("status = 'dispatched'")),
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
    settled_at: datetime | None = _when(nullable=True)


class TraceScore(SQLModel, table=True):
    """No foreign key to the trace: settling looks under the trace's lock whether it is still there."""

    __tablename__ = "trace_scores"
    __table_args__ = (
        Index("trace_scores_run", "eval_run_id"),
        Index("trace_scores_trace", "trace_id", "name", text("created_at DESC")),
        Index("trace_scores_newest", "project_id", text("created_at DESC"), "id"),
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
    created_at: datetime = _when(now=True)
    updated_at: datetime = _when(now=True)


class OutboxRow(SQLModel, table=True):
    """A message that is owed to Kafka; its row is deleted in the transaction that saw it acknowledged."""

    __tablename__ = "outbox"

    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    topic: str = _text()
    key: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    value: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    headers: dict[str, Any] = _object()
    created_at: datetime = _when(now=True)


TENANT_TABLES = ("traces", "spans", "runs", "targets", "pairs", "trace_scores")
