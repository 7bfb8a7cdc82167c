"""Room for rows that are updated in place, vacuum before dead rows are many, and how many pairs a run has."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

# Rows whose counters move, in no index: with room on its page an update touches no index (HOT). Sums that move with each
# message want room for several versions, counts that go down once or twice for one.
FILL = {"runs": 50, "run_spending": 50, "key_usage": 50, "rate_limits": 50, "sessions": 70, "targets": 80}
# Nearly every row dies, some several times: the default waits until a fifth of the table is dead. Pairs have no room left
# free: each of their updates changes the state that their indexes are for, and is never HOT.
CHURNING = (*FILL, "pairs", "folds", "session_tags", "outbox", "idempotency_keys")
VACUUM = {
    "autovacuum_vacuum_scale_factor": 0.02,
    "autovacuum_vacuum_threshold": 1000,
    "autovacuum_vacuum_insert_scale_factor": 0.05,
    "autovacuum_analyze_scale_factor": 0.05,
    "autovacuum_vacuum_cost_delay": 1,
}


def upgrade() -> None:
    for table in CHURNING:
        options = ({"fillfactor": FILL[table]} if table in FILL else {}) | VACUUM
        op.execute(f"ALTER TABLE {table} SET ({', '.join(f'{name} = {value}' for name, value in options.items())})")
    op.add_column("runs", sa.Column("pairs_written", sa.Integer(), server_default=sa.text("0"), nullable=False))


def downgrade() -> None:
    op.drop_column("runs", "pairs_written")
    for table in CHURNING:
        op.execute(f"ALTER TABLE {table} RESET ({', '.join(VACUUM)})")
    for table in FILL:
        op.execute(f"ALTER TABLE {table} RESET (fillfactor)")
