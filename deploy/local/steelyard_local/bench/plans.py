"""Why a request is slow: its statements as Postgres logged them, explained again as the API's role."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from steelyard_local.bench.connection import Connection
from steelyard_local.bench.stage import Stage

# Statements that are faster than this are not what makes a request slow.
WORTH_A_PLAN = 5.0
_ENTRY = re.compile(r"^\d{4}-\d\d-\d\d [\d:.]+ \w+ \[\d+\] ", re.MULTILINE)
_SAID = re.compile(r"LOG:  duration: ([\d.]+) ms  execute [^:]*: (.*)", re.DOTALL)
_VALUE = re.compile(r"\$\d+ = ('(?:[^']|'')*'|NULL)")


@dataclass(frozen=True)
class Statement:
    milliseconds: float
    sql: str
    values: Sequence[str]


async def show_plans(stage: Stage, env: Mapping[str, str], headers: Mapping[str, str], paths: Sequence[str]) -> None:
    """By a process of its own: what is logged is slower, and the figures are of one that is not."""
    await _log_statements(stage, env, "SET log_min_duration_statement = 0")
    line = await Connection.open(stage.api("api-2", env), headers)
    logged = {path: await _statements(stage, line, path) for path in paths}
    await line.close()
    await _log_statements(stage, env, "RESET log_min_duration_statement")
    project = await _project(env, headers["X-Project-Name"])
    for path, statements in logged.items():
        print(f"\n── GET {path}")
        for statement in statements:
            print(f"\n{statement.sql}\n{list(statement.values)}\n{statement.milliseconds:.1f} ms as logged")
            print(await _plan(env, project, statement))


async def _log_statements(stage: Stage, env: Mapping[str, str], how: str) -> None:
    """For connections that are made from now on; only a superuser may say so."""
    name = env["DATABASE_URL"].rpartition("/")[2]
    owner = await asyncpg.connect(stage.url(name))
    try:
        await owner.execute(f"ALTER DATABASE {name} {how}")
    finally:
        await owner.close()


async def _statements(stage: Stage, line: Connection, path: str) -> list[Statement]:
    """Of the second time: the first one plans and fills caches."""
    await line.ask("GET", path)
    begin = stage.log.stat().st_size
    await line.ask("GET", path)
    with stage.log.open() as log:
        log.seek(begin)
        return [s for s in _read(log.read()) if s.milliseconds >= WORTH_A_PLAN]


def _read(log: str) -> Iterator[Statement]:
    entries = _ENTRY.split(log)
    for entry, following in zip(entries, [*entries[1:], ""], strict=True):
        if (said := _SAID.match(entry)) and said[2].lstrip().upper().startswith(("SELECT", "WITH")):
            values = _VALUE.findall(following) if following.startswith("DETAIL:") else []
            yield Statement(float(said[1]), said[2].strip(), values)


async def _project(env: Mapping[str, str], name: str) -> UUID:
    owner = await asyncpg.connect(env["DATABASE_URL"])
    try:
        found: UUID = await owner.fetchval("SELECT id FROM projects WHERE name = $1", name)
        return found
    finally:
        await owner.close()


async def _plan(env: Mapping[str, str], project: UUID, statement: Statement) -> str:
    """Under row-level security, which the owner would not meet."""
    api: asyncpg.Connection[Any] = await asyncpg.connect(env["API_DATABASE_URL"])
    try:
        async with api.transaction():
            await api.execute("SELECT set_config('steelyard.project', $1, true)", str(project))
            await api.execute(f"PREPARE slow AS {statement.sql}")
            given = f"({', '.join(statement.values)})" if statement.values else ""
            lines = await api.fetch(f"EXPLAIN (ANALYZE, BUFFERS) EXECUTE slow{given}")
        return "\n".join(row[0] for row in lines)
    finally:
        await api.close()
