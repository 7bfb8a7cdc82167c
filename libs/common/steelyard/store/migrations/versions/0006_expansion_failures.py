"""How often a run's expansion failed, and when it is tried again."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("runs", sa.Column("expansion_failures", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("runs", sa.Column("expand_after", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("runs", "expand_after")
    op.drop_column("runs", "expansion_failures")
