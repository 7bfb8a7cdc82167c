"""Kafka and Postgres by testcontainers, where a Docker engine answers."""

from collections.abc import Iterator
from contextlib import contextmanager


def docker_answers() -> bool:
    try:
        import docker

        docker.from_env(timeout=3).ping()
    except Exception:
        return False
    return True


@contextmanager
def start_containers() -> Iterator[tuple[str, str]]:
    """The bootstrap address, and the owner's URL of a database."""
    from testcontainers.kafka import KafkaContainer
    from testcontainers.postgres import PostgresContainer

    postgres = PostgresContainer("postgres:18-alpine", username="steelyard", password="steelyard", dbname="postgres")
    with KafkaContainer("confluentinc/cp-kafka:7.9.0").with_kraft() as kafka, postgres:
        host, port = postgres.get_container_host_ip(), postgres.get_exposed_port(5432)
        yield kafka.get_bootstrap_server(), f"postgresql://steelyard:steelyard@{host}:{port}/postgres"
