"""Admission by bytes: conversations hold traces, and a process has so much memory and no more."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# What a character of stored JSON may take while it is judged: the objects it becomes (`[],` is 3 characters and 64
# bytes), and the copies that hashing and rendering make. Held by tests/flow/test_judges_die.py.
FACTOR = 32


class Ticket:
    def __init__(self, admission: "Admission", size: int) -> None:
        self._admission, self.size = admission, size

    def shrink(self, size: int) -> None:
        """It came to less than it might have: the rest is others'."""
        if size < self.size:
            self._admission.give(self.size - size)
            self.size = size


class Admission:
    """FIFO. What is larger than the budget goes alone, so nothing waits for ever; who holds a ticket waits for no other."""

    def __init__(self, budget: int) -> None:
        self._budget, self.used = budget, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def ticket(self, size: int) -> AsyncIterator[Ticket]:
        await self._take(size)
        ticket = Ticket(self, size)
        try:
            yield ticket
        finally:
            self.give(ticket.size)

    def give(self, size: int) -> None:
        self.used -= size
        self._admit()

    async def _take(self, size: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            # Admitted and cancelled in the same moment: the place is given back.
            if turn.done() and not turn.cancelled():
                self.give(size)
            raise

    def _admit(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.cancelled():
                if self.used and self.used + size > self._budget:
                    return
                self.used += size
                turn.set_result(None)
            self._waiting.popleft()
