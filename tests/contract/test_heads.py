"""What comes before a body is bounded too: nobody has said yet who he is."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from steelyard_api.heads import MOST_HEAD, Heads

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Hasty(Heads):
    seconds = 0.2


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def answers_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body where the path says so, and answers with its length."""
    size = 0
    while scope["path"] == "/read":
        message: Message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            break
    said = str(size).encode()
    headers = [(b"content-length", str(len(said)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


@asynccontextmanager
async def connected(protocol: type[Heads]) -> AsyncIterator[Connection]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = _Server(uvicorn.Config(answers_at_once, http=protocol, lifespan="off", log_config=None))
        task = asyncio.create_task(server.serve(sockets=[listening]))
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()
            server.should_exit = True
            await task


async def sent_until_closed(connection: Connection, begin: bytes, piece: bytes, most: int) -> tuple[int, bytes]:
    """How much was taken, and what was answered."""
    reader, writer = connection
    writer.write(begin)
    taken = 0
    try:
        while taken < most and not reader.at_eof():
            writer.write(piece)
            await writer.drain()
            taken += len(piece)
        return taken, b"" if taken >= most else await reader.read()
    except ConnectionError:
        return taken, b""


ENDLESS = {
    "a header": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ",
    "headers": b"GET / HTTP/1.1\r\nHost: x\r\n",
    "a path": b"GET /",
    "a trailer": b"POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-A: ",
    "a size of a chunk": b"POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;",
}


@pytest.mark.parametrize("kind", ENDLESS)
async def test_a_head_without_an_end_fills_no_memory(kind: str) -> None:
    """All of it was kept once, by the parser, for whoever sent it."""
    piece = b"X-B: y\r\n" * 1000 if kind == "headers" else b"a" * 8000
    async with connected(Heads) as connection:
        taken, answer = await sent_until_closed(connection, ENDLESS[kind], piece, 60_000_000)
    assert taken < 30_000_000, "the connection is open still"
    assert not answer or answer.startswith(b"HTTP/1.1 431 ") or b"400" in answer


async def test_large_heads_and_bodies_of_small_chunks_are_taken() -> None:
    async with connected(Heads) as (reader, writer):
        head = b"POST /read HTTP/1.1\r\nHost: x\r\nX-A: %s\r\n" % (b"a" * (MOST_HEAD - 1_000))
        for _ in range(3):
            writer.write(head + b"Content-Length: 3000000\r\n\r\n" + b"x" * 3_000_000)
            assert (await reader.readuntil(b"3000000")).startswith(b"HTTP/1.1 200 ")
            writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 300_000 + b"0\r\n\r\n")
            assert (await reader.readuntil(b"300000")).startswith(b"HTTP/1.1 200 ")


SLOW = {
    "nothing": b"",
    "half a head": b"GET / HTTP/1.1\r\nHost:",
    "the next head": b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT",
    "the rest of a body that was answered": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx",
}


@pytest.mark.parametrize("kind", SLOW)
async def test_who_sends_a_byte_now_and_then_loses_the_connection(kind: str) -> None:
    async with connected(Hasty) as (reader, writer):
        writer.write(SLOW[kind])
        ended = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(60):
            while not ended.done():
                if kind != "nothing" and not writer.is_closing():
                    writer.write(b"x")
                await asyncio.wait([ended], timeout=0.05)
