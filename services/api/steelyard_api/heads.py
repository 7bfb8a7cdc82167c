"""The head of a request is bounded, in bytes and in seconds: the parser below has no limit, and nobody has asked yet."""

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD = 65_536  # as h11 has it; also of what stands between a body's chunks, and behind them
_TOO_LARGE = b'{"detail":"The request line and headers are larger than %d bytes"}' % MOST_HEAD
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s"
)


class Heads(HttpToolsProtocol):
    """Bytes that are no body's count until the head is complete; a body's own give room for its framing, up to a chunk
    for each byte. And a head, or the rest of a body that was answered already, has so many seconds: what comes of it a
    byte at a time would keep its connection for ever."""

    seconds: ClassVar[float] = 30.0
    _left = MOST_HEAD
    _whole = True
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        super().data_received(data)
        if self._left < 0 and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._left, self._whole = MOST_HEAD, False
        self._arm()

    def on_headers_complete(self) -> None:
        self._left = MOST_HEAD
        self._disarm()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._left = min(self._left + 9 * len(body), MOST_HEAD)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._left, self._whole = MOST_HEAD, True
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._whole:
            self._arm()

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.seconds, self._too_late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self) -> None:
        """A request that is being answered already has its own answer under way: then the connection just ends."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_REFUSAL % (len(_TOO_LARGE), _TOO_LARGE))
        self.transport.close()
