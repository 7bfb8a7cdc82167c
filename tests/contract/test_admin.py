"""The admin surface: organisations, projects and keys, made over HTTP by whoever holds the token."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from addresses import Urls
from steelyard.settings import Settings
from steelyard.store.database import Database
from steelyard_api.app import api

TOKEN = "the admin's token of this test"
ROUTES = (
    ("POST", "/admin/organizations"),
    ("GET", "/admin/organizations"),
    ("GET", "/admin/organizations/{id}"),
    ("POST", "/admin/organizations/{id}/projects"),
    ("GET", "/admin/organizations/{id}/projects"),
    ("POST", "/admin/organizations/{id}/keys"),
    ("GET", "/admin/organizations/{id}/keys"),
    ("POST", "/admin/keys/{id}/revoke"),
    ("PATCH", "/admin/keys/{id}"),
)


@pytest.fixture
async def admin(urls: Urls) -> AsyncIterator[httpx.AsyncClient]:
    database = Database(urls.api)
    app = api(Settings(admin_token=SecretStr(TOKEN)), database)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://steelyard") as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client
    await database.stop()


async def new_org(admin: httpx.AsyncClient, name: str = "acme", **more: Any) -> str:
    answer = await admin.post("/admin/organizations", json={"name": name, **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def new_key(admin: httpx.AsyncClient, org: str, **asked: Any) -> dict[str, Any]:
    answer = await admin.post(f"/admin/organizations/{org}/keys", json={"name": "ci", **asked})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def enter(admin: httpx.AsyncClient, key: str) -> int:
    """What a request with this key is answered."""
    headers = {"X-API-Key": key, "X-Project-Name": "web"}
    return (await admin.get("/traces", headers=headers)).status_code


@pytest.mark.parametrize(("method", "route"), ROUTES)
async def test_without_the_setting_there_is_no_such_route(http: httpx.AsyncClient, method: str, route: str) -> None:
    for token in ("", "None", TOKEN):
        headers = {"Authorization": f"Bearer {token}"}
        answer = await http.request(method, route.format(id=uuid4()), json={"name": "x"}, headers=headers)
        assert answer.status_code == 404


@pytest.mark.parametrize(("method", "route"), ROUTES)
async def test_without_the_token_nobody_administers(
    admin: httpx.AsyncClient, key: str, method: str, route: str
) -> None:
    for said in (b"", b"Bearer ", b"Bearer wrong", b"Basic YTpi", TOKEN.encode(), b"Bearer \xff\xfe"):
        headers = {b"Authorization": said, b"X-API-Key": key.encode()}
        answer = await admin.request(method, route.format(id=uuid4()), json={"name": "x"}, headers=headers)
        assert answer.status_code == 401 and "WWW-Authenticate" in answer.headers, said


async def test_from_nothing_to_a_key_that_works_and_back(admin: httpx.AsyncClient) -> None:
    org = await new_org(admin, "acme", external_id="org_acme")
    project = await admin.post(
        f"/admin/organizations/{org}/projects", json={"name": " web ", "description": "the shop"}
    )
    assert project.json() | {"name": "web", "description": "the shop", "org_id": org} == project.json()
    key = await new_key(admin, org)
    assert key["raw_key"].startswith("sk_sy_") and key["raw_key"].startswith(key["key_prefix"])
    assert key["is_active"] and key["expires_at"] is None and key["org_id"] == org
    assert await enter(admin, key["raw_key"]) == 200
    (shown,) = (await admin.get(f"/admin/organizations/{org}/keys")).json()["items"]
    assert shown == {name: value for name, value in key.items() if name != "raw_key"}
    assert (await admin.get(f"/admin/organizations/{org}/projects")).json()["total"] == 1, "the key found the project"
    revoked = await admin.post(f"/admin/keys/{key['id']}/revoke")
    assert revoked.status_code == 200 and not revoked.json()["is_active"]
    assert await enter(admin, key["raw_key"]) == 401
    again = await admin.post(f"/admin/keys/{key['id']}/revoke")
    assert again.json()["revoked_at"] == revoked.json()["revoked_at"]
    assert (await admin.get(f"/admin/organizations/{org}")).json()["external_id"] == "org_acme"


async def test_an_ended_key_lets_nobody_in_from_the_next_request_on(admin: httpx.AsyncClient) -> None:
    org = await new_org(admin)
    key = await new_key(admin, org, expires_in_days=1)
    assert await enter(admin, key["raw_key"]) == 200
    url, past = f"/admin/keys/{key['id']}", (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    ended = (await admin.patch(url, json={"expires_at": past})).json()
    assert not ended["is_active"] and await enter(admin, key["raw_key"]) == 401
    longer = (await admin.patch(url, json={"expires_at": None, "name": "deploy"})).json()
    assert longer["is_active"] and longer["name"] == "deploy" and await enter(admin, key["raw_key"]) == 200
    assert (await admin.patch(url, json={"name": None})).json() == longer


async def test_a_revoked_key_stays_revoked(admin: httpx.AsyncClient) -> None:
    key = await new_key(admin, await new_org(admin))
    await admin.post(f"/admin/keys/{key['id']}/revoke")
    answer = await admin.patch(f"/admin/keys/{key['id']}", json={"expires_at": "2099-01-01T00:00:00Z"})
    assert answer.status_code == 409 and "revoked" in answer.json()["detail"]
    assert await enter(admin, key["raw_key"]) == 401


@pytest.mark.parametrize(
    ("asked", "days"), [({"expiration": "90d"}, 90), ({"expiration": "never"}, None), ({"expires_in_days": 0.5}, 0.5)]
)
async def test_a_keys_end_is_said_in_days_too(
    admin: httpx.AsyncClient, asked: dict[str, Any], days: float | None
) -> None:
    key = await new_key(admin, await new_org(admin), **asked)
    if days is None:
        assert key["expires_at"] is None
    else:
        lasts = datetime.fromisoformat(key["expires_at"]) - datetime.fromisoformat(key["created_at"])
        assert abs(lasts - timedelta(days=days)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({}, "name"),
        ({"name": " "}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": "x", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "expires_in_days": 0}, "expires_in_days"),
        ({"name": "x", "expires_in_days": 1e9}, "expires_in_days"),
        ({"name": "x", "expiration": "30d"}, "expiration"),
        ({"name": "x", "expiration": "90d", "expires_in_days": 3}, "body"),
    ],
)
async def test_a_key_that_makes_no_sense_is_not_made(
    admin: httpx.AsyncClient, asked: dict[str, Any], field: str
) -> None:
    org = await new_org(admin)
    answer = await admin.post(f"/admin/organizations/{org}/keys", json=asked)
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == field, answer.text
    assert (await admin.get(f"/admin/organizations/{org}/keys")).json()["total"] == 0


async def test_what_is_taken_is_a_409_that_names_the_field(admin: httpx.AsyncClient) -> None:
    org = await new_org(admin, "acme", external_id="org_acme")
    for asked, fields in (
        ({"name": "acme"}, ["name"]),
        ({"name": "acme", "external_id": "org_acme"}, ["name", "external_id"]),
        ({"name": "globex", "external_id": "org_acme"}, ["external_id"]),
        ({"name": "globex", "external_id": org}, ["external_id"]),
    ):
        answer = await admin.post("/admin/organizations", json=asked)
        assert answer.status_code == 409 and [e["field"] for e in answer.json()["errors"]] == fields
    for status in (201, 409):
        answer = await admin.post(f"/admin/organizations/{org}/projects", json={"name": "web"})
        assert answer.status_code == status
    other = await new_org(admin, "globex")
    assert (await admin.post(f"/admin/organizations/{other}/projects", json={"name": "web"})).status_code == 201


async def test_lists_are_pages_newest_first(admin: httpx.AsyncClient) -> None:
    for name in ("a", "b", "c"):
        org = await new_org(admin, name)
        await admin.post(f"/admin/organizations/{org}/projects", json={"name": f"p-{name}"})
    page = (await admin.get("/admin/organizations", params={"limit": 2, "offset": 1})).json()
    assert ([o["name"] for o in page["items"]], page["total"], page["limit"], page["offset"]) == (["b", "a"], 3, 2, 1)
    projects = (await admin.get(f"/admin/organizations/{org}/projects")).json()
    assert [p["name"] for p in projects["items"]] == ["p-c"] and projects["total"] == 1


async def test_what_is_unknown_is_a_404(admin: httpx.AsyncClient) -> None:
    for method, route in ROUTES[2:]:
        answer = await admin.request(method, route.format(id=uuid4()), json={"name": "x"})
        assert answer.status_code == 404 and "not found" in answer.json()["detail"], route


async def test_words_that_cannot_be_stored_become_such_that_can(admin: httpx.AsyncClient) -> None:
    org = await new_org(admin, "ac\x00me", external_id="o\x00")
    read = (await admin.get(f"/admin/organizations/{org}")).json()
    assert (read["name"], read["external_id"]) == ("ac\ufffdme", "o\ufffd")


async def test_a_project_is_the_same_by_header_and_by_hand_in_any_script(admin: httpx.AsyncClient) -> None:
    org = await new_org(admin)
    made = (await admin.post(f"/admin/organizations/{org}/projects", json={"name": "Zürich-東京"})).json()
    key = (await new_key(admin, org))["raw_key"]
    named = await admin.get("/traces", headers={b"X-API-Key": key.encode(), b"X-Project-Name": "Zürich-東京".encode()})
    assert named.status_code == 200
    projects = (await admin.get(f"/admin/organizations/{org}/projects")).json()["items"]
    assert [p["id"] for p in projects] == [made["id"]]


async def test_the_admin_surface_is_described_in_words(admin: httpx.AsyncClient) -> None:
    page = (await admin.get("/openapi.json")).json()
    routes = {(m.upper(), p): r for p, item in page["paths"].items() if p.startswith("/admin") for m, r in item.items()}
    assert len(routes) == len(ROUTES) and all(r["summary"] for r in routes.values())
    assert all(r["security"] == [{"Admin": []}] for r in routes.values())
