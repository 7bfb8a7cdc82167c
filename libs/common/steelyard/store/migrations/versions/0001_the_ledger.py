"""The ledger."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from steelyard.store.tables import Xid8

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "organizations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("headers", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hash"),
    )
    op.create_table(
        "projects",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("org_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("org_id", "name"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("target_type", sa.Text(), server_default=sa.text("'TRACE'"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'PENDING'"), nullable=False),
        sa.Column("metric_names", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("filters", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("sampling_rate", sa.Float(), server_default=sa.text("1"), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("judge_model", sa.Text(), nullable=False),
        sa.Column("monitor_id", sa.Uuid(), nullable=True),
        sa.Column("parent_run_id", sa.Uuid(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("stopping", sa.Text(), nullable=True),
        sa.Column("total_targets", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("evaluated_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("failed_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("settled_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("left", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("held", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("snapshot", sa.Text(), nullable=False),
        sa.Column("targets_written", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("expanded", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("cursor", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("runs_newest", "runs", ["project_id", sa.literal_column("created_at DESC"), "id"], unique=False)
    op.create_index(
        "runs_unfinished",
        "runs",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("status IN ('PENDING', 'RUNNING')"),
    )
    op.create_table(
        "traces",
        sa.Column("trace_id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("input", sa.JSON(), nullable=True),
        sa.Column("output", sa.JSON(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("session_id", sa.Text(), nullable=True),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("environment", sa.Text(), nullable=True),
        sa.Column("release", sa.Text(), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("ingested_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("trace_id"),
    )
    op.create_index(
        "traces_newest", "traces", ["project_id", sa.literal_column("started_at DESC"), "trace_id"], unique=False
    )
    op.create_index(
        "traces_session",
        "traces",
        ["project_id", "session_id", "started_at"],
        unique=False,
        postgresql_where=sa.text("session_id IS NOT NULL"),
    )
    op.create_index("traces_tags", "traces", ["tags"], unique=False, postgresql_using="gin")
    op.create_table(
        "pairs",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("trace_id", sa.Uuid(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'owed'"), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("available_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("dispatched_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("dispatch_no", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("redispatches", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("job_partition", sa.Integer(), nullable=True),
        sa.Column("job_offset", sa.BigInteger(), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "trace_id", "metric"),
    )
    op.create_index(
        "pairs_dispatched",
        "pairs",
        ["run_id", "dispatched_at"],
        unique=False,
        postgresql_where=sa.text("status = 'dispatched'"),
    )
    op.create_index(
        "pairs_undeliverable",
        "pairs",
        ["run_id"],
        unique=False,
        postgresql_where=sa.text("status = 'owed' AND redispatches > 5"),
    )
    op.create_index(
        "pairs_owed",
        "pairs",
        ["run_id", "available_at", "trace_id", "metric"],
        unique=False,
        postgresql_where=sa.text("status = 'owed'"),
    )
    op.create_table(
        "spans",
        sa.Column("trace_id", sa.Uuid(), nullable=False),
        sa.Column("span_id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("parent_span_id", sa.Uuid(), nullable=True),
        sa.Column("position", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("input", sa.JSON(), nullable=True),
        sa.Column("output", sa.JSON(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("token_usage", sa.JSON(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("completion_start_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("model_parameters", sa.JSON(), nullable=True),
        sa.Column("cost", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["trace_id"], ["traces.trace_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("trace_id", "span_id"),
    )
    op.create_table(
        "targets",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("left", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "target"),
    )
    op.create_table(
        "trace_scores",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("trace_id", sa.Uuid(), nullable=False),
        sa.Column("eval_run_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("data_type", sa.Text(), server_default=sa.text("'NUMERIC'"), nullable=False),
        sa.Column("source", sa.Text(), server_default=sa.text("'AUTOMATED'"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'SUCCESS'"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("environment", sa.Text(), nullable=True),
        sa.Column("author_user_id", sa.Text(), nullable=True),
        sa.Column("config_id", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("trace_version", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["eval_run_id"], ["runs.id"], ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "trace_scores_newest", "trace_scores", ["project_id", sa.literal_column("created_at DESC"), "id"], unique=False
    )
    op.create_index("trace_scores_run", "trace_scores", ["eval_run_id"], unique=False)
    op.create_index(
        "trace_scores_trace", "trace_scores", ["trace_id", "name", sa.literal_column("created_at DESC")], unique=False
    )


def downgrade() -> None:
    op.drop_index("trace_scores_trace", table_name="trace_scores")
    op.drop_index("trace_scores_run", table_name="trace_scores")
    op.drop_index("trace_scores_newest", table_name="trace_scores")
    op.drop_table("trace_scores")
    op.drop_table("targets")
    op.drop_table("spans")
    op.drop_index("pairs_undeliverable", table_name="pairs")
    op.drop_index("pairs_owed", table_name="pairs", postgresql_where=sa.text("status = 'owed'"))
    op.drop_index("pairs_dispatched", table_name="pairs", postgresql_where=sa.text("status = 'dispatched'"))
    op.drop_table("pairs")
    op.drop_index("traces_tags", table_name="traces", postgresql_using="gin")
    op.drop_index("traces_session", table_name="traces", postgresql_where=sa.text("session_id IS NOT NULL"))
    op.drop_index("traces_newest", table_name="traces")
    op.drop_table("traces")
    op.drop_index("runs_unfinished", table_name="runs", postgresql_where=sa.text("status IN ('PENDING', 'RUNNING')"))
    op.drop_index("runs_newest", table_name="runs")
    op.drop_table("runs")
    op.drop_table("projects")
    op.drop_table("api_keys")
    op.drop_table("outbox")
    op.drop_table("organizations")
