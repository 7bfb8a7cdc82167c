"""The API in this process, on a real Postgres with its own role, as a client with a key sees it."""

from collections.abc import AsyncIterator

import httpx
import pytest

from addresses import Urls
from steelyard.settings import Settings
from steelyard.store import access
from steelyard.store.database import Database
from steelyard_api.app import api


@pytest.fixture
def environ() -> dict[str, str]:
    """The providers' variables of this deployment; a test file that needs some has its own."""
    return {}


@pytest.fixture
async def http(urls: Urls, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """No headers yet: who asks is part of the test."""
    database = Database(urls.api)
    settings = Settings(api_database_url=urls.api, max_body_mb=2, judge_model=None, judge_base_url=None)
    transport = httpx.ASGITransport(app=api(settings, database, environ=environ), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://steelyard") as client:
        yield client
    await database.stop()


@pytest.fixture
async def key(api_database: Database) -> str:
    return await new_key(api_database, "acme")


async def new_key(database: Database, organization: str) -> str:
    async with database.begin() as tx:
        made, _ = await access.make_key(tx, organization, "tests")
    return made


@pytest.fixture
async def client(http: httpx.AsyncClient, key: str) -> httpx.AsyncClient:
    http.headers.update({"X-API-Key": key, "X-Project-Name": "p"})
    return http
