"""What a bench stands on: a Postgres of its own and API processes. Nothing that is measured asks Kafka: none runs."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from steelyard_local.postgres import Postgres, start_postgres
from steelyard_local.processes import LOCAL, Home, free_port, reap, stopped_by_signals
from steelyard_local.stack import Services, database_urls, environment, in_database, new_key, run_module

KEPT = LOCAL / "bench"
ORGANIZATION = "bench"


@dataclass
class Stage:
    home: Home
    postgres: Postgres
    services: list[Services] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.home.children["postgres"].log

    def url(self, database: str) -> str:
        return self.postgres.url(database)

    async def database(self, name: str) -> dict[str, str]:
        """Made and migrated if it is not there; the environment of a service that uses it."""
        owner = await asyncpg.connect(self.url("postgres"))
        try:
            if not await owner.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
                await owner.execute(f"CREATE DATABASE {name}")
        finally:
            await owner.close()
        # A port that nobody listens on: the relay asks it once a second and is refused.
        nowhere = {"KAFKA_BOOTSTRAP": f"127.0.0.1:{free_port()}"}
        env = environment() | database_urls(in_database(self.url("postgres"), name), {}) | nowhere
        run_module("steelyard.store.migrate", env=env)
        return env

    def api(self, name: str, env: Mapping[str, str]) -> str:
        """The address of an API process, ready."""
        services = Services(self.home, env)
        services.start(name)
        self.services.append(services)
        return services.url(name)

    def key(self, env: Mapping[str, str]) -> str:
        return new_key(ORGANIZATION, env)


@contextmanager
def staged(*, keep: bool = False, durable: bool = False) -> Iterator[Stage]:
    """Everything ends with it, however it ends; what is kept is its data, in .local/bench."""
    with stopped_by_signals():
        if keep:
            reap(KEPT / "owner.json")
        home = Home.at(KEPT) if keep else Home.fresh("bench")
        try:
            yield Stage(home, start_postgres(home, durable=durable))
        finally:
            home.close(keep=keep)


class Clock:
    """Seconds since the beginning, before each line: a bench that says nothing for a minute looks dead."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {line}", flush=True)
