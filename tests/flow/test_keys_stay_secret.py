"""Keys given to the processes are found nowhere afterwards: not in logs, topics, tables, answers of the API or metrics. And
what users say in their traces is not found in logs, metrics and the reasons of dead letters."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from sqlalchemy import text

from addresses import Infra, Urls
from eventually import eventually
from steelyard.events import TraceScored, dead
from steelyard.events import topics as all_topics
from steelyard.kafka import Cluster, Publisher
from steelyard.providers import PROVIDERS
from steelyard.store.database import Database
from steelyard_local.client import Client
from steelyard_local.processes import Home, free_port
from steelyard_local.stack import Services

TESTS = Path(__file__).parents[1]
NAMES = ("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
SENT = (*(v for p in PROVIDERS for v in p.variables), "JUDGE_API_KEY")
# Of several looks: a pattern for keys would know some of them and not the others.
CANARIES = {
    v: f"{('sk-', '', 'AIza')[n % 3]}canary{n}{v.title().replace('_', '')}0123456789abcdef"
    for n, v in enumerate((*SENT, "DEPLOYMENT_SECRET", "ADMIN_TOKEN", "JWT_SECRET"))
}
BEARER = {"JWT_ISSUER": "https://id.example", "JWT_AUDIENCE": "steelyard"}
KEYS = " ".join(CANARIES[v] for v in SENT)
QUOTING = f"Incorrect API key provided: {KEYS}; your request was HEADERS"
VERDICT = f'{{"nonce": "NONCE", "score": 1, "reason": "the key is {KEYS}", "evidence": []}}'
MODELS = ("openai/stub", "anthropic/claude-haiku-4-5", "gemini/gemini-3-flash-preview", "groq/llama-3.3-70b-versatile")
# What a user says, by where in a trace it stands.
PLACES = (
    "name",
    "input",
    "output",
    "session",
    "user",
    "tag",
    "key",
    "value",
    "span",
    "spaninput",
    "spanoutput",
    "model",
)
WORDS = {place: f"canaryword{place}x" for place in PLACES}
FAILURES: dict[str, dict[str, Any]] = {
    "401": {"status": 401, "message": QUOTING},
    "400": {"status": 400, "message": QUOTING},
    "500": {"status": 500, "message": QUOTING},
    "quota": {"status": 429, "message": QUOTING, "code": "insufficient_quota", "times": 1},
    "refusal": {"refusal": QUOTING},
    "prose": {"say": QUOTING},
    "verdict": {"say": VERDICT},
    "cut": {"truncate": True, "say": QUOTING},
    "fine": {},
}


@dataclass
class Deployment:
    services: Services
    home: Home
    database: Database
    cluster: Cluster
    stub: str
    owner: str
    key: str = ""

    async def start(self) -> None:
        await asyncio.to_thread(self.services.start, *NAMES)
        self.key = await asyncio.to_thread(self.services.new_key, "secrets")

    async def call(self, verb: str, path: str, *body: Any) -> Any:
        return await asyncio.to_thread(getattr(Client(self.services.base_url, self.key, "project"), verb), path, *body)

    async def run(self, model: str, session: str, **behaviour: Any) -> str:
        """One trace, judged by a model that behaves so; the run's id once it is done."""
        async with httpx.AsyncClient() as client:
            (await client.post(f"{self.stub}/control", json=behaviour)).raise_for_status()
        await self.call("post", "/traces", a_trace(session))
        run = await self.request(model, session)

        async def done() -> bool:
            return (await self.call("get", f"/evaluations/trace-runs/{run}"))["status"] in ("COMPLETED", "FAILED")

        await eventually(done, f"the run of {session} is done")
        return run

    async def request(self, model: str, session: str) -> str:
        filters = {"session_id": session + WORDS["session"]}
        body = {"metrics": ["confidence", "task_completion"], "filters": filters, "model": model}
        return str((await self.call("post", "/evaluations/trace-runs", body))["id"])

    async def unstorable_result(self, run: str) -> None:
        """Postgres refuses NUL in jsonb, so what settles it fails with the statement's parameters at hand."""

        async def expanded() -> list[Any]:
            statement = text("SELECT run_id, project_id, target, trace_id, metric FROM pairs WHERE run_id = :run")
            async with self.database.begin() as tx:
                return [dict(r._mapping) for r in await tx.execute(statement, {"run": run})]

        pairs = await eventually(expanded, "the run's pairs are there")
        publisher = Publisher(self.cluster)
        await publisher.start()
        metadata = {WORDS["key"]: WORDS["value"] + chr(0)}
        await publisher.publish(TraceScored(**p, value=1, reason=WORDS["output"], metadata=metadata) for p in pairs)
        await publisher.stop()

    async def refused(self, privilege: str, verb: str, path: str, *body: Any) -> None:
        """A statement of the API's fails with a user's words among its parameters."""
        await sql(self.owner, f"REVOKE {privilege} FROM steelyard_api")
        headers = {"X-API-Key": self.key, "X-Project-Name": "project"}
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.request(
                verb, f"{self.services.base_url}{path}", headers=headers, json=body[0] if body else None
            )
        assert answer.status_code == 500, answer.text
        await sql(self.owner, f"GRANT {privilege} TO steelyard_api")

    async def reasons(self) -> dict[str, str]:
        """Why dead letters died, as their headers say."""
        return {
            f"headers of {name}": "\n".join(line.rpartition(" (('")[2] for line in lines.splitlines())
            for name, lines in (await self.messages()).items()
            if name.endswith(".dead")
        }

    def logs(self) -> dict[str, str]:
        return {f"log of {p.stem}": p.read_text(errors="replace") for p in self.home.path.glob("*.log")}

    async def tables(self) -> dict[str, str]:
        async with self.database.begin() as tx:
            names = [
                r.name
                for r in await tx.execute(text("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'"))
            ]
            rows = {n: await tx.execute(text(f'SELECT t::text AS said FROM "{n}" t')) for n in names}
            return {f"table {n}": "\n".join(r.said for r in found) for n, found in rows.items()}

    async def messages(self) -> dict[str, str]:
        """Every topic from its beginning, dead letters too: keys, values and headers."""
        counts = {self.cluster.topic(t): n for t, n in all_topics().items()}
        counts |= {self.cluster.topic(dead(t)): 1 for t in all_topics()}
        consumer: Any = AIOKafkaConsumer(bootstrap_servers=self.cluster.bootstrap)
        await consumer.start()
        try:
            return {f"topic {name}": await _read(consumer, name, count) for name, count in counts.items()}
        finally:
            await consumer.stop()

    async def unreadable(self) -> None:
        """A message that becomes a dead letter, by the judge that is still there."""
        publisher = Publisher(self.cluster)
        await publisher.start()
        await publisher.send([("jobs.trace", b"k", b"{no json", [])])
        await publisher.stop()
        await self.buried("jobs.trace", "not an event")

    async def buried(self, topic: str, reason: str) -> None:
        headers = "headers of topic " + self.cluster.topic(dead(topic))

        async def died() -> bool:
            return reason in (await self.reasons())[headers]

        await eventually(died, f"a message of {topic} is a dead letter: {reason}")

    async def answers(self, runs: list[str]) -> dict[str, str]:
        """What people and collectors can ask for."""
        headers = {"X-API-Key": self.key, "X-Project-Name": "project"}
        paths = [
            "/traces",
            "/evaluations/providers",
            "/evaluations/trace-metrics",
            "/openapi.json",
            "/nonesuch",
            "/sessions",
        ]
        paths += ["/evaluations/usage", "/evaluations/trace-runs", "/docs", "/scores"]
        paths += [f"/evaluations/trace-runs/{run}{more}" for run in runs for more in ("", "/scores")]
        found = {}
        async with httpx.AsyncClient(timeout=20) as client:
            for path in paths:
                answer = await client.get(f"{self.services.base_url}{path}", headers=headers)
                found[f"answer to {path}"] = f"{answer.headers} {answer.text}"
            for name in NAMES:
                for path in ("/metrics", "/healthz", "/readyz"):
                    answer = await client.get(f"{self.services.url(name)}{path}")
                    found[f"{path} of {name}"] = f"{answer.headers} {answer.text}"
        return found


def a_trace(session: str) -> dict[str, Any]:
    word = WORDS.__getitem__
    span = {"name": word("span"), "kind": "LLM", "model": word("model"), "started_at": "2026-03-01T10:00:00Z"}
    span |= {"input": word("spaninput"), "output": word("spanoutput")}
    return {
        "name": word("name"),
        "started_at": "2026-03-01T10:00:00Z",
        "session_id": session + word("session"),
        "user_id": word("user"),
        "tags": [word("tag")],
        "metadata": {word("key"): word("value")},
        "input": "2+2? " + word("input"),
        "output": "four " + word("output"),
        "spans": [span],
    }


async def sql(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


async def _read(consumer: Any, topic: str, partitions: int) -> str:
    parts = [TopicPartition(topic, n) for n in range(partitions)]
    consumer.assign(parts)
    await consumer.seek_to_beginning(*parts)
    ends, said = await consumer.end_offsets(parts), list[str]()
    while any([await consumer.position(p) < ends[p] for p in parts]):
        for records in (await consumer.getmany(timeout_ms=500)).values():
            said += [f"{r.key!r} {r.value!r} {r.headers!r}" for r in records]
    return "\n".join(said)


@pytest.fixture
def home() -> Iterator[Home]:
    made = Home.fresh("keys")
    yield made
    made.close()


@pytest.fixture
async def deployment(
    infra: Infra, urls: Urls, topics: Cluster, database: Database, home: Home
) -> AsyncIterator[Deployment]:
    port = free_port()
    stub = f"http://127.0.0.1:{port}"
    home.start(
        "stub", [sys.executable, "-m", "stub_model", "--port", str(port)], env=os.environ | {"PYTHONPATH": str(TESTS)}
    )
    environment = dict(os.environ) | urls.environment() | CANARIES | BEARER
    environment |= {
        "KAFKA_BOOTSTRAP": infra.bootstrap,
        "TOPIC_PREFIX": topics.prefix,
        "LOG_LEVEL": "DEBUG",
        "LITELLM_LOG": "DEBUG",
        "JUDGE_BASE_URL": f"{stub}/v1",
        "JUDGE_MODEL": "openai/stub",
        "JUDGE_ATTEMPTS": "1",
        "QUOTA_PROBE_SECONDS": "1",
        "ANTHROPIC_API_BASE": stub,
        "GEMINI_API_BASE": stub,
        "GROQ_API_BASE": f"{stub}/v1",
    }
    yield Deployment(Services(home, environment), home, database, topics, stub, urls.owner)


async def test_no_key_is_found_anywhere_after_runs_that_failed_in_every_way(deployment: Deployment) -> None:
    await deployment.start()
    runs = [await deployment.run(m, f"{m} {name}", **how) for m in MODELS for name, how in FAILURES.items()]
    await deployment.unreadable()
    await asyncio.to_thread(deployment.services.stop, "judge-1")
    await deployment.call("post", "/traces", a_trace("unjudged"))
    await deployment.unstorable_result(await deployment.request("openai/stub", "unjudged"))
    await deployment.refused("INSERT ON spans", "POST", "/traces", a_trace("unwritten"))
    await deployment.refused("SELECT ON sessions", "GET", f"/sessions/{WORDS['session']}")
    await deployment.buried("scores.trace", "Untranslatable")
    await asyncio.to_thread(deployment.services.start, "judge-1")
    shown = deployment.logs() | await deployment.tables() | await deployment.messages() | await deployment.answers(runs)
    scores = shown["table trace_scores"]
    for said in (
        "the key is …",
        "refuses the key",
        "refuses the request",
        "refused",
        "cut off",
        "not one JSON",
    ):
        assert said in scores, f"what was to be looked through is not there: {said}"
    assert (
        "DEBUG" in shown["log of judge-1"]
        and "confidence" in shown["topic " + deployment.cluster.topic("scores.trace")]
    )
    assert "quota" in shown["topic " + deployment.cluster.topic("providers.closed")]
    found = sorted((where, v) for where, said in shown.items() for v, key in CANARIES.items() if key in said)
    assert found == []
    assert [where for where, said in shown.items() if deployment.key in said] == []
    told = deployment.logs() | await deployment.reasons() | {w: s for w, s in shown.items() if w.startswith("/metrics")}
    assert sorted((where, v) for where, lines in told.items() for v in WORDS.values() if v in lines) == []
    assert "InsufficientPrivilegeError" in told["log of api-1"], "the log still says what failed"
    assert "You grade recorded runs" not in shown["log of judge-1"], "prompts hold people's words, and no log should"
