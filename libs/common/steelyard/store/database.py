"""The pool, and a transaction: every verb of the store takes one first."""

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

import asyncpg
import orjson
from sqlalchemy import event, exc, text
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from steelyard.errors import Later
from steelyard.reasons import cause
from steelyard.reasons import reason as reason
from steelyard.reasons import sqlstate as sqlstate

Tx = AsyncConnection
# By SQLSTATE or its class. The database itself is away, full, broken, lets nobody in (after a failover its roles may lag behind,
# or it is being restored) or lets nobody write: whatever is asked of it, by whomever.
AWAY = ("08", "25006", "28", "3D000", "53", "57P", "58")
CONTENDED = ("40001", "40P01", "55P03")
# A statement or a transaction that took longer than its role may.
TIMED_OUT = ("25P03", "25P04", "57014")
READ_ONLY = "25006"
# After these a connection is not used again. A lock that was not to be had says nothing about its connection, and another
# one would find no more memory or disk.
UNTRUSTED = (READ_ONLY, "57014", "58")
HEAD = "0013"
RESTED_SECONDS = 1.0
# Of several servers the one that takes writes, and none where none does.
CONNECT: dict[str, Any] = {"timeout": 5, "target_session_attrs": "read-write"}
UNREACHABLE = (exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


class Database:
    """One pool of one role. A transaction of the API names its project: row-level security shows it nothing else."""

    def __init__(self, url: str, pool: int = 10, **settings: str) -> None:
        """`settings` are the server's, for these connections in place of what the role has."""
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
            connect_args={**CONNECT, "connection_class": Connection, "server_settings": _NAMED | settings},
        )
        _ping_the_idle(self._engine)
        _drop_the_untrusted(self._engine)

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
        """Ready means migrated and writable. A service that is ahead of its tables waits for them, and so does one that
        meets a standby, a database that is being restored, or one that does not know its role yet."""
        try:
            async with self.begin() as tx:
                at = (await tx.execute(text("SELECT version_num FROM alembic_version"))).scalar()
                await tx.execute(_WRITABLE)
        except UNREACHABLE as e:
            raise Later(f"the database is not ready ({reason(e)}); is it up and migrated (make migrate)?") from e
        if at is None or str(at) < HEAD:
            raise Later(f"the database is at version {at}, this service needs {HEAD}: make migrate")

    async def stop(self) -> None:
        await self._engine.dispose()

    async def unwell(self) -> str | None:
        try:
            async with self.begin() as tx:
                await tx.execute(_WRITABLE)
        except UNREACHABLE as e:
            return f"the database takes no writes: {reason(e)}"
        return None


class Connection(asyncpg.Connection):
    """One that notices a host that vanished, which answers nothing and refuses nothing."""

    def __init__(self, protocol: Any, transport: asyncio.Transport, *rest: Any) -> None:
        super().__init__(protocol, transport, *rest)
        wire: socket.socket = transport.get_extra_info("socket")
        if wire.family != socket.AF_UNIX:
            for level, option, value in KEEPALIVE:
                wire.setsockopt(level, option, value)


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


def _drop_the_untrusted(engine: AsyncEngine) -> None:
    """A connection that may not write takes the others along: they lead to the server that was the primary before."""

    @event.listens_for(engine.sync_engine, "handle_error")
    def failed(context: ExceptionContext) -> None:
        state = sqlstate(context.original_exception) or ""
        if not context.is_disconnect and state.startswith(UNTRUSTED):
            context.is_disconnect, context.invalidate_pool_on_disconnect = True, state == READ_ONLY


_NAMED = {"application_name": "steelyard"}
# After 10 s of silence the host is asked three times; and what was sent has to be acknowledged within 20 s.
_TCP = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    # Not every system has all of them.
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in _TCP.items() if hasattr(socket, name)),
]
# A standby refuses it, and so does a read-only transaction, although it locks no row.
_WRITABLE = text("SELECT FROM outbox LIMIT 0 FOR UPDATE")
_ENTER = text("SELECT set_config('steelyard.project', :project, true)")


def driver(url: str) -> str:
    """Any of the usual spellings, for SQLAlchemy on asyncpg."""
    return "postgresql+asyncpg://" + url.split("://", 1)[1]


def temporary(error: BaseException) -> bool:
    """Whether the same statement may work in a moment."""
    return away(error) or contended(error) or _stale(error) or (sqlstate(error) or "").startswith(TIMED_OUT)


def away(error: BaseException) -> bool:
    """Whether any statement would have met this error, and not the one that did. An error of the driver on a connection
    that lives, like too many parameters, is the statement's own."""
    if (state := sqlstate(error)) is not None:
        return state.startswith(AWAY)
    if isinstance(error, exc.DBAPIError):
        return error.connection_invalidated or isinstance(cause(error), asyncpg.TargetServerAttributeNotMatched)
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError | PermissionError)
    return isinstance(error, exc.TimeoutError | asyncpg.InterfaceError | asyncpg.TargetServerAttributeNotMatched)


def _stale(error: BaseException) -> bool:
    """A migration has changed what the statement was prepared for; the driver prepares it again."""
    return isinstance(getattr(error, "orig", None), AsyncAdapt_asyncpg_dbapi.InvalidCachedStatementError)


def contended(error: BaseException) -> bool:
    """Somebody else was in the way: it says nothing of the statement, nor of the database."""
    return (sqlstate(error) or "").startswith(CONTENDED)


def held_up(error: BaseException) -> bool:
    """Whether what these rows wait for may last, while other rows are free: a lock, or a time limit."""
    return (sqlstate(error) or "").startswith(("55P03", *TIMED_OUT))


def dumps(value: Any) -> str:
    return orjson.dumps(value, default=_plain).decode()


def _plain(value: Any) -> str:
    """asyncpg's ids are a kind of UUID that orjson does not know."""
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON")
