"""alembic's entry: `migrate.py` gives it a connection and nothing else."""

from alembic import context
from sqlmodel import SQLModel

from steelyard.store import tables  # noqa: F401 - fills the metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    compare_server_default=False,
)
with context.begin_transaction():
    context.run_migrations()
