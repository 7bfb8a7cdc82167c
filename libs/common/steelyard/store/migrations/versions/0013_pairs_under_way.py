"""Which pairs judges have under way, and how many judges died with each."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    for name in ("deaths", "deaths_alone"):
        op.add_column("pairs", sa.Column(name, sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.create_table(
        "begun",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("trace_id", sa.Uuid(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("judge", sa.Uuid(), nullable=False),
        sa.Column("alone", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "trace_id", "metric", "judge"),
        prefixes=["UNLOGGED"],
    )
    # Rows come and go with each pair and there are never many: cleared away long before its share of dead ones is reached.
    op.execute(
        "ALTER TABLE begun SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, "
        "autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 100000)"
    )


def downgrade() -> None:
    op.drop_table("begun")
    for name in ("deaths_alone", "deaths"):
        op.drop_column("pairs", name)
