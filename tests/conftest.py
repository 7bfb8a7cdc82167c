"""A real Kafka and a real Postgres, once for the session; a topic prefix and a database of its own for each test."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from addresses import Infra, Urls
from containers import docker_answers, start_containers
from databases import Databases
from steelyard.kafka import Cluster, make_topics
from steelyard.store.database import Database
from steelyard_local.kafka import start_kafka
from steelyard_local.postgres import start_postgres
from steelyard_local.processes import Home


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
def databases(infra: Infra) -> Iterator[Databases]:
    made = asyncio.run(Databases.open(infra))
    yield made
    asyncio.run(made.close())


@pytest.fixture
async def urls(databases: Databases) -> AsyncIterator[Urls]:
    async with databases.one() as urls:
        yield urls


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
