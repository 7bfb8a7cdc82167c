"""`python -m steelyard.store.migrate`: the tables, the two roles, and who may see which rows, while requests are served.

Only what is missing is made. A transaction waits a second for a lock and lasts two at most, so that nobody waits longer
than that behind it; then it is rolled back, and tried again a moment later."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from steelyard.reasons import reason, sqlstate
from steelyard.settings import Settings, from_environment
from steelyard.store.database import driver
from steelyard.store.roles import API, WORKER, make_role, missing
from steelyard.tasks import ended

# Two migrations of one database at once: the second waits and finds nothing to do.
LOCK = 5_157_201
LOCK_SECONDS = 1.0
PATIENCE_SECONDS = 600.0
# No lock in time, a deadlock; a transaction that lasts too long is ended with its connection.
IN_THE_WAY = ("55P03", "40P01")
Say = Callable[[str], None]


def _say(line: str) -> None:
    sys.stdout.write(f"migrate: {line}\n")
    sys.stdout.flush()


async def migrate(
    owner_url: str,
    api_url: str,
    worker_url: str,
    lock_seconds: float = LOCK_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
    say: Say = _say,
) -> None:
    """Repeatable: what is there stays as it is and is not locked, what is missing is made."""
    engine = _engine(owner_url, lock_seconds)
    deadline = time.monotonic() + patience_seconds
    try:
        for name, url in ((API, api_url), (WORKER, worker_url)):
            await make_role(owner_url, name, url)
        while not await _attempt(engine, lock_seconds, deadline, say):  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(2 * lock_seconds)  # who waited behind our locks goes first
    finally:
        await engine.dispose()


def _engine(owner_url: str, lock_seconds: float) -> AsyncEngine:
    settings = {"application_name": "steelyard migrate", "lock_timeout": f"{1000 * lock_seconds:.0f}"}
    given = {"server_settings": settings}
    return create_async_engine(driver(owner_url), hide_parameters=True, poolclass=NullPool, connect_args=given)


async def _attempt(engine: AsyncEngine, lock_seconds: float, deadline: float, say: Say) -> bool:
    try:
        async with engine.connect() as connection, _one_at_a_time(connection, say), _watched(engine, connection, say):
            await _bound(connection, 2 * lock_seconds)
            await connection.run_sync(_upgrade)
            for statements in await connection.run_sync(missing):
                await connection.rollback()
                for statement in statements:
                    await connection.execute(text(statement))
                await connection.commit()
    except DBAPIError as e:
        if not (e.connection_invalidated or sqlstate(e) in IN_THE_WAY) or time.monotonic() > deadline:
            raise
        say(f"{reason(e)}; rolled back, again in a moment")
        return False
    return True


async def _bound(connection: AsyncConnection, seconds: float) -> None:
    """What is new has no requests that could wait: making all the tables may take what it takes."""
    if await connection.scalar(text("SELECT to_regclass('alembic_version')")):
        await connection.execute(text(f"SET transaction_timeout = {1000 * seconds:.0f}"))
    await connection.commit()


@asynccontextmanager
async def _one_at_a_time(connection: AsyncConnection, say: Say) -> AsyncIterator[None]:
    """Asked for again and again and not waited for: who waits in Postgres holds up an index that is built concurrently."""
    told = False
    while not await connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LOCK}):
        await connection.rollback()
        if not told:
            say("waits for another migration of this database")
        told = True
        await asyncio.sleep(0.2)
    await connection.commit()
    yield  # the lock ends with the connection


@asynccontextmanager
async def _watched(engine: AsyncEngine, connection: AsyncConnection, say: Say) -> AsyncIterator[None]:
    """Says who is in the way while this connection waits."""
    pid = await connection.scalar(text("SELECT pg_backend_pid()"))
    await connection.commit()
    watching = asyncio.create_task(_tell_who(engine, pid, say))
    try:
        yield
    finally:
        await ended([watching])


async def _tell_who(engine: AsyncEngine, pid: int, say: Say) -> None:
    told: Any = None
    async with engine.connect() as other:
        autocommit = await other.execution_options(isolation_level="AUTOCOMMIT")
        while True:
            await asyncio.sleep(0.2)
            row = (await autocommit.execute(_BLOCKING, {"pid": pid})).first()
            if row is not None and row.pid != told:
                told = row.pid
                age = f", whose transaction began {row.age:.0f} s ago" if row.age is not None else ""
                say(f"waits for process {row.pid} of {row.role} ({row.application or 'no name'}){age}")


_BLOCKING = text(
    """
    SELECT pid, usename AS role, application_name AS application,
        CAST(extract(epoch FROM now() - xact_start) AS float8) AS age
    FROM pg_stat_activity WHERE pid = ANY (pg_blocking_pids(:pid)) ORDER BY xact_start NULLS LAST LIMIT 1
    """
)


def config(connection: Connection) -> Config:
    c = Config(attributes={"connection": connection, "after_each": _secure})
    c.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return c


def _upgrade(connection: Connection) -> None:
    command.upgrade(config(connection), "head")


def _secure(connection: Connection) -> None:
    """In the migration's own transaction: nobody sees a table that its services may not read, or that shows too much."""
    for statements in missing(connection):
        for statement in statements:
            connection.execute(text(statement))


def of_settings(s: Settings) -> tuple[str, str, str]:
    urls = (s.database_url, s.api_database_url, s.worker_database_url)
    owner, api, worker = (u.get_secret_value() for u in urls)
    return owner, api, worker


def main() -> None:
    try:
        asyncio.run(migrate(*of_settings(from_environment())))
    except (DBAPIError, asyncpg.PostgresError, OSError) as e:
        hint = " (DATABASE_URL must be a role that may create tables and roles)" if sqlstate(e) == "42501" else ""
        sys.exit(f"migrate: {reason(e)}{hint}")
    _say("the database is up to date")


if __name__ == "__main__":
    main()
