"""Nothing breaks: every class of hostile requests, on every route that takes such a thing, and what is left of them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import orjson
import pytest
from fastapi import FastAPI

from addresses import Urls
from hostile_corpus import CLASSES
from hostile_surface import TIME, Answer, Ask, Headers, Operation, Surface, send
from steelyard.metrics import CATALOGUE
from steelyard.metrics.judging import Embedded
from steelyard.settings import Settings
from steelyard.store import access, session_scores, traces
from steelyard.store.database import Database
from steelyard_api.app import api
from steelyard_judge.dialogue import Rules, case_of, converse

AT_ONCE = 8  # below the pool's size: a 503 for want of a connection would be the test's own fault
NEWEST = "9000-01-01T00:00:00Z"  # first in every list, so that what is done to it is seen there
SINCE, UNTIL = "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"


class Letters:
    """An embedder that needs no model: how often each letter occurs."""

    async def embed(self, texts: Sequence[str]) -> Embedded:
        vectors = tuple(tuple(float(t.lower().count(c)) for c in "etaoin ") for t in texts)
        return Embedded(vectors, "letters")

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def unwell(self) -> str | None: ...


@dataclass
class Attacked:
    app: FastAPI
    surface: Surface
    headers: Headers

    async def all(self, asks: Iterable[Ask]) -> list[tuple[Ask, Answer]]:
        waiting, done = iter(asks), list[tuple[Ask, Answer]]()

        async def one_after_another() -> None:
            for ask in waiting:
                done.append((ask, await send(self.app, ask)))

        await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))
        return done

    async def read(self, path: str, query: str = "") -> Any:
        """What is stored can be read: nothing but a 200 will do."""
        ask = Ask("GET", path, query.encode(), headers=self.headers)
        answer = await send(self.app, ask)
        assert answer.status == 200, f"{ask} was answered {answer.status} {answer.body[:500]!r}"
        return answer.json()

    async def make(self, path: str, body: bytes) -> Any:
        ask = Ask("POST", path, body=(body,), headers=(*self.headers, (b"content-type", b"application/json")))
        answer = await send(self.app, ask)
        assert 200 <= answer.status < 300, f"{ask} was answered {answer.status} {answer.body[:500]!r}"
        return answer.json()


@pytest.fixture
async def attacked(urls: Urls, api_database: Database) -> AsyncIterator[Attacked]:
    """With one thing of each kind, so that requests meet something."""
    async with api_database.begin() as tx:
        key, _ = await access.make_key(tx, "acme", "tests")
    headers = ((b"x-api-key", key.encode()), (b"x-project-name", b"p"))
    database = Database(urls.api)
    app = api(_settings(urls), database)
    attacked = Attacked(app, Surface(app.openapi(), headers, {}), headers)
    attacked.surface.known.update(await _one_of_each(attacked))
    await _a_session_score(attacked, api_database)
    yield attacked
    await database.stop()


def _settings(urls: Urls) -> Settings:
    return Settings.model_validate(
        {"api_database_url": urls.api, "max_body_mb": 2, "judge_model": None, "judge_base_url": None}
        | {"runs_per_minute": 0, "requests_per_minute": 0}
    )


async def _one_of_each(attacked: Attacked) -> dict[str, str]:
    trace, span = str(uuid4()), str(uuid4())
    spans = f'[{{"span_id": "{span}", "name": "s", "started_at": "{NEWEST}"}}]'
    known = f'"trace_id": "{trace}", "session_id": "trip-1", "name": "t", "started_at": "{NEWEST}", "spans": {spans}'
    await attacked.make("/traces", f"{{{known}}}".encode())
    run = await attacked.make("/evaluations/trace-runs", b'{"metrics": ["coherence"]}')
    score = await attacked.make(
        "/evaluations/trace-scores", f'{{"trace_id": "{trace}", "name": "quality", "value": 1}}'.encode()
    )
    return {"trace_id": trace, "span_id": span, "session_id": "trip-1", "run_id": run["id"], "score_id": score["id"]}


async def _a_session_score(attacked: Attacked, database: Database) -> None:
    """As who folds writes it, of a run of sessions."""
    run = await attacked.make("/evaluations/session-runs", b'{"metrics": ["agent_reliability"]}')
    score: dict[str, Any] = {"id": str(uuid4()), "session_id": "trip-1", "name": "quality", "value": "0.5"}
    score |= {"status": "SUCCESS", "reason": "because", "metadata": {}, "session_version": "v", "traces_seen": 1}
    score |= {"snapshot_at": TIME}
    async with database.begin(UUID(run["project_id"])) as tx:
        await session_scores.put(tx, [score | {"project_id": run["project_id"], "eval_run_id": run["id"]}])


@pytest.mark.parametrize("part", [3, pytest.param(1, marks=pytest.mark.soak)])
async def test_nothing_breaks(attacked: Attacked, database: Database, part: int) -> None:
    """Every class; of its requests all if they are few, else every third, beginning with another one in each class."""
    asked, wrong = Counter[str](), list[str]()
    for n, (name, asks) in enumerate(CLASSES.items()):
        some = list(asks(attacked.surface))
        answered = await attacked.all(some[n % part :: part] if len(some) > 20 else some)
        asked[name] = len(answered)
        # What one class leaves behind may be hidden by the next: whatever can be read is read after each that left something.
        if any(ask.method != "GET" and answer.status < 300 for ask, answer in answered):
            answered += await attacked.all(attacked.surface.usual(o) for o in attacked.surface.readers())
        wrong += [told(name, fault, ask, answer) for ask, answer in answered for fault in faults(ask, answer)]
    assert not wrong, f"{len(wrong)} of {asked.total()}:\n" + "\n".join(wrong[:40])
    assert len(asked) >= 90 and asked.total() >= 10_000 / part and min(asked.values()) > 0
    left = await everything_can_be_read(attacked)
    assert len(left) >= 500 / part
    await everything_can_be_run(attacked, left)
    await every_session_can_be_run(attacked, await every_session(attacked))
    await everything_can_be_judged(database, left)


def told(name: str, fault: str, ask: Ask, answer: Answer) -> str:
    return f"{name}: {fault}\n    {ask}\n    {answer.status} {answer.body[:300]!r}"


def faults(ask: Ask, answer: Answer) -> Iterator[str]:
    """What every answer keeps to, whatever was asked."""
    if not 200 <= answer.status < 500:
        yield "broke"
    if not answer.headers.get("x-request-id", "").isprintable() or not answer.headers.get("x-request-id"):
        yield "has no request id"
    if "set-cookie" in answer.headers or "x-evil" in answer.headers:
        yield "took a header from the request"
    if answer.status < 400 or ask.method == "HEAD":
        return
    try:
        said = answer.json()
    except ValueError:
        yield "is no JSON"
    else:
        yield from faults_of_a_refusal(answer, said)


def faults_of_a_refusal(answer: Answer, said: Any) -> Iterator[str]:
    if answer.headers["content-type"] != "application/json":
        yield "is not JSON by its type"
    errors = said.get("errors", [])
    if not said.keys() <= {"detail", "errors"} or not isinstance(said["detail"], str) or not said["detail"]:
        yield "has no detail"
    if not all(e.keys() == {"field", "message"} and e["field"] and e["message"] for e in errors):
        yield "has errors that name no field"
    if answer.status in (400, 422) and not errors:
        yield "names no field"
    if answer.status == 405 and not answer.headers.get("allow"):
        yield "does not say which methods are allowed"
    if len(answer.body) > 20_000:
        yield "gives back what it refused"


async def everything_can_be_read(attacked: Attacked) -> list[UUID]:
    """By every route that reads, in every order, page by page, and one by one. Returns the ids of all traces."""
    found: dict[str, list[dict[str, Any]]] = {}
    for o in attacked.surface.readers():
        if not o.named:
            for query in orders(o):
                found[o.path] = [item async for item in pages(attacked, o, query)]
    each = [replace(attacked.surface.usual(o), path=p) for o in attacked.surface.readers() for p in paths(o, found)]
    hidden = [f"{ask}\n    {a.status} {a.body[:300]!r}" for ask, a in await attacked.all(each) if a.status != 200]
    assert not hidden, f"{len(hidden)} of {len(each)}:\n" + "\n".join(hidden[:40])
    names = {s["name"] for s in found["/evaluations/trace-scores"]}
    for name in sorted(names):
        for about in ("trend", "distribution"):
            await attacked.read(f"/evaluations/analytics/trace-scores/{about}", f"metric_name={quote(name)}")
    return [UUID(t["trace_id"]) for t in found["/traces"]]


async def every_session(attacked: Attacked) -> list[str]:
    (o,) = [o for o in attacked.surface.lists() if o.path == "/sessions"]
    return [s["session_id"] async for s in pages(attacked, o, "")]


def orders(o: Operation) -> list[str]:
    """Every way to sort, to group or to measure, over all of time where a time is needed."""
    queries = [
        [f"{n}={v}" for n, v in NEEDED.items() if n in o.query and ("limit" not in o.query or o.query[n]["needed"])]
    ]
    for name in ("sort_by", "sort_order", "granularity", "metric"):
        if ways := o.query.get(name, {}).get("words"):
            queries = [[*q, f"{name}={way}"] for q in queries for way in ways]
    return ["&".join(q) for q in queries]


NEEDED = {"started_after": SINCE, "started_before": UNTIL, "metric_name": "quality"}


async def pages(attacked: Attacked, o: Operation, query: str) -> AsyncIterator[dict[str, Any]]:
    if "limit" not in o.query:
        answer = await attacked.read(o.path, query or attacked.surface.needed(o).decode())
        for item in answer if isinstance(answer, list) else [answer]:
            yield item
        return
    seen, total, most = 0, 1, o.query["limit"]["maximum"]
    while seen < total:
        page = await attacked.read(o.path, f"{query}&limit={most}&offset={seen}")
        total, seen = page["total"], seen + len(page["items"])
        assert page["items"] or not total, f"{o.path}?{query} says {total} and shows {seen}"
        for item in page["items"]:
            yield item


def paths(o: Operation, found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """`/traces/{trace_id}` for each of `/traces`: by the field of that name, or by `id`."""
    if len(o.named) != 1:
        return
    (name,) = o.named
    for item in found.get(o.path.split("/{", 1)[0], ()):
        parked = "trace_version" in item and item["status"] == "PENDING"  # its trace is not there yet
        if not parked and (known := item.get(name, item.get("id"))):
            yield o.path.replace(f"{{{name}}}", quote(known, safe=""))


async def everything_can_be_run(attacked: Attacked, ids: Sequence[UUID]) -> None:
    metrics = ", ".join(f'"{m}"' for m in CATALOGUE)
    run = await attacked.make("/evaluations/trace-runs", f'{{"metrics": [{metrics}]}}'.encode())
    assert run["total_targets"] == len(ids)
    wanted = ", ".join(f'"{i}"' for i in ids[:10_000])
    await attacked.make(
        "/evaluations/trace-runs/batch", f'{{"metrics": [{metrics}], "trace_ids": [{wanted}]}}'.encode()
    )


async def every_session_can_be_run(attacked: Attacked, names: Sequence[str]) -> None:
    run = await attacked.make("/evaluations/session-runs", b'{"metrics": ["agent_reliability"]}')
    assert run["total_targets"] == len(names)
    body = orjson.dumps({"metrics": ["agent_consistency"], "session_ids": names})
    assert (await attacked.make("/evaluations/session-runs/batch", body))["total_targets"] == len(names)
    for name in names:
        path = quote(name, safe="")
        assert isinstance(await attacked.read(f"/evaluations/session-scores/{path}"), list)
        assert isinstance(await attacked.read(f"/evaluations/analytics/session-scores/history/{path}"), list)


async def everything_can_be_judged(database: Database, ids: Sequence[UUID]) -> None:
    """By the rules, which read all of a trace: a score or a reason, never an exception."""
    for n in range(0, len(ids), 100):
        async with database.begin() as tx:
            loaded = await traces.load(tx, ids[n : n + 100])
        assert set(loaded) == set(ids[n : n + 100])
        for trace in loaded.values():
            case = case_of(trace, "secret")
            for metric in CATALOGUE.values():
                said = await converse(metric, case, Rules(), Letters())
                assert said.reason, f"{metric.name} of {trace.trace_id} is without a reason"


@pytest.mark.parametrize(("announced", "status"), [(50_000_000, 413), (1_000_000, 401)])
async def test_a_strangers_body_is_not_read(attacked: Attacked, announced: int, status: int) -> None:
    headers = ((b"content-type", b"application/json"), (b"content-length", str(announced).encode()))
    answer = await send(attacked.app, Ask("POST", "/traces", body=(b"{", b"}"), headers=headers))
    assert (answer.status, answer.read, answer.headers["connection"]) == (status, 0, "close")
    chunks = Ask("POST", "/traces", body=(b"x" * 100_000,) * 30, headers=headers[:1], chunked=True)
    answer = await send(attacked.app, chunks)
    assert (answer.status, answer.read, answer.headers["connection"]) == (401, 0, "close")


@pytest.mark.parametrize("coded", ["deflate", "br", "zstd", "gzip, gzip"])
async def test_an_unknown_content_encoding_is_a_415_that_says_which_are_known(attacked: Attacked, coded: str) -> None:
    ask = attacked.surface.ask(attacked.surface.writers()[0], b"x", (b"content-encoding", coded.encode()))
    answer = await send(attacked.app, ask)
    assert answer.status == 415 and coded in answer.json()["detail"] and "gzip" in answer.headers["accept-encoding"]
