"""`python -m steelyard.store.migrate`: the tables, the two roles, and who may see which rows."""

import asyncio
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from steelyard.reasons import reason, sqlstate
from steelyard.settings import Settings, from_environment
from steelyard.store.database import driver
from steelyard.store.tables import TENANT_TABLES

API, WORKER = "steelyard_api", "steelyard_worker"
# Two migrations of one database at once: the second waits and finds nothing to do.
LOCK = 5_157_201


async def migrate(owner_url: str, api_url: str, worker_url: str) -> None:
    """Repeatable: what is there stays, what is missing is made."""
    engine = create_async_engine(driver(owner_url), hide_parameters=True)
    try:
        for name, url in ((API, api_url), (WORKER, worker_url)):
            await _role(owner_url, name, unquote(urlsplit(url).password or ""))
        async with engine.begin() as tx:
            await tx.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            await tx.run_sync(_upgrade)
            for statement in grants():
                await tx.execute(text(statement))
    finally:
        await engine.dispose()


def config(connection: Connection) -> Config:
    c = Config(attributes={"connection": connection})
    c.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return c


def _upgrade(connection: Connection) -> None:
    command.upgrade(config(connection), "head")


async def _role(owner_url: str, name: str, password: str) -> None:
    """Roles belong to the whole cluster: two databases being migrated at once meet here, and both are right."""
    connection = await asyncpg.connect(owner_url)
    try:
        secret = await connection.fetchval("SELECT quote_literal($1::text)", password)
        for _ in range(5):
            exists = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name)
            verb = "ALTER" if exists else "CREATE"
            try:
                await connection.execute(
                    f"{verb} ROLE {name} LOGIN PASSWORD {secret} NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE"
                )
                return
            except (asyncpg.UniqueViolationError, asyncpg.DuplicateObjectError, asyncpg.InternalServerError):
                await asyncio.sleep(0.05)
    finally:
        await connection.close()
    raise RuntimeError(f"the role {name} could not be made or changed")


def grants() -> list[str]:
    """Row-level security behind the services' own filters: the API sees one project, the workers every one."""
    both = f"{API}, {WORKER}"
    said = [
        f"GRANT USAGE ON SCHEMA public TO {both}",
        # A request that waits for somebody's lock gives its connection back in time: it is answered with a 503 and repeated.
        f"ALTER ROLE {API} SET lock_timeout = '8s'",
        f"GRANT SELECT ON alembic_version TO {both}",
        f"GRANT SELECT, INSERT, UPDATE ON organizations, projects, api_keys TO {API}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON key_usage TO {both}",
        f"GRANT SELECT ON organizations, projects, api_keys TO {WORKER}",
        f"GRANT SELECT, INSERT, DELETE ON outbox TO {both}",
        # UPDATE is what FOR UPDATE SKIP LOCKED asks for.
        f"GRANT UPDATE ON outbox TO {both}",
    ]
    for table in TENANT_TABLES:
        said += [
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {both}",
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
            f"DROP POLICY IF EXISTS one_project ON {table}",
            f"CREATE POLICY one_project ON {table} TO {API} "
            # The subquery makes it one look-up for a statement and not one for a row.
            "USING (project_id = (SELECT NULLIF(current_setting('steelyard.project', true), '')::uuid))",
            f"DROP POLICY IF EXISTS every_project ON {table}",
            f"CREATE POLICY every_project ON {table} TO {WORKER} USING (true)",
        ]
    return said


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
    sys.stdout.write("migrate: the database is up to date\n")


if __name__ == "__main__":
    main()
