"""Nobody gets in: every route, every id, every stranger; and behind the routes every table, by the database itself."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from addresses import Urls
from contract_helpers import new_trace
from contract_tenants import (
    PUBLIC,
    Named,
    Place,
    Settled,
    ids_in,
    placed,
    recipes,
    request,
    routes,
    send,
    told,
    undocumented,
    unknown,
    word,
)
from steelyard.settings import Settings
from steelyard.store import access
from steelyard.store.database import Database, Tx, sqlstate
from steelyard_api.app import api

SECRET = "a secret of this test that is long enough for its hash, 0123456789"
ISSUER, AUDIENCE, ADMIN = "https://id.example", "steelyard", "an admin token of this test"
STRANGERS = ("another project", "another organisation", "a namesake", "somebody with the project's id")
# Who somebody is, is known before a route is: each stranger by one of the two ways, and in make soak by the other one too.
OTHER_WAY = {("another project", "token"), ("another organisation", "key"), ("a namesake", "key")}
MATRIX = [
    pytest.param(kind, auth, marks=[pytest.mark.soak] if (kind, auth) in OTHER_WAY else [])
    for kind in STRANGERS
    for auth in ("key", "token")
]
NEW = """{route} is new to the tenant matrix. Say in `recipes` of tests/contract_tenants.py how a project asks for it about its
own things; its ids are found in the document and are asked about on behalf of strangers."""
NEW_WORD = """{route} takes something called {word!r}. If it names what belongs to a project, give the project one in `Settled`
of tests/contract_tenants.py under that word."""
# The contract says so of an ingest: a foreign id is a 404 where a free one becomes a trace.
TOLD_APART = {("POST /traces", ("body", "trace_id"))}


@dataclass(frozen=True)
class House:
    """The API, its database by three roles, and the one project whose things are wanted."""

    app: FastAPI
    http: httpx.AsyncClient
    api: Database
    workers: Database
    org: UUID
    project: UUID
    who: Named
    words: Named
    ids: frozenset[str]  # every id in its rows
    mark: str = "OWNER"


@dataclass(frozen=True)
class Stranger:
    who: Named
    words: Named
    project: UUID | None = None
    things: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A request of a recipe, in which some places name what the asker lacks, and all others what it has."""

    route: str
    variant: int
    places: tuple[Place, ...]
    every: tuple[Place, ...] = field(repr=False)

    @property
    def writes(self) -> bool:
        return not self.route.startswith("GET ")


@pytest.fixture
async def house(urls: Urls, api_database: Database, database: Database) -> AsyncIterator[House]:
    async with a_house(urls, api_database, api_database, database) as made:
        yield made


@asynccontextmanager
async def a_house(urls: Urls, behind: Database, database: Database, workers: Database) -> AsyncIterator[House]:
    """`behind` is what the routes work on."""
    app = api(settings(urls), behind)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://steelyard") as http:
        org = await new_organization(database)
        async with database.begin() as tx:
            key, _ = await access.new_key(tx, org, "tests", None)
            project = await access.project_of(tx, org, "home")
        who = {"X-API-Key": key, "X-Project-Name": "home"}
        words = await Settled(http, who, workers, House.mark)()
        await keys_used(http, who, words)
        async with workers.begin() as tx:
            ids = ids_in(str(await everything(tx, project)))
        yield House(app, http, database, workers, org, project, who, words, ids)


def settings(urls: Urls) -> Settings:
    bearer = {"jwt_secret": SecretStr(SECRET), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    rest = {"judge_model": None, "judge_base_url": None, "requests_per_minute": 0, "admin_token": SecretStr(ADMIN)}
    return Settings.model_validate({"api_database_url": urls.api, **bearer, **rest})


async def keys_used(http: httpx.AsyncClient, who: Named, words: Named) -> None:
    """The remembered answers that a stranger with the same Idempotency-Key must not hear."""
    key = {"header": {"Idempotency-Key": words["Idempotency-Key"]}}
    for route in ("POST /traces", "POST /evaluations/trace-runs", "POST /evaluations/trace-runs/{run_id}/retry"):
        (asked, *_) = recipes(words)[route]
        answer = await send(http, route, asked | key | {"path": {"run_id": words["run_id"]}}, who)
        assert answer.status_code == 202, answer.text


async def new_organization(database: Database) -> UUID:
    async with database.begin() as tx:
        made = await access.make_organization(tx, f"org {uuid4()}", None)
    assert made is not None
    return UUID(str(made["id"]))


async def a_stranger(house: House, kind: str, auth: str, settled: bool = True) -> Stranger:
    """One in a project of its own with things of its own: nothing is left over from an earlier question."""
    org = house.org if kind == "another project" else await new_organization(house.api)
    name = "home" if kind == "a namesake" else f"theirs {uuid4().hex}"
    who = await credentials(house.api, org, auth) | {"X-Project-Name": name}
    if kind == "somebody with the project's id":
        return Stranger(who | {"X-Project-ID": str(house.project)}, unknown(house.words))
    words = await Settled(house.http, who, house.workers, f"theirs-{uuid4().hex}")() if settled else house.words
    async with house.api.begin() as tx:
        project = await access.project_of(tx, org, name)
    if auth == "token":
        who = {**who, "X-Project-ID": str(project)} if kind != "a namesake" else who
    async with house.workers.begin() as tx:
        return Stranger(who, words, project, await everything(tx, project))


async def untouched(house: House, stranger: Stranger) -> bool:
    if stranger.project is None:
        return False
    async with house.workers.begin() as tx:
        return await everything(tx, stranger.project) == stranger.things


async def credentials(database: Database, org: UUID, auth: str) -> dict[str, str]:
    if auth == "token":
        return {"Authorization": f"Bearer {token(org)}"}
    async with database.begin() as tx:
        key, _ = await access.new_key(tx, org, "tests", None)
    return {"X-API-Key": key}


def token(org: UUID, secret: str = SECRET, seconds: float = 600) -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": time.time() + seconds, "org_id": str(org)}
    return jwt.encode(claims, secret, "HS256")


def cases(app: FastAPI, words: Named) -> Iterator[Case]:
    """Each place alone, then all of them, and none: with its own things a request works, or it would say nothing."""
    known = recipes(words)
    for route, places in routes(app).items():
        assert route in known, NEW.format(route=route)
        for at in places:
            assert word(at, route) in words, NEW_WORD.format(route=route, word=word(at, route))
        some = dict.fromkeys([(), *((at,) for at in places), tuple(places)])
        yield from (Case(route, n, chosen, tuple(places)) for n in range(len(known[route])) for chosen in some)


async def everything(tx: Tx, project: UUID) -> dict[str, list[str]]:
    """Every row of the project in every table, and what is announced about it."""
    found = dict[str, list[str]]()
    for table in await tables(tx):
        rows = await tx.execute(text(f"SELECT to_jsonb(t)::text FROM {table} t WHERE project_id = :p"), {"p": project})
        found[table] = sorted(r[0] for r in rows)
    rows = await tx.execute(text("SELECT to_jsonb(p)::text FROM projects p WHERE id = :p"), {"p": project})
    found["projects"] = [r[0] for r in rows]
    rows = await tx.execute(text("SELECT convert_from(value, 'utf8') FROM outbox ORDER BY id"))
    return found | {"outbox": [r[0] for r in rows if str(project) in r[0]]}


async def tables(tx: Tx) -> list[str]:
    """Out of the catalogue and not out of a list: a new table is among them."""
    rows = await tx.execute(
        text(
            """
            SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
            WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
                AND a.attname = 'project_id' AND NOT a.attisdropped ORDER BY 1
            """
        )
    )
    return [r.relname for r in rows]


async def all_of_it(house: House) -> dict[str, list[str]]:
    async with house.workers.begin() as tx:
        return await everything(tx, house.project)


def test_the_matrix_misses_no_route(house: House) -> None:
    assert undocumented(house.app) <= set(PUBLIC), "what the document hides is hidden from the matrix too"
    assert set(recipes(house.words)) <= set(routes(house.app)), "recipes of routes that are gone"
    assert len(list(cases(house.app, house.words))) > len(recipes(house.words))


@pytest.mark.parametrize(("kind", "auth"), MATRIX)
async def test_what_belongs_to_others_is_answered_like_what_does_not_exist(house: House, kind: str, auth: str) -> None:
    await assert_closed(house, kind, auth)


async def test_the_routes_keep_strangers_out_without_the_databases_help(
    urls: Urls, api_database: Database, database: Database
) -> None:
    """The owner of the tables is above row-level security: what it would hide is for the routes' own conditions here."""
    above = Database(urls.owner)
    async with a_house(urls, above, api_database, database) as house:
        await assert_closed(house, "another project", "key")
    await above.stop()


async def assert_closed(house: House, kind: str, auth: str) -> None:
    before, wrong = await all_of_it(house), list[str]()
    reader = await a_stranger(house, kind, auth)
    idle = list[Stranger]()
    for case in cases(house.app, reader.words):
        foreign = await ask(house, kind, auth, case, house.words, reader, idle)
        random = await ask(house, kind, auth, case, unknown(house.words), reader, idle) if case.places else foreign
        wrong += [f"{case}: {said}" for said in differences(house, kind, case, foreign, random)]
    assert not wrong, "\n\n".join(wrong)
    assert await all_of_it(house) == before


@dataclass(frozen=True)
class Answer:
    status: int
    body: str
    headers: Mapping[str, str]


async def ask(
    house: House, kind: str, auth: str, case: Case, named: Named, reader: Stranger, idle: list[Stranger]
) -> Answer:
    """Whoever changed something is not asked for again: the second question must not meet what the first one left. Most are
    refused and changed nothing, and settling another stranger takes a dozen requests."""
    one = reader if not case.writes else idle.pop() if idle else await a_stranger(house, kind, auth)
    asked = request(case.route, case.variant, case.every, one.words)
    for at in case.places:
        asked = placed(asked, at, named[word(at, case.route)])
    said = {word(at, case.route): named[word(at, case.route)] for at in case.places}
    answer = await send(house.http, case.route, asked, one.who)
    if case.writes and await untouched(house, one):
        idle.append(one)
    return Answer(*told(answer, said, one.words, house.ids))


def differences(house: House, kind: str, case: Case, foreign: Answer, random: Answer) -> Iterator[str]:
    if house.mark in foreign.body or not house.ids.isdisjoint(ids_in(foreign.body)):
        yield f"the answer shows what is not the asker's: {foreign}"
    if (wanted := expected(kind, case)) is not None and foreign.status not in wanted:
        yield f"answered {foreign}, and not with one of {wanted}"
    if foreign != random and not any((case.route, at) in TOLD_APART for at in case.places):
        yield f"told apart: foreign {foreign}, unknown {random}"


def expected(kind: str, case: Case) -> tuple[int, ...] | None:
    """What the contract says beyond that both are answered alike. Without a foreign id a request works: a recipe that
    is refused for another reason would be refused alike for every id."""
    if kind == "somebody with the project's id":
        return (404,)
    if not case.places:
        return (200, 201, 202, 204)
    in_path = any(at[0] == "path" for at in case.places)
    return (404,) if in_path or any((case.route, at) in TOLD_APART for at in case.places) else None


async def test_without_credentials_no_route_says_anything(house: House) -> None:
    before = await all_of_it(house)
    signed = {
        "wrong": token(house.org, SECRET[::-1]),
        "old": token(house.org, seconds=-60),
        "of nobody": token(uuid4()),
    }
    nobody: list[dict[str, str]] = [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "sk_sy_guessed"},
        {"Authorization": "Bearer x"},
    ]
    nobody += [{"Authorization": f"Bearer {said}"} for said in (*signed.values(), ADMIN)]
    for who in nobody:
        for route, places in routes(house.app).items():
            asked = request(route, 0, places, house.words)
            for project in ({"X-Project-Name": "home"}, {"X-Project-ID": str(house.project)}, {}):
                answer = await send(house.http, route, asked, who | project)
                assert answer.status_code == 401 and set(answer.json()) == {"detail"}, (route, who)
                assert "WWW-Authenticate" in answer.headers
    assert await all_of_it(house) == before


async def test_a_projects_credentials_open_nothing_of_the_administration(house: House) -> None:
    """No key, whosever, and no signed-in person: it knows every organisation."""
    administration = [
        (method.upper(), path.format(org_id=house.org, key_id=uuid4()))
        for path, methods in house.app.openapi()["paths"].items()
        for method in methods
        if path.startswith("/admin/")
    ]
    assert administration
    for who in (house.who, await credentials(house.api, house.org, "token"), {}):
        for method, path in administration:
            assert (await house.http.request(method, path, headers=who, json={})).status_code == 401, path


async def test_a_foreign_trace_cannot_be_sent_again(house: House) -> None:
    """Alone, in the middle of a group that is written together, and with a key that makes it a transaction of its own."""
    before = await all_of_it(house)
    stranger = await a_stranger(house, "another organisation", "key", settled=False)
    stolen = {
        "trace_id": house.words["trace_id"],
        "name": "stolen",
        "started_at": "2026-01-01T00:00:00Z",
        "output": "!",
    }
    mine = {"name": "mine", "started_at": "2026-01-01T00:00:00Z"}
    sent = [house.http.post("/traces", json=body, headers=stranger.who) for body in (mine, stolen, mine, stolen, mine)]
    answers = await asyncio.gather(*sent)
    alone = await house.http.post("/traces", json=stolen, headers={**stranger.who, "Idempotency-Key": "k"})
    assert [a.status_code for a in (*answers, alone)] == [202, 404, 202, 404, 202, 404]
    assert {a.text for a in (answers[1], answers[3], alone)} == {'{"detail":"Trace not found"}'}
    assert await all_of_it(house) == before
    listed = (await house.http.get("/traces", headers=stranger.who)).json()
    assert [t["name"] for t in listed["items"]] == ["mine"] * 3


async def test_a_program_scores_a_foreign_trace_for_itself_alone(house: House) -> None:
    """Parked like a score of a trace that nobody has yet, and never found by the trace, though it is sent again."""
    before = await all_of_it(house)
    stranger = await a_stranger(house, "another organisation", "key", settled=False)
    foreign, nobodys = house.words["trace_id"], str(uuid4())
    score = {"name": "theirs", "value": "0", "source": "PROGRAMMATIC"}
    said = [
        await house.http.post("/evaluations/trace-scores", json=score | {"trace_id": i}, headers=stranger.who)
        for i in (foreign, nobodys)
    ]
    assert [(a.status_code, a.json()["status"], a.json()["environment"]) for a in said] == [(201, "PENDING", None)] * 2
    assert await all_of_it(house) == before
    for trace in (foreign, nobodys):
        await sent_again(house.http, house.who, trace)
    theirs = (await house.http.get("/evaluations/trace-scores", headers=stranger.who)).json()["items"]
    assert {(s["trace_id"], s["status"]) for s in theirs} == {(foreign, "PENDING"), (nobodys, "PENDING")}
    assert (await house.http.get("/evaluations/trace-scores", headers=house.who)).json()["total"] == (
        len(before["trace_scores"])
    )
    for trace in (foreign, nobodys):
        found = await house.http.get(f"/evaluations/trace-scores/{trace}", headers=house.who)
        assert "theirs" not in {s["name"] for s in found.json()}


async def sent_again(http: httpx.AsyncClient, who: Named, trace: str) -> None:
    body = {"trace_id": trace, "name": "again", "started_at": "2026-03-01T10:00:00Z"}
    assert (await http.post("/traces", json=body, headers=dict(who))).status_code == 202


# Behind the routes: what the API's role may do by itself.


@dataclass(frozen=True)
class Neighbours:
    """Two projects that have something in every table, and the API's role in the second one."""

    house: House
    project: UUID

    async def refused(self, statement: str, **given: Any) -> bool:
        """Whether row-level security itself says no."""
        try:
            async with self.house.api.begin(self.project) as tx:
                await tx.execute(text(statement), given)
        except DBAPIError as e:
            return sqlstate(e) == "42501" and "row-level security" in str(e.orig)
        return False

    async def count(self, statement: str, **given: Any) -> int:
        async with self.house.api.begin(self.project) as tx:
            done = await tx.execute(text(statement), given)
            return int(done.scalar_one() if done.returns_rows else done.rowcount)


@pytest.fixture
async def neighbours(house: House) -> Neighbours:
    stranger = await a_stranger(house, "another project", "key")
    await keys_used(house.http, stranger.who, stranger.words)
    async with house.api.begin() as tx:
        project = await access.project_of(tx, house.org, stranger.who["X-Project-Name"])
    return Neighbours(house, project)


async def columns(tx: Tx, table: str) -> str:
    """Those that can be written."""
    rows = await tx.execute(
        text(
            """
            SELECT quote_ident(attname) AS name FROM pg_attribute WHERE attrelid = CAST(:table AS regclass) AND attnum > 0
                AND NOT attisdropped AND attgenerated = '' AND attidentity = ''
            """
        ),
        {"table": table},
    )
    return ", ".join(r.name for r in rows)


async def test_the_database_shows_and_gives_no_row_of_another_project(neighbours: Neighbours) -> None:
    house, before = neighbours.house, await all_of_it(neighbours.house)
    async with house.workers.begin() as tx:
        found = {table: await columns(tx, table) for table in await tables(tx)}
        rows = {table: (await everything_as_json(tx, table, house.project)) for table in found}
    for table, names in found.items():
        assert rows[table], f"the project has nothing in {table}: give it a row in tests/contract_tenants.py"
        assert await neighbours.count(f"SELECT count(*) FROM {table}") > 0, table
        assert await neighbours.count(f"SELECT count(*) FROM {table} WHERE project_id = :p", p=house.project) == 0, (
            table
        )
        assert (
            await neighbours.count(f"UPDATE {table} SET project_id = project_id WHERE project_id = :p", p=house.project)
            == 0
        )
        assert await neighbours.count(f"DELETE FROM {table} WHERE project_id = :p", p=house.project) == 0, table
        copy = (
            f"INSERT INTO {table} ({names}) SELECT {names} FROM json_populate_record(NULL::{table}, CAST(:row AS json))"
        )
        assert await neighbours.refused(copy, row=rows[table]), f"a row of another project can be put into {table}"
        assert await neighbours.refused(f"{copy} ON CONFLICT DO NOTHING", row=rows[table]), table
        given = f"UPDATE {table} SET project_id = :p"
        assert await neighbours.refused(given, p=house.project), f"a row of {table} can be given to another project"
    assert await all_of_it(house) == before


async def everything_as_json(tx: Tx, table: str, project: UUID) -> str | None:
    one = text(f"SELECT to_json(t)::text FROM {table} t WHERE project_id = :p LIMIT 1")
    return (await tx.execute(one, {"p": project})).scalar()


async def test_without_a_project_the_apis_role_sees_no_row(house: House) -> None:
    async with house.workers.begin() as tx:
        found = await tables(tx)
    for table in found:
        for project in (None, uuid4()):
            async with house.api.begin(project) as tx:
                assert (await tx.execute(text(f"SELECT count(*) FROM {table}"))).scalar() == 0, table


async def test_every_table_is_either_a_projects_and_forced_or_known_to_be_nobodys(house: House) -> None:
    async with house.workers.begin() as tx:
        with_project = set(await tables(tx))
        rows = await tx.execute(
            text(
                """
                SELECT relname, relrowsecurity AND relforcerowsecurity AS forced,
                    has_table_privilege('steelyard_api', oid, 'TRUNCATE, TRIGGER, REFERENCES') AS too_much,
                    has_table_privilege('steelyard_api', oid, 'SELECT, INSERT, UPDATE, DELETE') AS readable,
                    pg_has_role('steelyard_api', relowner, 'MEMBER') AS owned
                FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')
                """
            )
        )
        there = {r.relname: r for r in rows}
    nobodys = {"organizations", "projects", "api_keys", "key_usage", "outbox", "alembic_version"}
    workers = {"begun"}
    assert set(there) - with_project == nobodys | workers, "a table without project_id is open to every project"
    assert not any(there[name].readable for name in workers), "it is the workers' alone"
    assert {name for name in with_project if not there[name].forced} == set()
    assert {name for name, r in there.items() if r.too_much or r.owned} == set()


async def test_no_function_of_the_database_acts_for_its_owner(neighbours: Neighbours) -> None:
    """The triggers' functions run as whoever writes: called by hand they reach no further than their caller."""
    house, before = neighbours.house, await all_of_it(neighbours.house)
    async with house.workers.begin() as tx:
        found = await tx.execute(
            text("SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef")
        )
        assert found.all() == []
    given = {"p": [house.project], "s": [house.words["session_id"]]}
    with pytest.raises(DBAPIError, match="row-level security"):
        async with house.api.begin(neighbours.project) as tx:
            await tx.execute(text("SELECT sessions_counted_again(:p, :s)"), given)
    assert await all_of_it(house) == before


async def test_a_trace_of_another_project_changes_no_session_there(house: House) -> None:
    """The triggers count by project and name: the same name elsewhere is another session."""
    before = await all_of_it(house)
    stranger = await a_stranger(house, "another project", "key", settled=False)
    house.http.headers.update(stranger.who)
    trace = await new_trace(house.http, session_id=house.words["session_id"], tags=[house.words["tags"]])
    await house.http.patch(f"/traces/{trace}", json={"status": "ERROR"})
    session = (await house.http.get(f"/sessions/{house.words['session_id']}")).json()
    assert (session["trace_count"], session["has_error"]) == (1, True)
    assert await all_of_it(house) == before
    assert (await house.http.delete(f"/sessions/{house.words['session_id']}")).json() == {"deleted": 1}
    assert await all_of_it(house) == before
