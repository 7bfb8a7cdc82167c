"""alembic's entry: `migrate.py` gives it a connection, and what follows each step in its transaction."""

from typing import Any, cast

from alembic import context
from sqlmodel import SQLModel

from steelyard.store import tables  # noqa: F401 - fills the metadata

after_each = context.config.attributes["after_each"]


def stepped(*, ctx: Any, **_: Any) -> None:
    after_each(ctx.connection)


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    compare_server_default=False,
    transaction_per_migration=True,  # a step that has to wait for a lock gives up those that it holds
    on_version_apply=cast(Any, stepped),  # called by keywords alone
)
with context.begin_transaction():
    context.run_migrations()
