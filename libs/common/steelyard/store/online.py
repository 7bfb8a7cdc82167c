"""What a migration does while requests are served: whatever takes longer than a moment happens outside of its transaction.

Such a step may be interrupted and is then done again, so it has to be repeatable."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from alembic import op
from sqlalchemy import TextClause, text


@contextmanager
def own_transactions() -> Iterator[None]:
    """Each statement commits by itself and may take its time: it must hold no lock that a request waits for."""
    with op.get_context().autocommit_block():
        limits = {name: op.get_bind().scalar(text(f"SHOW {name}")) for name in ("lock_timeout", "transaction_timeout")}
        for name in limits:
            op.execute(f"SET {name} = 0")
        yield
        for name, value in limits.items():
            op.execute(f"SET {name} = '{value}'")


def build_index(name: str, table: str, columns: Sequence[str | TextClause], **options: Any) -> None:
    """Concurrently: writers go on meanwhile. An interrupted build leaves an invalid index, which is dropped first."""
    with own_transactions():
        if op.get_bind().scalar(_INVALID, {"name": name}):
            op.drop_index(name, table, postgresql_concurrently=True)
        op.create_index(name, table, columns, postgresql_concurrently=True, if_not_exists=True, **options)


def fill(statement: str) -> None:
    """A backfill in pages: the statement changes some rows that still need it, and is repeated until none does."""
    with own_transactions():
        while op.get_bind().execute(text(statement)).rowcount:
            pass


_INVALID = text("SELECT 1 FROM pg_index WHERE indexrelid = to_regclass(:name) AND NOT indisvalid")
