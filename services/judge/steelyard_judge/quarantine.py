"""A readers-writer lock: jobs go beside each other, and a pair that is suspected of killing judges goes alone."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class Quarantine:
    """While somebody is alone nothing else begins or is under way in this process, so a death then is nobody else's fault.
    The others have the judge afterwards for as long as it was closed to them: suspects take half of the time at most."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wait: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._clock, self._wait = clock, wait
        self.taken = False
        self._beside = self._queued = 0
        self._open, self._empty = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._empty.set()
        self._others_until = 0.0

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        self._queued += 1
        try:
            while not self._open.is_set():
                await self._open.wait()
        finally:
            self._queued -= 1
        self._beside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._beside -= 1
            if not self._beside:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """One at a time: who finds it `taken` comes again later."""
        assert not self.taken
        self.taken = True
        try:
            await self._others_had_their_time()
            closed = self._clock()
            self._open.clear()
            try:
                await self._empty.wait()
                yield
            finally:
                now = self._clock()
                self._others_until = now + (now - closed)
                self._open.set()
        finally:
            self.taken = False

    async def _others_had_their_time(self) -> None:
        """Where nobody else is there, nobody is waited for."""
        while (self._beside or self._queued) and (left := self._others_until - self._clock()) > 0:
            await self._wait(min(left, 1.0))
