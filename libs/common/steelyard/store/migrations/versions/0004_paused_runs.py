"""Runs whose model's quota is exhausted wait, and say until when."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("runs", sa.Column("paused_why", sa.Text(), nullable=True))
    op.add_column("runs", sa.Column("paused_until", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("runs", "paused_until")
    op.drop_column("runs", "paused_why")
