"""Who asks is clear before anything is read, and neither a stranger nor a tenant takes the whole process."""

import asyncio
import gzip
import json
import socket
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from addresses import Infra, Urls
from contract.conftest import new_key
from eventually import eventually
from hostile_surface import JSON, Answer, Ask, Headers, send
from steelyard.settings import Settings
from steelyard.store.database import Database
from steelyard_api.__main__ import serving
from steelyard_api.app import api
from steelyard_api.bodies import MOST_VALUES
from steelyard_api.door import Admission, Known, Share
from steelyard_api.errors import Refused
from steelyard_local.processes import Home
from steelyard_local.stack import Services

TIME = "2026-03-01T10:00:00Z"
PACKED: Headers = (*JSON, (b"content-encoding", b"gzip"))
NEST = gzip.compress(b'{"name":"t","started_at":"2026-03-01T10:00:00Z","input":[' + b"[]," * 6_500_000 + b"[]]}")
STRANGER: Headers = ((b"x-api-key", b"sk_sy_" + b"a" * 43), (b"x-project-name", b"p"))
LARGE = b'{"name":"t","started_at":"2026-03-01T10:00:00Z","input":"' + b"x" * 5_000_000 + b'"}'


def trace(value: str) -> bytes:
    return f'{{"name":"t","started_at":"{TIME}","input":{value}}}'.encode()


@pytest.fixture
async def api_of(urls: Urls) -> AsyncIterator[Any]:
    made = list[Database]()

    def make(**said: Any) -> FastAPI:
        made.append(Database(urls.api))
        settings = {"api_database_url": urls.api, "judge_model": None, "judge_base_url": None} | said
        return api(Settings.model_validate(settings), made[-1])

    yield make
    for database in made:
        await database.stop()


@pytest.fixture
async def tenants(api_database: Database) -> list[Headers]:
    keys = [await new_key(api_database, name) for name in ("acme", "globex")]
    return [((b"x-api-key", key.encode()), (b"x-project-name", b"p")) for key in keys]


class Slow:
    """A request whose body does not end before it is let go."""

    def __init__(self, app: FastAPI, headers: Headers, path: str = "/traces") -> None:
        self.waits, self._go, self.answer = asyncio.Event(), asyncio.Event(), Answer()
        self._task = asyncio.create_task(self._run(app, Ask("POST", path, headers=headers)))

    async def _run(self, app: FastAPI, ask: Ask) -> None:
        async def receive() -> Message:
            self.waits.set()
            await self._go.wait()
            return {"type": "http.request", "body": trace("1"), "more_body": False}

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.answer.status = message["status"]

        scope: Message = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": ask.path, "raw_path": ask.path.encode(), "root_path": "", "query_string": b"", "state": {},
            "headers": [*JSON, *ask.headers, (b"transfer-encoding", b"chunked")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        await app(scope, receive, respond)

    async def finish(self) -> int:
        self._go.set()
        await self._task
        return self.answer.status


@pytest.mark.parametrize("path", ["/traces", "/evaluations/trace-runs", "/admin/organizations", "/nowhere"])
@pytest.mark.parametrize("headers", [STRANGER, ((b"authorization", b"Bearer nonsense"),), ()])
async def test_a_strangers_nest_of_lists_is_neither_unpacked_nor_read(api_of: Any, path: str, headers: Headers) -> None:
    app = api_of(admin_token="a-token-of-sixteen")
    await send(app, Ask("POST", path, body=(b"{}",), headers=(*JSON, *headers)))  # what is loaded once is loaded
    tracemalloc.start()
    try:
        answer = await send(app, Ask("POST", path, body=(NEST,), headers=(*PACKED, *headers)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (answer.status, answer.read) == (404 if path == "/nowhere" else 401, 0)
    assert peak < 1_000_000, f"{peak} bytes for a request of {len(NEST)}"


async def test_with_a_key_a_nest_of_lists_is_refused_before_it_is_objects(api_of: Any, tenants: list[Headers]) -> None:
    app = api_of()
    await send(app, Ask("POST", "/traces", body=(trace("1"),), headers=(*JSON, *tenants[0])))
    tracemalloc.start()
    try:
        answer = await send(app, Ask("POST", "/traces", body=(NEST,), headers=(*PACKED, *tenants[0])))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status == 413 and "JSON values" in answer.json()["detail"]
    assert peak < 5_000_000, f"{peak} bytes"


async def test_one_organisation_takes_at_most_half_of_the_places(api_of: Any, tenants: list[Headers]) -> None:
    app = api_of(requests_at_once=4)
    acme, globex = tenants
    slow = [Slow(app, acme), Slow(app, (*acme[:1], (b"x-project-name", b"another")))]
    for request in slow:
        await request.waits.wait()
    refused = await send(app, Ask("GET", "/traces", headers=acme))
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert (await send(app, Ask("GET", "/traces", headers=globex))).status == 200
    more = [Slow(app, globex), Slow(app, globex)]
    for request in more:
        await request.waits.wait()
    full = await send(app, Ask("GET", "/traces", headers=globex))
    assert full.status == 429 and (await send(app, Ask("GET", "/nowhere"))).status == 404
    assert [await request.finish() for request in (*slow, *more)] == [202] * 4
    assert (await send(app, Ask("GET", "/traces", headers=acme))).status == 200
    assert app.state.admission.places.taken == app.state.admission.bodies.taken == 0


async def test_a_client_that_sends_too_slowly_loses_its_place(api_of: Any, tenants: list[Headers]) -> None:
    app = api_of()
    app.state.admission = Admission(10, 1_000_000, 1_000_000, MOST_VALUES, patience=0.05)
    slow = Slow(app, tenants[0])

    async def answered() -> int:
        return slow.answer.status

    assert await eventually(answered, "the slow client is answered") == 408
    await slow.finish()
    assert app.state.admission.places.taken == 0


async def test_large_bodies_wait_for_room_and_one_organisation_leaves_half_of_it() -> None:
    share = Share("room", 100)
    await share.wait("acme", 50)
    second = asyncio.ensure_future(share.wait("acme", 20))
    await share.wait("globex", 40)
    large = asyncio.ensure_future(share.wait("initech", 30))
    small = asyncio.ensure_future(share.wait("umbrella", 5))
    await asyncio.sleep(0)
    assert not second.done() and not large.done() and not small.done(), "a small one does not go past a large one"
    share.give("globex", 40)
    await asyncio.gather(large, small)
    assert not second.done() and share.taken == 85
    share.give("acme", 50)
    await second
    for who, amount in (("acme", 20), ("initech", 30), ("umbrella", 5)):
        share.give(who, amount)
    assert share.taken == 0


async def test_who_waits_in_vain_or_hangs_up_leaves_nothing_behind() -> None:
    share = Share("room", 10, patience=0.01)
    await share.wait("acme", 5)
    with pytest.raises(Refused) as own:
        await share.wait("acme", 1)
    await share.wait("globex", 5)
    with pytest.raises(Refused) as full:
        await share.wait("initech", 1)
    assert (own.value.status, full.value.status) == (429, 503)
    patient = Share("room", 10)
    await patient.wait("acme", 5)
    gone = asyncio.ensure_future(patient.wait("acme", 5))
    await asyncio.sleep(0)
    gone.cancel()
    patient.give("acme", 5)
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert patient.taken == 0
    share.give("acme", 5)
    share.give("globex", 5)
    assert share.taken == 0


async def test_strangers_wait_for_each_other_and_not_before_a_tenant() -> None:
    known, tenant, organization = Known(at_once=1, waiting=1), b"tenant", uuid4()
    known.remember(tenant, organization)
    async with known.stranger(b"1"):
        waiting = asyncio.ensure_future(known.stranger(b"2").__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            async with known.stranger(b"3"):
                pass
        assert refused.value.status == 503 and not waiting.done()
        assert await known.organization(tenant) == organization
    await waiting


async def test_the_first_requests_of_a_tenant_are_one_question(api_of: Any, tenants: list[Headers]) -> None:
    """A new process gets all of a tenant's requests at once: none of them is a stranger too many."""
    app = api_of(requests_at_once=1000)
    app.state.admission.known = Known(at_once=1, waiting=1)
    answers = await asyncio.gather(*(send(app, Ask("GET", "/traces", headers=tenants[0])) for _ in range(40)))
    assert {a.status for a in answers} == {200}


def test_an_idle_connection_outlives_an_ingresss_wish_for_it() -> None:
    """A pooled client that idled for longer than uvicorn's 5 s wrote to a connection that was being closed."""
    assert serving(Settings())["timeout_keep_alive"] > 60


@pytest.fixture
def server(infra: Infra, urls: Urls) -> Iterator[Services]:
    home = Home.fresh("door")
    environment = urls.environment() | {"KAFKA_BOOTSTRAP": infra.bootstrap, "PATH": str(Path(sys.executable).parent)}
    services = Services(home, environment)
    services.start("api-1")
    yield services
    home.close()


def largest(pid: int) -> int:
    """The most memory that the process ever had, in bytes."""
    said = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in said.splitlines() if line.startswith("VmHWM")))


def count_from_here(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def test_a_stranger_stops_nobody(server: Services, tenants: list[Headers]) -> None:
    """Twenty nests of lists at once, by nobody: 5 GB and two minutes once, in which nobody else was answered."""
    acme = {k.decode(): v.decode() for k, v in tenants[0]}
    stranger = {k.decode(): v.decode() for k, v in (*PACKED, *STRANGER)}
    async with httpx.AsyncClient(base_url=server.base_url, trust_env=False, timeout=120) as client:
        assert (await client.get("/traces", headers=acme)).status_code == 200
        before = largest(server.child("api-1").pid)
        bad = [client.post("/traces", content=NEST, headers=stranger) for _ in range(20)]
        good = [client.get("/traces", headers=acme) for _ in range(5)]
        answers = await asyncio.gather(*bad, *good)
    assert [a.status_code for a in answers] == [401] * 20 + [200] * 5
    grown = largest(server.child("api-1").pid) - before
    assert grown < 20_000_000, f"{grown / 1e6:.0f} MB more"


COSTLY: dict[str, Callable[[int], str]] = {
    "empty lists": lambda n: "[" + "[]," * n + "[]]",
    "nested lists": lambda n: "[" + ("[" * 50 + "]" * 50 + ",") * (n // 50) + "0]",
    "small objects": lambda n: "[" + '{"a":1},' * (n // 2) + "0]",
    "numbers": lambda n: "[" + "0.123456789," * n + "0]",
    "words": lambda n: "[" + ",".join(f'"a word of many, {i}"' for i in range(n)) + "]",
    "keys": lambda n: "{" + ",".join(f'"k{i}":{{}}' for i in range(n // 2)) + "}",
    "one word of x": lambda n: '"' + "x" * 10_000_000 + '"',
    "one word of é": lambda n: '"' + "é" * 3_000_000 + '"',
    "one word of x and a clef": lambda n: '"' + "x" * 10_000_000 + '𝄞"',  # four bytes for each x
}


async def test_with_a_key_a_request_costs_16_times_its_size_and_300_bytes_for_each_value(
    server: Services, tenants: list[Headers]
) -> None:
    acme, count = {k.decode(): v.decode() for k, v in (*JSON, *tenants[0])}, MOST_VALUES // 2 - 100
    pid = server.child("api-1").pid
    async with httpx.AsyncClient(base_url=server.base_url, trust_env=False, timeout=120, headers=acme) as client:
        assert (await client.post("/traces", content=trace("1"))).status_code == 202
        idle = largest(pid)
        for kind, made in COSTLY.items():
            body, values = trace(made(count)), 1 if "word of" in kind else count
            count_from_here(pid)
            assert (await client.post("/traces", content=body)).status_code == 202, kind
            most = 16 * len(body) + 300 * values + 10_000_000
            assert largest(pid) - idle < most, f"{kind}: {(largest(pid) - idle) / 1e6:.0f} of {most / 1e6:.0f} MB"


REQUESTS = {"POST /traces": 401, "POST /nowhere": 404, "PUT /traces": 405, "POST /evaluations/trace-runs/1/x": 404}


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_client_that_is_still_sending_gets_its_answer_and_no_reset(server: Services, chunked: bool) -> None:
    """As simple clients do it: all of the body first, then a look at the answer."""
    host, port = server.base_url.removeprefix("http://").split(":")

    def answer_to(request_line: str) -> bytes:
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(LARGE)}"
            head = f"{request_line} HTTP/1.1\r\nHost: x\r\nX-API-Key: nonsense\r\nX-Project-Name: p\r\n{length}\r\n\r\n"
            connection.sendall(head.encode())
            connection.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(LARGE), LARGE) if chunked else LARGE)
            return b"".join(iter(lambda: connection.recv(65_536), b""))

    for request_line, status in REQUESTS.items():
        answer = await asyncio.to_thread(answer_to, request_line)
        assert answer.startswith(b"HTTP/1.1 %d " % status) and b"connection: close" in answer.lower()
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["detail"]
