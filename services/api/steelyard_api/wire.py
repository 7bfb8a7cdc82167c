"""Around every request: its id, its size, and JSON read strictly."""

import math
import zlib
from collections.abc import Callable, Coroutine
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
from steelyard_api.errors import Refused, answer, broken

REQUEST_ID = "x-request-id"
CREDENTIALS = ("x-api-key", "authorization")
ENCODINGS = {"": False, "identity": False, "gzip": True, "x-gzip": True}
UNKNOWN = math.inf
WORTH_READING = 65_536  # less is read to its end, so that the connection lives and the answer is not lost with it
MOST_MEMBERS = 16  # each costs a copy of all that follows it


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


class TooLarge(HTTPException):
    """An HTTPException, because FastAPI turns whatever else reading a body raises into a 400."""

    def __init__(self, most: int) -> None:
        said = f"The body is larger than {most // 1_000_000} MB (MAX_BODY_MB)"
        super().__init__(413, said, {"Connection": "close"})


class BodyLimit:
    """A body over the limit is refused as soon as that is known: by its header, or by what has arrived. And an answer that
    comes before a large body closes the connection: nobody reads the rest only to throw it away."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        left = _announced(scope)
        if self._most < left < UNKNOWN:
            refusal = TooLarge(self._most)
            return await answer(413, refusal.detail, (), refusal.headers)(scope, receive, send)
        seen = 0

        async def limited() -> Message:
            nonlocal seen, left
            message = await receive()
            size = len(message.get("body", b""))
            seen, left = seen + size, left - size if message.get("more_body", False) else 0
            if seen > self._most:
                raise TooLarge(self._most)
            return message

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and left > WORTH_READING:
                kept = [(k, v) for k, v in message["headers"] if k.lower() != b"connection"]
                message["headers"] = [*kept, (b"connection", b"close")]
            await send(message)

        return await self._app(scope, limited, closing)


def _announced(scope: Scope) -> float:
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    if length.isdigit():
        return int(length[:20])  # int() refuses more than 4,300 digits; some parsers let more of them pass
    return UNKNOWN if b"transfer-encoding" in headers else 0


class StrictRequest(Request):
    """orjson refuses what JSON does not have: NaN, Infinity, lone surrogates, bytes that are not UTF-8."""

    async def body(self) -> bytes:
        if not self.says_who():
            return b""  # refused in the words of `visit`, with the body unread
        return await super().body()

    async def json(self) -> Any:
        return orjson.loads(await self.body())

    async def unpack(self) -> None:
        """Before FastAPI reads the body: what is raised while it does so becomes a 400 without a field."""
        coded = ",".join(self.headers.getlist("content-encoding")).strip().lower()
        if coded not in ENCODINGS:
            said = f"The body's Content-Encoding is {coded[:100]!r}: send it as it is, or with gzip"
            raise Refused(415, said, ("Content-Encoding", "is not understood"), headers={"Accept-Encoding": "gzip"})
        if ENCODINGS[coded]:
            self._body = _unpacked(await self.body(), int(self.app.state.most_bytes))

    def says_who(self) -> bool:
        return any(name in self.headers for name in CREDENTIALS)


class StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            asked = StrictRequest(request.scope, request.receive)
            if "content-encoding" in asked.headers and asked.says_who():
                await asked.unpack()
            return await handle(asked)

        return strict


class Anything(Convertor[str]):
    """`{name:anything}`: slashes as in Starlette's `path`, and line feeds, at which that one stops."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anything", Anything())


def _unpacked(body: bytes, most: int) -> bytes:
    """Every member of the file, whole; no more is unpacked than would have been accepted unpacked."""
    parts, room, rest = list[bytes](), most + 1, body
    while rest:
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            parts.append(unpacker.decompress(rest, room))
        except zlib.error as e:
            raise _not_gzip("it does not begin as gzip does, or is damaged") from e
        if (room := room - len(parts[-1])) <= 0:
            raise TooLarge(most)
        if not unpacker.eof:
            raise _not_gzip("it ends too early")
        if len(parts) == MOST_MEMBERS:
            raise _not_gzip(f"it has more than {MOST_MEMBERS} members")
        rest = unpacker.unused_data
    return b"".join(parts)


def _not_gzip(why: str) -> Refused:
    return Refused(422, "Validation error", ("body", f"is not gzip, as its Content-Encoding says: {why}"))
