"""The services as processes, and the model that they ask."""

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from addresses import Infra, Urls
from forkserver import home_of_forks
from steelyard.kafka import Cluster
from steelyard.store.database import Database
from steelyard_local.processes import Home, free_port
from steelyard_local.stack import Services
from system import SLOTS, System

TESTS = Path(__file__).parents[1]


@pytest.fixture
def home() -> Iterator[Home]:
    made = home_of_forks("flow")
    yield made
    made.close()


@pytest.fixture
async def system(infra: Infra, urls: Urls, topics: Cluster, database: Database, home: Home) -> AsyncIterator[System]:
    port = free_port()
    command = [sys.executable, "-m", "stub_model", "--port", str(port), "--delay", "0.3"]
    home.start("stub", command, env=os.environ | {"PYTHONPATH": str(TESTS)})
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")} | urls.environment()
    environment |= {
        "KAFKA_BOOTSTRAP": infra.bootstrap,
        "TOPIC_PREFIX": topics.prefix,
        "KAFKA_SESSION_SECONDS": "6",
        "REDISPATCH_SECONDS": "4",
        "JUDGE_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "JUDGE_MODEL": "openai/stub",
        "JUDGE_SLOTS": str(SLOTS),
        # Loading the sentence encoder is two seconds of CPU for each judge, and tests/metrics has tests of it.
        "EMBEDDING_MODEL": "local/ngram-hash-v1",
    }
    yield System(Services(home, environment), home, database, f"http://127.0.0.1:{port}")
