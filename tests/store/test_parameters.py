"""However many values a statement carries, it carries them as arrays: the driver takes 32,767 parameters and no more."""

import ast
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import ColumnElement, select
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.sql.compiler import SQLCompiler

import steelyard
from addresses import Urls
from spine import new_project
from steelyard.filters import SessionRunFilters, TraceFilters
from steelyard.store import session_scores, sessions, traces
from steelyard.store.database import Database

POSTGRES = PGDialect_asyncpg()  # type: ignore[no-untyped-call]
COMMON = Path(steelyard.__file__).parent
MANY = tuple(f"tag {n}" for n in range(40_000))


def parameters(*where: ColumnElement[bool]) -> int:
    compiled = select(1).where(*where).compile(dialect=POSTGRES, compile_kwargs={"render_postcompile": True})
    assert isinstance(compiled, SQLCompiler)
    return len(compiled.positiontup or ())


@pytest.mark.parametrize("count", [1, 100])
def test_a_filter_with_twice_the_values_has_no_more_parameters(count: int) -> None:
    project, tags = uuid4(), MANY
    for once, twice in (
        (TraceFilters(tags=tags[:count]).sql(), TraceFilters(tags=tags[: 2 * count]).sql()),
        (TraceFilters(tags=tags[:count]).of_tags(), TraceFilters(tags=tags[: 2 * count]).of_tags()),
        (_of_sessions(tags[:count]).sql(project), _of_sessions(tags[: 2 * count]).sql(project)),
    ):
        assert parameters(*once) == parameters(*twice)


def _of_sessions(tags: tuple[str, ...]) -> sessions.SessionFilters:
    return sessions.SessionFilters.of_run(SessionRunFilters(tags=tags))


async def test_forty_thousand_values_are_executed_wherever_a_list_may_come_from_a_request(
    database: Database, urls: Urls
) -> None:
    project, ids = await new_project(urls), [uuid4() for _ in MANY]
    async with database.begin() as tx:
        assert (await traces.matching(tx, project, TraceFilters(tags=MANY)))[0] == 0
        assert await traces.page(tx, project, TraceFilters(tags=MANY), "started_at", True, 10, 0) == ([], 0)
        assert await traces.page(tx, project, TraceFilters(tags=MANY, name="x"), "name", True, 10, 0) == ([], 0)
        assert await traces.sizes(tx, project, None, ids, 10) == (0, 0)
        assert (await sessions.matching(tx, project, SessionRunFilters(tags=MANY)))[0] == 0
        found = await session_scores.page(tx, project, session_scores.SessionScoreFilters(), 40_000, 0)
        assert found == ([], 0)


def test_no_statement_spells_a_list_of_values_out() -> None:
    """`x IN (…)` over values is a parameter for each; over a query, or over fixed words, it is none."""
    spelled = [
        f"{path.name}:{call.lineno}"
        for path in sorted([*COMMON.glob("store/*.py"), COMMON / "filters.py"])
        for function in _functions(path)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ("in_", "not_in")
        if not _fixed(call.args[0]) and not _query(call.args[0], function)
    ]
    assert not spelled, "any_(cast(values, ARRAY(…))) is one parameter"
    assert not [path.name for path in COMMON.glob("store/*.py") if "expanding=" in path.read_text()]


def _functions(path: Path) -> list[ast.AST]:
    tree = ast.parse(path.read_text())
    inner = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [*inner, *(n for n in tree.body if not isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef))]


def _fixed(argument: ast.expr) -> bool:
    return isinstance(argument, ast.Tuple) and all(isinstance(e, ast.Constant) for e in argument.elts)


def _query(argument: ast.expr, function: ast.AST) -> bool:
    """A `select(…)`, or a name that is one in the same function."""
    if isinstance(argument, ast.Call):
        return ast.unparse(argument).startswith("select(")
    return isinstance(argument, ast.Name) and any(
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == argument.id
        and ast.unparse(node.value).startswith("select(")
        for node in ast.walk(function)
    )
