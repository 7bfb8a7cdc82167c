"""Runs over sessions: what their traces' signals were, and what these fold into."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from steelyard.store.tables import NUMBER

revision = "0005"
down_revision = "0004"
NEWEST: sa.ColumnClause[str] = sa.literal_column("created_at DESC")


def upgrade() -> None:
    op.create_table(
        "session_scores",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("eval_run_id", sa.Uuid(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("data_type", sa.Text(), server_default=sa.text("'NUMERIC'"), nullable=False),
        sa.Column("source", sa.Text(), server_default=sa.text("'AUTOMATED'"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'SUCCESS'"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("author_user_id", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("session_version", sa.Text(), nullable=True),
        sa.Column("traces_seen", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("snapshot_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("number", sa.Float(), sa.Computed(NUMBER, persisted=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["eval_run_id"], ["runs.id"], ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("session_scores_run", "session_scores", ["eval_run_id", "project_id", "session_id"])
    op.create_index("session_scores_session", "session_scores", ["project_id", "session_id", "name", NEWEST])
    op.create_index("session_scores_source", "session_scores", ["project_id", "source", NEWEST, "id"])
    op.create_index("session_scores_newest", "session_scores", ["project_id", NEWEST, "id"])
    op.create_index(
        "session_scores_name", "session_scores", ["project_id", "name", NEWEST],
        postgresql_include=["status", "number", "session_id"],
    )  # fmt: skip
    op.add_column("targets", sa.Column("size", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("targets", sa.Column("metrics", postgresql.ARRAY(sa.Text()), nullable=True))
    op.add_column("targets", sa.Column("failed_metrics", postgresql.ARRAY(sa.Text()), nullable=True))
    op.add_column("pairs", sa.Column("place", sa.Integer(), nullable=True))
    op.add_column("pairs", sa.Column("value", sa.Float(), nullable=True))
    op.add_column("pairs", sa.Column("trace_version", sa.Integer(), nullable=True))
    op.create_index(
        "pairs_session", "pairs", ["run_id", "target", "place"],
        postgresql_where=sa.text("place IS NOT NULL"),
    )  # fmt: skip


def downgrade() -> None:
    op.drop_index("pairs_session", table_name="pairs")
    for table, columns in (
        ("pairs", ("trace_version", "value", "place")),
        ("targets", ("failed_metrics", "metrics", "size")),
    ):
        for column in columns:
            op.drop_column(table, column)
    op.drop_table("session_scores")
