"""A real Kafka and a real Postgres, once for the session; a topic prefix and a database of its own for each test."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import asyncpg
import pytest

from addresses import Infra, Urls
from containers import docker_answers, start_containers
from steelyard.kafka import Cluster, make_topics
from steelyard.store.database import Database
from steelyard.store.migrate import migrate
from steelyard_local.kafka import start_kafka
from steelyard_local.postgres import start_postgres
from steelyard_local.processes import Home

# The roles belong to the whole Postgres cluster, which parallel sessions may share: one password for all of them.
ROLE_PASSWORD = "steelyard-tests"


@pytest.fixture(scope="session")
def infra() -> Iterator[Infra]:
    """Given addresses first, then Docker where an engine answers, then plain processes: the same tests."""
    if "KAFKA_BOOTSTRAP" in os.environ and "DATABASE_URL" in os.environ:
        yield Infra(os.environ["KAFKA_BOOTSTRAP"], os.environ["DATABASE_URL"])
    elif docker_answers():
        with start_containers() as (bootstrap, url):
            yield Infra(bootstrap, url)
    else:
        home = Home.fresh("test")
        try:
            postgres = start_postgres(home)
            yield Infra(start_kafka(home, prompt_commits=True), postgres.url("postgres"))
        finally:
            home.close()


@pytest.fixture(scope="session")
def template(infra: Infra) -> Iterator[str]:
    """A migrated database that each test's own is copied from."""
    name = f"steelyard_template_{uuid4().hex[:8]}"

    async def make() -> None:
        await _sql(infra.owner_url, f"CREATE DATABASE {name}")
        urls = _urls(infra, name)
        await migrate(urls.owner, urls.api, urls.worker)

    asyncio.run(make())
    yield name
    asyncio.run(_sql(infra.owner_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def urls(infra: Infra, template: str) -> AsyncIterator[Urls]:
    name = f"steelyard_{uuid4().hex[:12]}"
    await _sql(infra.owner_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _urls(infra, name)
    await _sql(infra.owner_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(urls: Urls) -> AsyncIterator[Database]:
    """As the workers see it."""
    database = Database(urls.worker)
    yield database
    await database.stop()


@pytest.fixture
async def api_database(urls: Urls) -> AsyncIterator[Database]:
    """As the API sees it: one project at a time."""
    database = Database(urls.api)
    yield database
    await database.stop()


@pytest.fixture
def cluster(infra: Infra) -> Cluster:
    return Cluster(infra.bootstrap, prefix=f"t{uuid4().hex[:10]}.")


@pytest.fixture
async def topics(cluster: Cluster) -> Cluster:
    """The cluster with every topic made."""
    await make_topics(cluster)
    return cluster


def _urls(infra: Infra, database: str) -> Urls:
    server, _, _ = infra.owner_url.rpartition("/")
    address = server.split("://", 1)[1].rpartition("@")[2]
    roles = (f"postgresql://steelyard_{role}:{ROLE_PASSWORD}@{address}/{database}" for role in ("api", "worker"))
    return Urls(f"{server}/{database}", *roles)


async def _sql(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
