"""Databases that tests take and hand back: emptied of what was written, which costs milliseconds where making one and dropping
it costs most of a second. One that cannot be handed back as it was is dropped, and the next test gets a new one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import asyncpg

from addresses import Infra, Urls
from steelyard.store.migrate import migrate

# The roles belong to the whole Postgres cluster, which parallel sessions may share: one password for all of them.
ROLE_PASSWORD = "steelyard-tests"
# A connection that was closed is there for a moment longer.
PAUSE = 0.02
OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type IS DISTINCT FROM 'autovacuum worker'"""
# Pages and not rows are asked about: what was written and deleted again leaves pages, and a transaction rolled back too.
WRITTEN = """
SELECT string_agg(oid::regclass::text, ', ') FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version' AND pg_relation_size(oid) > 0"""
# What a test may change beside rows. A database that differs is not handed on.
SCHEMA = """
WITH tables AS (SELECT * FROM pg_class WHERE relnamespace = 'public'::regnamespace)
SELECT md5(string_agg(line, E'\n' ORDER BY line)) FROM (
    SELECT concat_ws(' ', relname, relkind, relacl, reloptions, relrowsecurity, relforcerowsecurity) AS line FROM tables
    UNION ALL SELECT concat_ws(' ', relname, attnum, attname, atttypid, atttypmod, attnotnull, attacl)
        FROM tables JOIN pg_attribute a ON attrelid = tables.oid WHERE attnum > 0
    UNION ALL SELECT concat_ws(' ', relname, adnum, pg_get_expr(adbin, adrelid))
        FROM tables JOIN pg_attrdef ON adrelid = tables.oid
    UNION ALL SELECT concat_ws(' ', relname, conname, convalidated) FROM tables JOIN pg_constraint ON conrelid = tables.oid
    UNION ALL SELECT concat_ws(' ', relname, indexrelid::regclass, indisvalid, indisunique)
        FROM tables JOIN pg_index ON indrelid = tables.oid
    UNION ALL SELECT concat_ws(' ', relname, tgname, tgenabled)
        FROM tables JOIN pg_trigger ON tgrelid = tables.oid WHERE NOT tgisinternal
    UNION ALL SELECT concat_ws(' ', relname, polname, polcmd, polroles) FROM tables JOIN pg_policy ON polrelid = tables.oid
    UNION ALL SELECT concat_ws(' ', proname, prosrc) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT 'version ' || version_num FROM alembic_version
    UNION ALL SELECT concat_ws(' ', setrole, setconfig) FROM pg_db_role_setting
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
) AS lines"""


@dataclass
class Databases:
    """Those of one session, copied from a migrated template."""

    infra: Infra
    template: str
    schema: str
    idle: list[str] = field(default_factory=list)
    patience: int = 200

    @classmethod
    async def open(cls, infra: Infra) -> "Databases":
        template = f"steelyard_template_{uuid4().hex[:8]}"
        await _execute(infra.owner_url, f"CREATE DATABASE {template}")
        urls = _urls(infra, template)
        await migrate(urls.owner, urls.api, urls.worker)
        async with _connected(urls.owner) as owner:
            if filled := await owner.fetchval(WRITTEN):
                raise AssertionError(f"a migration fills {filled}: databases handed back would lack these rows")
            return cls(infra, template, await owner.fetchval(SCHEMA))

    async def close(self) -> None:
        """The template too, which others copy from."""
        await self.drop_idle()
        await self._drop(self.template)

    async def drop_idle(self) -> None:
        while self.idle:
            await self._drop(self.idle.pop())

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Urls]:
        """Empty, and nobody else's."""
        name = self.idle.pop() if self.idle else await self._new()
        urls = _urls(self.infra, name)
        try:
            yield urls
        finally:
            if await self._as_it_was(urls):
                self.idle.append(name)
            else:
                await self._drop(name)

    async def _new(self) -> str:
        name = f"steelyard_{uuid4().hex[:12]}"
        await _execute(self.infra.owner_url, f"CREATE DATABASE {name} TEMPLATE {self.template}")
        return name

    async def _drop(self, name: str) -> None:
        await _execute(self.infra.owner_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def _as_it_was(self, urls: Urls) -> bool:
        """Whoever is still connected may write later, and may hold locks that emptying would wait for."""
        try:
            async with _connected(urls.owner) as owner:
                if not await _alone(owner, self.patience):
                    return False
                if written := await owner.fetchval(WRITTEN):
                    await owner.execute(f"TRUNCATE {written} RESTART IDENTITY CASCADE")
                return bool(await owner.fetchval(SCHEMA) == self.schema)
        except (asyncpg.PostgresError, OSError):
            return False


async def _alone(owner: asyncpg.Connection, patience: int) -> bool:
    for _ in range(patience):
        if not await owner.fetchval(OTHERS):
            return True
        await asyncio.sleep(PAUSE)
    return False


def _urls(infra: Infra, database: str) -> Urls:
    server, _, _ = infra.owner_url.rpartition("/")
    address = server.split("://", 1)[1].rpartition("@")[2]
    roles = (f"postgresql://steelyard_{role}:{ROLE_PASSWORD}@{address}/{database}" for role in ("api", "worker"))
    return Urls(f"{server}/{database}", *roles)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def _execute(url: str, statement: str) -> None:
    async with _connected(url) as connection:
        await connection.execute(statement)
