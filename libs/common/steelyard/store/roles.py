"""Who may see which rows: what the database has is compared with what it should have, and only the difference is made.

A GRANT or a policy that is there already would cost a lock that every request waits for."""

import asyncio
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

import asyncpg
from sqlalchemy import Connection, text

from steelyard.store.tables import TENANT_TABLES

API, WORKER = "steelyard_api", "steelyard_worker"
# Nobody's locks outlive whoever holds them by more than this: a process that was stopped in the middle of a transaction (the relay
# waits up to 10 s for the broker in one), one that died under a long statement, one whose host vanished.
BOTH = {
    "idle_in_transaction_session_timeout": "15s",
    "client_connection_check_interval": "5s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
SETTINGS = {
    # The limit of a whole transaction catches who stands still while a statement is prepared: that is not called idle.
    # A request that waits for somebody's lock gives its connection back in time: it is answered with a 503 and repeated.
    API: {"lock_timeout": "8s", "statement_timeout": "1min", "transaction_timeout": "2min", **BOTH},
    # What works in pages takes seconds. Only finding what a run means may take minutes.
    WORKER: {"lock_timeout": "10s", "statement_timeout": "10min", "transaction_timeout": "15min", **BOTH},
}
ATTRIBUTES = {"rolcanlogin": "LOGIN", "rolsuper": "NOSUPERUSER", "rolbypassrls": "NOBYPASSRLS"}
ATTRIBUTES |= {"rolcreatedb": "NOCREATEDB", "rolcreaterole": "NOCREATEROLE"}
# The subquery makes it one look-up for a statement and not one for a row.
ONE_PROJECT = "project_id = (SELECT NULLIF(current_setting('steelyard.project', true), '')::uuid)"
POLICIES = {"one_project": (API, ONE_PROJECT), "every_project": (WORKER, "true")}


async def make_role(owner_url: str, name: str, url: str) -> None:
    """Roles belong to the whole cluster: two databases being migrated at once meet here, and both are right."""
    password = unquote(urlsplit(url).password or "")
    connection = await asyncpg.connect(owner_url)
    try:
        for _ in range(5):
            try:
                if statement := await _role(connection, owner_url, name, password):
                    await connection.execute(statement)
                return
            except (asyncpg.UniqueViolationError, asyncpg.DuplicateObjectError, asyncpg.InternalServerError):
                await asyncio.sleep(0.05)
    finally:
        await connection.close()
    raise RuntimeError(f"the role {name} could not be made or changed")


async def _role(owner: "asyncpg.Connection[asyncpg.Record]", url: str, name: str, password: str) -> str | None:
    """The statement that makes or mends it, if it needs one. Whether the password is right only a login can tell."""
    row = await owner.fetchrow(f"SELECT {', '.join(ATTRIBUTES)} FROM pg_roles WHERE rolname = $1", name)
    words = list(ATTRIBUTES.values())
    if row is not None:
        words = [word for column, word in ATTRIBUTES.items() if row[column] is word.startswith("NO")]
    if row is None or not row["rolcanlogin"] or not await _lets_in(url, name, password):
        words.append("PASSWORD " + str(await owner.fetchval("SELECT quote_literal($1::text)", password)))
    return f"{'ALTER' if row else 'CREATE'} ROLE {name} {' '.join(words)}" if words else None


async def _lets_in(owner_url: str, name: str, password: str) -> bool:
    try:
        connection = await asyncpg.connect(owner_url, user=name, password=password)
    except asyncpg.InvalidAuthorizationSpecificationError:
        return False
    await connection.close()
    return True


def missing(connection: Connection) -> list[list[str]]:
    """What is still to be done, in groups that belong into one transaction; of tables that are there."""
    by_table: dict[str, list[str]] = {}
    for table, statement in (*_grants(connection), *_row_security(connection), *_policies(connection)):
        by_table.setdefault(table, []).append(statement)
    return [*by_table.values(), *([s] for s in _schema(connection)), *([s] for s in _settings(connection))]


def _privileges() -> Iterator[tuple[str, str, str]]:
    tables = {
        (API, WORKER): {
            "alembic_version": "SELECT",
            "key_usage": "SELECT INSERT UPDATE DELETE",
            # UPDATE is what FOR UPDATE SKIP LOCKED asks for.
            "outbox": "SELECT INSERT UPDATE DELETE",
            **dict.fromkeys(TENANT_TABLES, "SELECT INSERT UPDATE DELETE"),
        },
        (API,): dict.fromkeys(("organizations", "projects", "api_keys"), "SELECT INSERT UPDATE"),
        (WORKER,): {
            "begun": "SELECT INSERT DELETE",
            **dict.fromkeys(("organizations", "projects", "api_keys"), "SELECT"),
        },
    }
    for roles, privileges in tables.items():
        for table, words in privileges.items():
            yield from ((role, table, word) for role in roles for word in words.split())


def _grants(connection: Connection) -> list[tuple[str, str]]:
    roles, tables, privileges = (list(column) for column in zip(*_privileges(), strict=True))
    rows = connection.execute(_LACKING, {"roles": roles, "tables": tables, "privileges": privileges})
    return [(r.name, f"GRANT {r.privileges} ON {r.name} TO {r.role}") for r in rows]


def _row_security(connection: Connection) -> list[tuple[str, str]]:
    rows = connection.execute(_UNSECURED, {"tables": list(TENANT_TABLES)})
    return [(r.name, f"ALTER TABLE {r.name} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY") for r in rows]


def _policies(connection: Connection) -> list[tuple[str, str]]:
    """Postgres rewrites an expression when it stores it, so what it would store is taken from a scratch table."""
    with connection.begin_nested() as scratch:
        connection.execute(text("CREATE TEMPORARY TABLE wanted_policies (project_id uuid)"))
        for name in POLICIES:
            connection.execute(text(_policy(name, "wanted_policies")))
        rows = connection.execute(_UNLIKE, {"tables": list(TENANT_TABLES)}).all()
        scratch.rollback()
    return [
        (r.name, s) for r in rows for s in (f"DROP POLICY IF EXISTS {r.policy} ON {r.name}", _policy(r.policy, r.name))
    ]


def _policy(name: str, table: str) -> str:
    role, condition = POLICIES[name]
    return f"CREATE POLICY {name} ON {table} TO {role} USING ({condition})"


def _schema(connection: Connection) -> list[str]:
    roles = [r for r in (API, WORKER) if not connection.scalar(_ENTERS, {"role": r})]
    return [f"GRANT USAGE ON SCHEMA public TO {role}" for role in roles]


def _settings(connection: Connection) -> list[str]:
    have = {(r.role, r.setting) for r in connection.execute(_SETTINGS, {"roles": [API, WORKER]})}
    return [
        f"ALTER ROLE {role} SET {name} = '{value}'"
        for role, settings in SETTINGS.items()
        for name, value in settings.items()
        if (role, f"{name}={value}") not in have
    ]


_LACKING = text(
    """
    SELECT role, name, string_agg(privilege, ', ') AS privileges
    FROM unnest(CAST(:roles AS text[]), CAST(:tables AS text[]), CAST(:privileges AS text[])) AS w (role, name, privilege)
    WHERE to_regclass(name) IS NOT NULL AND NOT has_table_privilege(role, to_regclass(name), privilege)
    GROUP BY role, name ORDER BY name, role
    """
)
_UNSECURED = text(
    """
    SELECT c.relname AS name FROM unnest(CAST(:tables AS text[])) AS w (name) JOIN pg_class c ON c.oid = to_regclass(w.name)
    WHERE NOT (c.relrowsecurity AND c.relforcerowsecurity)
    """
)
_UNLIKE = text(
    """
    SELECT c.relname AS name, w.polname AS policy
    FROM unnest(CAST(:tables AS text[])) AS t (name)
    JOIN pg_class c ON c.oid = to_regclass(t.name)
    CROSS JOIN pg_policy w
    WHERE w.polrelid = to_regclass('pg_temp.wanted_policies') AND NOT EXISTS (
        SELECT FROM pg_policy p
        WHERE p.polrelid = c.oid
            AND (p.polname, p.polcmd, p.polpermissive, p.polroles) = (w.polname, w.polcmd, w.polpermissive, w.polroles)
            AND pg_get_expr(p.polqual, p.polrelid) = pg_get_expr(w.polqual, w.polrelid)
            AND p.polwithcheck IS NULL
    )
    """
)
_ENTERS = text("SELECT has_schema_privilege(:role, 'public', 'USAGE')")
_SETTINGS = text(
    """
    SELECT r.rolname AS role, unnest(s.setconfig) AS setting
    FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole
    WHERE s.setdatabase = 0 AND r.rolname = ANY (CAST(:roles AS text[]))
    """
)
