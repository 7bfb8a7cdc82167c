"""The pool, and a transaction: every verb of the store takes one first."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

import asyncpg
import orjson
from sqlalchemy import event, exc, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from steelyard.errors import Later
from steelyard.reasons import reason as reason
from steelyard.reasons import sqlstate as sqlstate

Tx = AsyncConnection
# Connection trouble, shutdown, serialization, deadlock, out of resources, lock not available.
PASSING = ("08", "57P", "40001", "40P01", "53", "55P03")
# The database itself is away, full, broken, lets nobody in or lets nobody write: whatever is asked of it, by whomever.
AWAY = ("08", "25006", "28", "53", "57P", "58")
CONTENDED = ("40001", "40P01", "55P03")
HEAD = "0007"
RESTED_SECONDS = 1.0


class Database:
    """One pool of one role. A transaction of the API names its project: row-level security shows it nothing else."""

    def __init__(self, url: str, pool: int = 10) -> None:
        self.url, self._pool = url, pool
        self._shares: WeakValueDictionary[UUID, asyncio.Semaphore] = WeakValueDictionary()
        self._engine: AsyncEngine = create_async_engine(
            driver(url),
            pool_size=pool,
            max_overflow=0,
            hide_parameters=True,  # they are users' data, and an error's text travels
            pool_timeout=10,
            json_serializer=dumps,
            json_deserializer=orjson.loads,
            connect_args={"timeout": 5, "server_settings": {"application_name": "steelyard"}},
        )
        _ping_the_idle(self._engine)

    @asynccontextmanager
    async def begin(self, project: UUID | None = None) -> AsyncIterator[Tx]:
        async with self._share(project), self._engine.begin() as tx:
            if project is not None:
                await tx.execute(_ENTER, {"project": str(project)})
            yield tx

    def _share(self, project: UUID | None) -> AbstractAsyncContextManager[Any]:
        """At most half of the connections are one project's: who waits for locks in his own rows keeps nobody else out."""
        if project is None:
            return nullcontext()
        share = self._shares.get(project)
        if share is None:
            share = self._shares[project] = asyncio.Semaphore(max(1, self._pool // 2))
        return share

    @asynccontextmanager
    async def single(self) -> AsyncIterator[Tx]:
        """For statements that stand alone and touch no project's rows: each commits itself, without BEGIN and COMMIT."""
        async with self._engine.connect() as tx:
            yield await tx.execution_options(isolation_level="AUTOCOMMIT")

    async def start(self) -> None:
        """Ready means migrated: a service that is ahead of its tables waits for them."""
        try:
            async with self.begin() as tx:
                at = (await tx.execute(text("SELECT version_num FROM alembic_version"))).scalar()
        except (exc.DBAPIError, asyncpg.PostgresError, OSError) as e:
            raise Later(f"the database is not ready ({reason(e)}); is it up and migrated (make migrate)?") from e
        if at is None or str(at) < HEAD:
            raise Later(f"the database is at version {at}, this service needs {HEAD}: make migrate")

    async def stop(self) -> None:
        await self._engine.dispose()

    async def unwell(self) -> str | None:
        try:
            async with self.begin() as tx:
                await tx.execute(text("SELECT 1"))
        except (exc.SQLAlchemyError, asyncpg.PostgresError, OSError) as e:
            return f"the database does not answer: {reason(e)}"
        return None


def _ping_the_idle(engine: AsyncEngine) -> None:
    """A connection that rested may have lost its server: it is asked before it is used. One that was in use a moment ago
    is not: three round trips for each transaction would cost more than the transaction."""
    pool = engine.sync_engine

    @event.listens_for(pool, "checkin")
    def rests(_: Any, record: ConnectionPoolEntry) -> None:
        record.info["rests_since"] = time.monotonic()

    @event.listens_for(pool, "checkout")
    def wakes(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
        if time.monotonic() - record.info.get("rests_since", math.inf) < RESTED_SECONDS:
            return
        try:
            pool.dialect.do_ping(connection)
        except Exception as e:
            raise exc.InvalidatePoolError(reason(e)) from e


_ENTER = text("SELECT set_config('steelyard.project', :project, true)")


def driver(url: str) -> str:
    """Any of the usual spellings, for SQLAlchemy on asyncpg."""
    return "postgresql+asyncpg://" + url.split("://", 1)[1]


def temporary(error: BaseException) -> bool:
    """Whether the same statement may work in a moment."""
    if isinstance(error, exc.TimeoutError | ConnectionError | TimeoutError | asyncpg.InterfaceError):
        return True
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError | PermissionError)
    if isinstance(error, exc.DBAPIError) and (error.connection_invalidated or isinstance(error, exc.InterfaceError)):
        return True
    return (sqlstate(error) or "").startswith(PASSING)


def away(error: BaseException) -> bool:
    """Whether any statement would have met this error, and not the one that did. An error of the driver on a connection
    that lives, like too many parameters, is the statement's own."""
    if isinstance(error, exc.DBAPIError):
        return error.connection_invalidated or (sqlstate(error) or "").startswith(AWAY)
    if isinstance(error, exc.TimeoutError | asyncpg.InterfaceError | OSError):
        return True
    return (sqlstate(error) or "").startswith(AWAY)


def contended(error: BaseException) -> bool:
    """Somebody else was in the way: it says nothing of the statement, nor of the database."""
    return (sqlstate(error) or "").startswith(CONTENDED)


def dumps(value: Any) -> str:
    return orjson.dumps(value, default=_plain).decode()


def _plain(value: Any) -> str:
    """asyncpg's ids are a kind of UUID that orjson does not know."""
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON")
