"""Who may see what: keys, projects, and other tenants' ids."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlmodel import SQLModel

from contract_helpers import new_trace
from steelyard.store import access, traces
from steelyard.store.database import Database
from steelyard.store.tables import TENANT_TABLES
from steelyard_api import keys

ROUTES = (
    "/traces",
    "/traces/{id}",
    "/evaluations/trace-metrics",
    "/evaluations/trace-runs",
    "/evaluations/trace-runs/{id}",
)


@pytest.mark.parametrize("route", ROUTES)
async def test_without_a_valid_key_nobody_gets_in(http: httpx.AsyncClient, route: str) -> None:
    url = route.format(id=uuid4())
    for key in (b"", b"sk_sy_guessed", b"\xff"):
        answer = await http.get(url, headers={b"X-Project-Name": b"p", b"X-API-Key": key})
        assert answer.status_code == 401 and answer.json()["detail"], key


async def test_a_project_name_is_needed(http: httpx.AsyncClient, key: str) -> None:
    answer = await http.get("/traces", headers={"X-API-Key": key})
    assert answer.status_code == 400 and "X-Project-Name" in answer.json()["detail"]


async def test_a_revoked_key_gets_no_further(client: httpx.AsyncClient, key: str, api_database: Database) -> None:
    assert (await client.get("/traces")).status_code == 200
    async with api_database.begin() as tx:
        assert await keys.revoke(tx, key[:12])
    answer = await client.get("/traces")
    assert answer.status_code == 401 and "revoked" in answer.json()["detail"]
    assert answer.headers["WWW-Authenticate"].startswith("ApiKey")


async def test_an_expired_key_gets_no_further(client: httpx.AsyncClient, api_database: Database) -> None:
    async with api_database.begin() as tx:
        key, _ = await access.make_key(tx, "acme", "short", datetime.now(UTC) - timedelta(seconds=1))
    answer = await client.get("/traces", headers={"X-API-Key": key})
    assert answer.status_code == 401 and "expired" in answer.json()["detail"]


@pytest.mark.parametrize("spelling", ["{prefix}", "{prefix}…", "{prefix}...", "{id}", "{key}"])
async def test_a_key_is_revoked_by_whatever_the_list_shows(api_database: Database, key: str, spelling: str) -> None:
    async with api_database.begin() as tx:
        (row,) = await access.keys(tx)
        said = spelling.format(key=key, **row)
        assert row["prefix"] in await keys.revoke(tx, said)
        assert await access.keys_like(tx, key) == []
        with pytest.raises(keys.Stopped, match="revoked already"):
            await keys.revoke(tx, said)


async def test_a_beginning_that_two_keys_share_revokes_neither(
    api_database: Database, client: httpx.AsyncClient, key: str
) -> None:
    async with api_database.begin() as tx:
        _, twin = await access.make_key(tx, "acme", "twin")
        await tx.execute(text("UPDATE api_keys SET prefix = :p WHERE id = :id"), {"p": key[:12], "id": twin})
        with pytest.raises(keys.Stopped, match=f"ambiguous(.|\n)*{twin}"):
            await keys.revoke(tx, key[:12])
        await keys.revoke(tx, str(twin))
    assert (await client.get("/traces")).status_code == 200


@pytest.mark.parametrize("said", ["{other}", "{random}", "not-an-id", "0", "\x7f"])
async def test_a_project_id_of_nobody_or_of_somebody_else_is_not_found(
    client: httpx.AsyncClient, api_database: Database, said: str
) -> None:
    async with api_database.begin() as tx:
        other = await access.make_organization(tx, "globex", None)
        assert other is not None
        project = await access.project_of(tx, other["id"], "p")
    headers = {"X-Project-ID": said.format(other=project, random=uuid4())}
    for name in ("p", ""):
        answer = await client.get("/traces", headers=headers | {"X-Project-Name": name})
        assert (answer.status_code, answer.json()["detail"]) == (404, "Project not found")


async def test_a_project_is_found_by_its_id_with_a_key_too(client: httpx.AsyncClient, database: Database) -> None:
    trace = await new_trace(client)
    async with database.begin() as tx:
        project = (await tx.execute(text("SELECT id FROM projects"))).scalar()
    del client.headers["X-Project-Name"]
    assert (await client.get(f"/traces/{trace}", headers={"X-Project-ID": str(project)})).status_code == 200


async def test_a_stranger_learns_nothing_about_projects(http: httpx.AsyncClient) -> None:
    for headers in ({}, {"X-Project-ID": "nonsense"}, {"X-Project-Name": "x" * 300}):
        answer = await http.get("/traces", headers={"X-API-Key": "sk_sy_guessed", **headers})
        assert answer.status_code == 401


async def test_a_key_is_stored_as_a_hash_alone(key: str, database: Database) -> None:
    async with database.begin() as tx:
        (row,) = (await tx.execute(text("SELECT * FROM api_keys"))).all()
    assert key not in str(row) and len(key) >= 40


async def test_sixteen_first_requests_at_once_make_one_project(client: httpx.AsyncClient, database: Database) -> None:
    answers = await asyncio.gather(*(client.get("/traces", headers={"X-Project-Name": "new"}) for _ in range(16)))
    assert {a.status_code for a in answers} == {200}
    async with database.begin() as tx:
        found = (await tx.execute(text("SELECT count(*) FROM projects WHERE name = 'new'"))).scalar()
    assert found == 1


async def test_another_projects_ids_are_as_unknown_as_random_ones(client: httpx.AsyncClient) -> None:
    trace = await new_trace(client)
    run = (await client.post("/evaluations/trace-runs", json={"metrics": ["coherence"]})).json()["id"]
    stranger = {"X-Project-Name": "stranger"}
    for url in (f"/traces/{trace}", f"/evaluations/trace-runs/{run}", f"/evaluations/trace-runs/{run}/scores"):
        assert (await client.get(url)).status_code == 200
        foreign = await client.get(url, headers=stranger)
        unknown = await client.get(url.replace(trace, str(uuid4())).replace(run, str(uuid4())), headers=stranger)
        assert (foreign.status_code, foreign.json()) == (404, unknown.json())
    assert (await client.get("/traces", headers=stranger)).json()["total"] == 0
    assert (await client.get("/evaluations/trace-runs", headers=stranger)).json()["total"] == 0


async def test_a_trace_of_another_project_cannot_be_overwritten(client: httpx.AsyncClient) -> None:
    trace = await new_trace(client, output="mine")
    theirs = {"trace_id": trace, "name": "stolen", "output": "theirs", "started_at": "2026-03-01T10:00:00Z"}
    answer = await client.post("/traces", json=theirs, headers={"X-Project-Name": "stranger"})
    assert answer.status_code == 404
    assert (await client.get(f"/traces/{trace}")).json()["output"] == "mine"


async def test_every_table_with_a_project_has_a_forced_policy(database: Database) -> None:
    with_project = {t.name for t in SQLModel.metadata.tables.values() if "project_id" in t.columns}
    assert with_project == set(TENANT_TABLES)
    async with database.begin() as tx:
        rows = await tx.execute(
            text(
                """
                SELECT relname FROM pg_class c WHERE relrowsecurity AND relforcerowsecurity
                AND (SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid) = 2
                """
            )
        )
        assert {r.relname for r in rows} == with_project
        owned = await tx.execute(text("SELECT 1 FROM pg_tables WHERE tableowner LIKE 'steelyard\\_%'"))
        assert owned.all() == []
        bypass = await tx.execute(
            text(
                "SELECT 1 FROM pg_roles WHERE rolname IN ('steelyard_api', 'steelyard_worker') "
                "AND NOT (rolsuper OR rolbypassrls)"
            )
        )
        assert len(bypass.all()) == 2


async def test_the_apis_role_sees_nothing_without_a_project(client: httpx.AsyncClient, api_database: Database) -> None:
    await new_trace(client)
    async with api_database.begin() as tx:
        assert (await tx.execute(text("SELECT count(*) FROM traces"))).scalar() == 0
    async with api_database.begin(uuid4()) as tx:
        assert (await tx.execute(text("SELECT count(*) FROM traces"))).scalar() == 0


async def test_a_span_of_another_project_is_none_of_its_traces(
    client: httpx.AsyncClient, api_database: Database, database: Database
) -> None:
    """Nobody can send one; but a foreign key looks past row-level security, so reading must not trust it."""
    trace, stranger = UUID(await new_trace(client)), {"X-Project-Name": "stranger"}
    other = (
        await client.post("/traces", json={"name": "x", "started_at": "2026-03-01T10:00:00Z"}, headers=stranger)
    ).json()
    theirs = UUID((await client.get(f"/traces/{other['trace_id']}", headers=stranger)).json()["project_id"])
    async with api_database.begin(theirs) as tx:
        intruder = """
            INSERT INTO spans (trace_id, span_id, project_id, name, kind, status, started_at)
            VALUES (:trace, :span, :project, 'intruder', 'OTHER', 'OK', now())
        """
        await tx.execute(text(intruder), {"trace": trace, "span": uuid4(), "project": theirs})
    async with database.begin() as tx:
        assert (await traces.load(tx, [trace]))[trace].spans == ()
