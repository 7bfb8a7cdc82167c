"""Around every request: its id, its size, and JSON read strictly."""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any
from uuid import uuid4

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from opentelemetry.trace import SpanKind
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steelyard import telemetry
from steelyard_api import access
from steelyard_api.bodies import Gzip, Plain, Scan, TooLarge, pieces
from steelyard_api.door import HELD, WHO, Admission, Portion
from steelyard_api.errors import Refused, answer, broken

REQUEST_ID = "x-request-id"
ENCODINGS: dict[str, type[Plain] | type[Gzip]] = {"": Plain, "identity": Plain, "gzip": Gzip, "x-gzip": Gzip}
UNKNOWN = math.inf
WORTH_READING = 65_536  # less is read to its end, so that the connection lives and the answer is not lost with it
FEW_VALUES = 1_000  # such a body is counted as a request and not by its values
SLOWEST = 32_000  # bytes a second of a body, on average and after the first seconds
LINGER_SECONDS, MOST_LINGERING = 5.0, 64


class RequestId:
    """X-Request-ID is echoed, or made: the one word that a user and a log have in common. So what no one else caught is
    answered here, where the answer still gets that id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = next((v for k, v in scope["headers"] if k == REQUEST_ID.encode()), b"")[:200]
        said = given if given and given.isascii() and given.decode().isprintable() else str(uuid4()).encode()
        scope["request_id"] = said.decode()

        begun = False

        async def respond(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (REQUEST_ID.encode(), said)]
            await send(message)

        # The caller's trace goes on through whatever the request announces.
        received = [(k.decode("latin-1"), v) for k, v in scope["headers"]]
        with telemetry.continued(scope["method"], received, SpanKind.SERVER) as span:
            try:
                await self._app(scope, receive, respond)
                if route := getattr(scope.get("route"), "path", None):
                    span.update_name(f"{scope['method']} {route}")  # not the path: ids of sessions are users' words
            except Exception as e:
                if begun:
                    raise
                await broken(scope, e)(scope, receive, respond)


class BodyLimit:
    """A body over the limit is refused as soon as that is known: by its header, or by what has arrived. And an answer that
    comes before a large body closes the connection: nobody keeps the rest. It is read for a moment and thrown away all the
    same (a lingering close), because a client that is still sending would get a reset in the place of its answer.

    What a request holds of the process (door.py) is given back here, when its answer was sent or its client is gone."""

    def __init__(self, app: ASGIApp, most: int, linger: float = LINGER_SECONDS) -> None:
        self._app, self._most, self._linger = app, most, linger
        self._lingering = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        left, seen, closes = _announced(scope), 0, False

        async def limited() -> Message:
            nonlocal seen, left
            message = await receive()
            size = len(message.get("body", b""))
            seen, left = seen + size, left - size if message.get("more_body", False) else 0
            if seen > self._most:
                raise TooLarge(self._most)
            return message

        async def closing(message: Message) -> None:
            nonlocal closes
            if message["type"] == "http.response.start" and left > WORTH_READING:
                kept = [(k, v) for k, v in message["headers"] if k.lower() != b"connection"]
                message["headers"] = [*kept, (b"connection", b"close")]
                closes = any(k.lower() == b"content-length" for k, _ in kept)  # the client sees where the answer ends
            if closes and not message.get("more_body", False) and message["type"] == "http.response.body":
                await send({**message, "more_body": True})
                await self._drain(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        with ExitStack() as scope[HELD]:
            if self._most < left < UNKNOWN:
                refusal = TooLarge(self._most)
                return await answer(413, refusal.detail, (), refusal.headers)(scope, receive, closing)
            return await self._app(scope, limited, closing)

    async def _drain(self, receive: Receive) -> None:
        """Bounded in bytes, in time and in how many do it at once: beyond that the connection is just closed."""
        if self._lingering >= MOST_LINGERING:
            return
        self._lingering += 1
        try:
            async with asyncio.timeout(self._linger):
                left, more = self._most, True
                while more and left > 0:
                    message = await receive()
                    left, more = left - len(message.get("body", b"")), message.get("more_body", False)
        except TimeoutError:
            pass
        finally:
            self._lingering -= 1


def _announced(scope: Scope) -> float:
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    if length.isdigit():
        return int(length[:20])  # int() refuses more than 4,300 digits; some parsers let more of them pass
    return UNKNOWN if b"transfer-encoding" in headers else 0


class StrictRequest(Request):
    """orjson refuses what JSON does not have: NaN, Infinity, lone surrogates, bytes that are not UTF-8."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._body = await self._read()
        return self._body

    async def json(self) -> Any:
        """Large ones one after another, and the loop turns between two: reading one takes tens of milliseconds, in which
        nobody else is answered, and many at once would take seconds."""
        body = await self.body()
        if len(body) <= WORTH_READING:
            return orjson.loads(body)
        async with self._admission.parsing:
            value = orjson.loads(body)
            await asyncio.sleep(0)
        return value

    @property
    def _admission(self) -> Admission:
        admission: Admission = self.app.state.admission
        return admission

    async def _read(self) -> bytes:
        """Piece by piece, and no further than it is worth: by its bytes, unpacked, by its values and by its depth."""
        coding = self._coding()
        most, who, announced = int(self.app.state.most_bytes), self.scope[WHO], _announced(self.scope)
        room = self._hold(Portion(self._admission.bodies, who))
        if WORTH_READING < announced * coding.usual < UNKNOWN:
            await room.wait(min(int(announced) * coding.usual, most))
        scan, parts, size = Scan(), list[bytes](), 0
        async with aclosing(self._arriving()) as arriving:
            async for piece in arriving:
                for part in coding.feed(piece):
                    scan.feed(part)
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise TooLarge(most)
                    if size > max(WORTH_READING, room.amount):
                        room.resize(size)
                    if size > WORTH_READING:
                        await asyncio.sleep(0)
        coding.end()
        room.resize(size if size > WORTH_READING else 0)
        if scan.values > FEW_VALUES:
            await self._hold(Portion(self._admission.values, who)).wait(scan.values)
        return b"".join(parts)

    async def _arriving(self) -> AsyncGenerator[bytes, None]:
        """A client that is slower than SLOWEST, after its first seconds, keeps its place and its room for too long."""
        loop, patience = asyncio.get_running_loop(), self._admission.patience
        began, arrived, more = loop.time(), 0, True
        while more:
            try:
                async with asyncio.timeout_at(began + patience + arrived / SLOWEST):
                    message = await self.receive()
            except TimeoutError:
                said = f"The body comes too slowly: at least {SLOWEST // 1000} kB a second are needed"
                raise Refused(408, said, headers={"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                raise HTTPException(400, "There was an error parsing the body")
            more = message.get("more_body", False)
            arrived += len(message.get("body", b""))
            for piece in pieces(message.get("body", b"")):
                yield piece

    def _coding(self) -> Plain | Gzip:
        coded = ",".join(self.headers.getlist("content-encoding")).strip().lower()
        if coded not in ENCODINGS:
            said = f"The body's Content-Encoding is {coded[:100]!r}: send it as it is, or with gzip"
            raise Refused(415, said, ("Content-Encoding", "is not understood"), headers={"Accept-Encoding": "gzip"})
        return ENCODINGS[coded]()

    def _hold(self, portion: Portion) -> Portion:
        held: ExitStack = self.scope[HELD]
        held.callback(portion.close)
        return portion


class StrictRoute(APIRoute):
    """Who asks and whether they may comes first, then the body, then what FastAPI does with both. It would read the body
    first, and turn what is raised while it does so into a 400 without a field."""

    enter: Callable[[Request], Awaitable[None]] = staticmethod(access.enter)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, takes_body = super().get_route_handler(), self.body_field is not None

        async def strict(request: Request) -> Response:
            incoming = StrictRequest(request.scope, request.receive)
            await self.enter(incoming)
            if takes_body:
                await incoming.body()
            return await handle(incoming)

        return strict


class Anything(Convertor[str]):
    """`{name:anything}`: slashes as in Starlette's `path`, and line feeds, at which that one stops."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anything", Anything())
