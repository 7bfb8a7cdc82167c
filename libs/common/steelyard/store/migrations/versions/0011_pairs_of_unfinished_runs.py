"""How many pairs the runs have that were begun before this was counted."""

from steelyard.store.online import fill

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    fill(
        """
        UPDATE runs r SET pairs_written = (SELECT count(*) FROM pairs p WHERE p.run_id = r.id) WHERE r.id IN (
            SELECT id FROM runs u WHERE status IN ('PENDING', 'RUNNING') AND pairs_written = 0
                AND EXISTS (SELECT 1 FROM pairs p WHERE p.run_id = u.id) LIMIT 1
        )
        """
    )


def downgrade() -> None:
    pass
