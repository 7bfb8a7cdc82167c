"""Admission: how much of a process requests may take at once, and one organisation of that.

The order is: who asks, then a place, then room for the body, then room for the values in it. Each is refused or waited for
before it is used, and given back when the answer was sent."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from uuid import UUID

from starlette.types import Scope

from steelyard_api.errors import Refused

HELD, WHO = (
    "steelyard.held",
    "steelyard.who",
)  # in a request's scope: what it gives back at its end, and its organisation
PATIENCE = 10.0  # seconds for which a request waits for room, as for a connection
STRANGERS, WAITING_STRANGERS = 3, 200  # credentials not seen before: looked up at once, and waiting for that
MOST_KNOWN = 10_000
MOST_VALUES = 500_000  # of all bodies together; at 300 bytes each, 150 MB

Who = UUID | str


class Waiting(NamedTuple):
    who: Who
    amount: int
    granted: "asyncio.Future[None]"


class Share:
    """A semaphore with weights: at most `most` at once in this process, half of that for one organisation. `single` is what
    one request may need, however small the share is set."""

    def __init__(self, what: str, most: int, single: int = 1, patience: float = PATIENCE) -> None:
        self._what, self._patience = what, patience
        self._most = max(most, single)
        self._each = max(most // 2, single)
        self.taken = 0
        self._by: Counter[Who] = Counter()
        self._waiting: deque[Waiting] = deque()

    def take(self, who: Who, amount: int) -> None:
        """Now or not at all: whoever holds something already must not wait for more, or two would wait for each other."""
        if not self._fits(who, amount):
            raise self._busy(who, amount)
        self._add(who, amount)

    async def wait(self, who: Who, amount: int) -> None:
        """First come, first served; those whose organisation has its share are passed over."""
        if not self._waiting and self._fits(who, amount):
            return self._add(who, amount)
        waiting = Waiting(who, amount, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._grant()
        try:
            async with asyncio.timeout(self._patience):
                await asyncio.shield(waiting.granted)
        except BaseException as e:
            if waiting.granted.done():
                self.give(who, amount)
            else:
                waiting.granted.cancel()
                self._grant()
            if isinstance(e, TimeoutError):
                raise self._busy(who, amount) from None
            raise

    def give(self, who: Who, amount: int) -> None:
        self.taken -= amount
        self._by[who] -= amount
        if not self._by[who]:
            del self._by[who]
        self._grant()

    def _grant(self) -> None:
        for waiting in list(self._waiting):
            if waiting.granted.done():
                self._waiting.remove(waiting)
            elif self._fits(waiting.who, waiting.amount):
                self._waiting.remove(waiting)
                self._add(waiting.who, waiting.amount)
                waiting.granted.set_result(None)
            elif self._has_share_left(waiting.who, waiting.amount):
                break  # it is the process that is full: small ones must not go past a large one for ever

    def _add(self, who: Who, amount: int) -> None:
        self.taken += amount
        self._by[who] += amount

    def _fits(self, who: Who, amount: int) -> bool:
        return self.taken + amount <= self._most and self._has_share_left(who, amount)

    def _has_share_left(self, who: Who, amount: int) -> bool:
        return self._by[who] + amount <= self._each

    def _busy(self, who: Who, amount: int) -> Refused:
        if self._has_share_left(who, amount):
            return busy(f"The service has all the {self._what} that it holds at once")
        said = f"Your organisation has all the {self._what} that it may have at once: wait for some of its requests"
        return Refused(429, said, headers={"Retry-After": "1"})


class Portion:
    """What one request holds of a share."""

    def __init__(self, share: Share, who: Who) -> None:
        self._share, self._who, self.amount = share, who, 0

    async def wait(self, amount: int) -> None:
        await self._share.wait(self._who, amount)
        self.amount += amount

    def resize(self, amount: int) -> None:
        if amount > self.amount:
            self._share.take(self._who, amount - self.amount)
        elif amount < self.amount:
            self._share.give(self._who, self.amount - amount)
        self.amount = amount

    def close(self) -> None:
        self.resize(0)


class Known:
    """Which organisation a credential spoke for the last time (LRU). A hint and no proof: it decides in which queue the
    question waits, and each request is asked about all the same. So strangers, who can only make credentials up, wait for
    each other and not before a tenant's requests."""

    def __init__(self, at_once: int = STRANGERS, waiting: int = WAITING_STRANGERS) -> None:
        self._organizations: OrderedDict[bytes, UUID] = OrderedDict()
        self._asking: dict[bytes, asyncio.Event] = {}
        self._at_once, self._room = asyncio.Semaphore(at_once), at_once + waiting

    async def organization(self, credential: bytes) -> UUID | None:
        """Single-flight: the first requests of a credential in a new process are one question, and then known."""
        if (asking := self._asking.get(credential)) is not None:
            await asking.wait()
        if (found := self._organizations.get(credential)) is not None:
            self._organizations.move_to_end(credential)
        return found

    def remember(self, credential: bytes, organization: UUID) -> None:
        self._organizations[credential] = organization
        if len(self._organizations) > MOST_KNOWN:
            self._organizations.popitem(last=False)

    @asynccontextmanager
    async def stranger(self, credential: bytes) -> AsyncIterator[None]:
        if not self._room:
            raise busy("Too many credentials that were not seen before are being looked up")
        self._room -= 1
        asking = self._asking.setdefault(credential, asyncio.Event())
        try:
            async with self._at_once:
                yield
        finally:
            self._room += 1
            self._asking.pop(credential, None)
            asking.set()


class Admission:
    """Of one process."""

    def __init__(
        self, requests: int, body_bytes: int, largest_body: int, most_values: int, patience: float = PATIENCE
    ) -> None:
        self.patience = patience
        self.places = Share("requests in progress", requests)
        self.bodies = Share("room for request bodies", body_bytes, largest_body, patience)
        self.values = Share("room for JSON values", MOST_VALUES, most_values, patience)
        self.known = Known()
        self.parsing = asyncio.Lock()  # one large body at a time, and the loop turns between two: see wire.py

    def enter(self, scope: Scope, who: Who) -> None:
        """A place until the answer was sent. It is taken once, by whoever learns first for whom."""
        if WHO in scope:
            return
        place = Portion(self.places, who)
        place.resize(1)
        scope[HELD].callback(place.close)
        scope[WHO] = who


def busy(said: str) -> Refused:
    return Refused(503, f"{said}; nothing was changed", headers={"Retry-After": "1"})
