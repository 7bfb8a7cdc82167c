"""A real Kafka and a real Postgres, once for the session; a topic prefix and a database of its own for each test."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest

from addresses import Infra, Urls
from databases import Databases
from servers import delete_topics, start_servers
from steelyard.kafka import Cluster, make_topics
from steelyard.store.database import Database

Servers = tuple[str, str, str, str]  # Kafka, Postgres, the template and its schema
LONG = ("test_schemathesis.py", "test_hostile_corpus.py", "test_processes.py")
SHARED = pytest.StashKey[Servers]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Of several processes (pytest -n) the first one starts the servers, once, and says to the others where they are."""
    config = node.config
    if SHARED not in config.stash:
        servers = ExitStack()
        config.add_cleanup(servers.close)
        infra = servers.enter_context(start_servers())
        databases = asyncio.run(Databases.open(infra))
        servers.callback(lambda: asyncio.run(databases.close()))
        config.stash[SHARED] = (infra.bootstrap, infra.owner_url, databases.template, databases.schema)
    node.workerinput["servers"] = config.stash[SHARED]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: one that began last would be waited for alone."""
    items.sort(key=lambda item: ("faults" not in item.keywords, item.path.name not in LONG))


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest) -> Servers | None:
    return getattr(request.config, "workerinput", {}).get("servers")


@pytest.fixture(scope="session")
def infra(shared: Servers | None) -> Iterator[Infra]:
    if shared:
        yield Infra(*shared[:2])
        return
    with start_servers() as infra:
        yield infra


@pytest.fixture(scope="session")
def databases(infra: Infra, shared: Servers | None) -> Iterator[Databases]:
    if shared:
        mine = Databases(infra, *shared[2:])
        yield mine
        asyncio.run(mine.drop_idle())
        return
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
async def topics(cluster: Cluster) -> AsyncIterator[Cluster]:
    """The cluster with every topic made. They go with their test: whoever asks for all topics reads those of all tests."""
    await make_topics(cluster)
    yield cluster
    await delete_topics(cluster)
