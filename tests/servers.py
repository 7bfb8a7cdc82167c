"""A real Kafka and a real Postgres for a session."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka.admin import AIOKafkaAdminClient

from addresses import Infra
from containers import docker_answers, start_containers
from steelyard.events import dead, topics
from steelyard.kafka import Cluster
from steelyard_local.kafka import start_kafka
from steelyard_local.postgres import start_postgres
from steelyard_local.processes import Home


@contextmanager
def start_servers() -> Iterator[Infra]:
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


async def delete_topics(cluster: Cluster) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([cluster.topic(name) for t in topics() for name in (t, dead(t))])
    finally:
        await admin.close()
