"""The whole system on this machine: Kafka, Postgres, and the services as processes that come and go by name."""

import asyncio
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient

from steelyard_local.client import ready
from steelyard_local.kafka import start_kafka
from steelyard_local.postgres import start_postgres
from steelyard_local.processes import Child, Home, LaunchFailed

KINDS = ("api", "resolver", "judge", "aggregator", "scheduler")
INFRASTRUCTURE = ("kafka", "postgres")
# How many processes of a service run is said by the plural of its name.
COUNTS = {kind: f"{kind}s".upper() for kind in KINDS}
Echo = Callable[[str, str], None]
# A process that lives and is not ready is waited for, and named once a minute: on a busy machine a judge takes longer than one.
LATE, GIVEN_UP = 60.0, 900.0


class Stack:
    """Infrastructure and services together, as `make demo` and `make dev` run them; `start` may run in a thread."""

    def __init__(
        self,
        home: Home,
        environ: Mapping[str, str],
        say: Callable[[str], None],
        *,
        durable: bool = False,
        organization: str | None = None,
        echo: Echo | None = None,
    ) -> None:
        """A durable stack keeps its data and a given database is used as it is; else a scratch one is made in it."""
        self.home, self.say, self.durable = home, say, durable
        self.key: str | None = None
        self._organization, self._scratch = organization, None if durable else f"steelyard_{secrets.token_hex(4)}"
        self._environ = dict(environ)
        self._environ.setdefault("DEPLOYMENT_SECRET", _secret(home))
        self._given = {"KAFKA_BOOTSTRAP", "DATABASE_URL"} <= environ.keys()
        if self._given and self._scratch:
            self._environ["TOPIC_PREFIX"] = f"{environ.get('TOPIC_PREFIX', '')}{self._scratch}."
        self.env: dict[str, str] = {}
        self.services = Services(home, {}, echo, say)

    def start(self, names: Iterable[str], api_port: int | None = None) -> None:
        """Kafka with its topics beside Postgres with its tables; then the services, and a key while they wake up."""
        self._warn_of_half_given()
        with ThreadPoolExecutor(2) as pool:
            broker, database = pool.submit(self._broker), pool.submit(self._database)
            bootstrap, urls = broker.result(), database.result()
            self.env = self._environ | urls | {"KAFKA_BOOTSTRAP": bootstrap}
            topics = pool.submit(run_module, "steelyard.topics", env=self.env)
            run_module("steelyard.store.migrate", env=self.env)
            topics.result()
            self.say("the tables and topics are made")
            self.services.env = self.env
            self.services.launch(*names, api_port=api_port)
            key = pool.submit(new_key, self._organization, self.env) if self._organization else None
            self.services.wait(*names)
            self.key = key.result() if key else None

    def start_one(self, name: str) -> None:
        """One that was stopped, killed or is new, at the address it had; the others go on."""
        if (child := self.home.children.get(name)) and child.alive():
            raise LaunchFailed(f"{name} is running already, pid {child.pid}.")
        if name == "kafka":
            start_kafka(self.home)
        elif name == "postgres":
            start_postgres(self.home, durable=self.durable)
        else:
            self.services.launch(name)

    def close(self, starting: "Future[None] | None" = None) -> None:
        """Services first, then what they stand on; a start that is still going on fails by it and is waited for."""
        self.home.closing = True
        self.services.stop(*self.services.names())
        if self._given and self._scratch and self.env:
            _drop(self.env, self._environ["DATABASE_URL"])
        self.home.stop(*[name for name in self.home.children if name not in INFRASTRUCTURE])
        self.home.stop(*INFRASTRUCTURE)
        if starting is not None:
            starting.exception(timeout=60)
        self.home.close(keep=self.durable)

    def _broker(self) -> str:
        if self._given:
            self.say(f"Kafka and Postgres are the given ones, {self._environ['KAFKA_BOOTSTRAP']} and DATABASE_URL")
            return self._environ["KAFKA_BOOTSTRAP"]
        bootstrap = start_kafka(self.home)
        self.say(f"Kafka listens on {bootstrap}")
        return bootstrap

    def _database(self) -> dict[str, str]:
        if self._given and self._scratch is None:
            return database_urls(self._environ["DATABASE_URL"], self._environ)
        if self._given:
            owner = self._environ["DATABASE_URL"]
        else:
            postgres = start_postgres(self.home, durable=self.durable)
            self.say(f"Postgres listens on 127.0.0.1:{postgres.port}")
            owner = postgres.url("postgres")
        name = self._scratch or "steelyard"
        asyncio.run(_make_database(owner, name))
        return database_urls(in_database(owner, name), self._environ if self._given else {})

    def _warn_of_half_given(self) -> None:
        given = {"KAFKA_BOOTSTRAP", "DATABASE_URL"} & self._environ.keys()
        if len(given) == 1:
            self.say(f"{given.pop()} is not used: KAFKA_BOOTSTRAP and DATABASE_URL count only when both are set")


class Services:
    """Processes of the five services, named judge-1, judge-2, …; the environment is all that they are told."""

    def __init__(
        self, home: Home, env: Mapping[str, str], echo: Echo | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        self.home, self.env, self._echo, self._say = home, dict(env), echo, say
        self._ports: dict[str, int] = {}

    def start(self, *names: str) -> None:
        self.launch(*names)
        self.wait(*names)

    def launch(self, *names: str, api_port: int | None = None) -> None:
        """Without waiting. The first API takes `api_port` where that one is free."""
        for name in names:
            port = self.home.port(name, api_port if name == "api-1" else None)
            self._ports[name] = port
            argv = [sys.executable, "-m", f"steelyard_{kind_of(name)}"]
            self.home.start(name, argv, env=self.env | {"HTTP_PORT": str(port)}, echo=self._echo)

    def wait(self, *names: str, late: float = LATE, seconds: float = GIVEN_UP) -> None:
        """Until each says that it is ready; the one that ended, or never says so, is named with its last words."""
        began, patience = time.monotonic(), late
        for name in names:
            while (why := ready(self.url(name))) is not None:
                child = self.home.children.get(name)
                if child is None or not child.alive():
                    raise LaunchFailed(f"{name} ended while starting. Its last words:\n{child.tail() if child else ''}")
                if (passed := time.monotonic() - began) > seconds:
                    raise LaunchFailed(f"{name} was not ready after {seconds:.0f} s: {why}\n{child.tail()}")
                if self._say and passed > patience:
                    patience = passed + late
                    self._say(f"{name} is not ready after {passed:.0f} s and is waited for: {why}")
                time.sleep(0.05)

    def stop(self, *names: str) -> None:
        """SIGTERM to all, then patience with each: work in flight is finished or handed back."""
        self.home.stop(*names)

    def kill(self, *names: str) -> None:
        self.home.kill(*names)

    def restart(self, *names: str) -> None:
        self.stop(*names)
        self.start(*names)

    def close(self) -> None:
        self.stop(*self.names())

    def names(self) -> list[str]:
        return [name for name in list(self.home.children) if name in self._ports]

    def child(self, name: str) -> Child:
        return self.home.children[name]

    def dead(self) -> list[Child]:
        """Those that ended without having been asked to."""
        return [child for child in list(self.home.children.values()) if not child.alive()]

    def url(self, name: str) -> str:
        host = self.env.get("HTTP_HOST") or "127.0.0.1"
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{self._ports[name]}"

    @property
    def base_url(self) -> str:
        return self.url("api-1")

    def new_key(self, organization: str) -> str:
        return new_key(organization, self.env)


@dataclass(frozen=True)
class Processes:
    """How many of each service, from JUDGES=2 RESOLVERS=2 …"""

    counts: Mapping[str, int]

    @classmethod
    def wanted(cls, environ: Mapping[str, str], judges: int = 1) -> "Processes":
        counts = {}
        for kind, variable in COUNTS.items():
            said = environ.get(variable) or str(judges if kind == "judge" else 1)
            if not said.isdecimal() or int(said) > 50:
                raise LaunchFailed(f"{variable}={said}: say how many processes of the {kind} shall run, at most 50.")
            counts[kind] = int(said)
        if not counts["api"]:
            raise LaunchFailed("APIS=0: without an API nobody can send or read anything.")
        return cls(counts)

    def names(self) -> list[str]:
        return [f"{kind}-{n}" for kind, count in self.counts.items() for n in range(1, count + 1)]


def kind_of(name: str) -> str:
    kind, _, number = name.rpartition("-")
    if kind not in KINDS or not number.isdecimal():
        raise LaunchFailed(f"there is no process '{name}': services are {', '.join(KINDS)}, as in judge-1.")
    return kind


def new_key(organization: str, env: Mapping[str, str]) -> str:
    said = run_module("steelyard_api.keys", "create", "--org", organization, env=env)
    return said.split()[-1]


def run_module(module: str, *arguments: str, env: Mapping[str, str]) -> str:
    """What it printed; what it complained about if it failed."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], env=dict(env), capture_output=True, text=True)
    if done.returncode:
        raise LaunchFailed(f"python -m {module} failed:\n{(done.stderr or done.stdout).strip()[-3000:]}")
    return done.stdout


def in_background(work: Callable[[], None]) -> "Future[None]":
    """A signal interrupts whoever waits for the work and never the work itself: no child is started and forgotten."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


def database_urls(owner: str, given: Mapping[str, str]) -> dict[str, str]:
    """The owner's URL, and those of the two roles: as given, else on the same server with the owner's password."""
    parts = urlsplit(owner)
    password = quote(unquote(parts.password or "steelyard"), safe="")
    urls = {"DATABASE_URL": owner}
    for role in ("api", "worker"):
        variable = f"{role.upper()}_DATABASE_URL"
        netloc = f"steelyard_{role}:{password}@{parts.netloc.rpartition('@')[2]}"
        default = urlunsplit(parts._replace(netloc=netloc))
        urls[variable] = in_database(given.get(variable, default), parts.path.lstrip("/"))
    return urls


def in_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def _make_database(owner: str, name: str) -> None:
    connection = await asyncpg.connect(owner)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()


def _drop(env: Mapping[str, str], owner: str) -> None:
    """Servers that were lent are given back without our database and topics; what cannot be removed is said."""

    async def drop() -> None:
        connection = await asyncpg.connect(owner)
        name = urlsplit(env["DATABASE_URL"]).path.lstrip("/")
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.close()
        admin = AIOKafkaAdminClient(bootstrap_servers=env["KAFKA_BOOTSTRAP"])
        await admin.start()
        ours = [topic for topic in await admin.list_topics() if topic.startswith(env["TOPIC_PREFIX"])]
        await admin.delete_topics(ours)
        await admin.close()

    try:
        asyncio.run(drop())
    except Exception as e:
        print(f"the scratch database or topics {env['TOPIC_PREFIX']}* could not be removed: {e}", file=sys.stderr)


def _secret(home: Home) -> str:
    """The same for the life of the data: prompts are found again by it."""
    note: Path = home.path / "deployment-secret"
    if not note.exists():
        note.touch(mode=0o600)
        note.write_text(secrets.token_hex(16))
    return note.read_text()


def environment() -> dict[str, str]:
    """Everything passes through to every service, without what is empty."""
    return {name: value for name, value in os.environ.items() if value}
