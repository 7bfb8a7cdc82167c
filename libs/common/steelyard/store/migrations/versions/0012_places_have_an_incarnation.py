"""Where a pair's job lies means something in one incarnation of the topics: it is written down with the place."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("pairs", sa.Column("job_incarnation", sa.Uuid(), nullable=True))


def downgrade() -> None:
    op.drop_column("pairs", "job_incarnation")
