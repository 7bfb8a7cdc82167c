"""How many requests of a minute a caller has left, over any number of processes."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import text

from steelyard.store.database import Database, Tx

SLICES = 100
MOST_CALLERS = 10_000


@dataclass(frozen=True)
class Lease:
    """A part of the minute's allowance that is one process's alone; `seconds` is what is left of the minute."""

    granted: int
    seconds: float


async def lease(tx: Tx, caller: str, size: int, most: int) -> Lease:
    """What all processes take is counted under the row's lock, so their sum stays below `most`."""
    row = (await tx.execute(_LEASE, {"caller": caller, "size": size})).one()
    return Lease(granted(row.taken, size, most), float(row.seconds))


def granted(taken: int, size: int, most: int) -> int:
    """`taken` counts the slice that was just asked for; the last one that fits may be cut short."""
    return max(0, min(size, most - (taken - size)))


@dataclass
class Allowance:
    """What this process may still serve of one caller before it asks again. Pure: the clock is passed in."""

    left: int = 0
    until: float = -math.inf
    spent: bool = False
    one: asyncio.Lock = field(default_factory=asyncio.Lock)  # many requests at once lease one slice and not one each

    def take(self, now: float) -> bool:
        """A slice is good for its own minute: kept into the next one, it would come on top of that one's limit."""
        if now >= self.until or not self.left:
            return False
        self.left -= 1
        return True

    def wait(self, now: float) -> float | None:
        """Seconds until there is more, where it is known that this minute has none left."""
        return self.until - now if self.spent and now < self.until else None

    def add(self, lease: Lease, asked_at: float) -> None:
        """The minute's end is counted from before the question: never later than the database has it."""
        self.left, self.until, self.spent = lease.granted, asked_at + lease.seconds, not lease.granted


async def forget(tx: Tx) -> int:
    """Callers who were not heard of for an hour."""
    return (await tx.execute(_FORGET)).rowcount


class Limit:
    """At most so many requests a minute for each caller. Most of them cost no statement: a process takes a slice of the
    minute and serves from it. A slice that a process does not use is lost to the others until the minute ends."""

    def __init__(self, database: Database, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self.most, self._clock = database, most, clock
        self._size = max(1, most // SLICES)
        self._callers: dict[str, Allowance] = {}

    async def wait(self, caller: str) -> float | None:
        """None when the request may go on, else the seconds until the next minute."""
        if not self.most:
            return None
        allowance = self._callers.get(caller) or self._new(caller)
        if allowance.take(self._clock()):
            return None
        async with allowance.one:
            return await self._ask(caller, allowance)

    async def _ask(self, caller: str, allowance: Allowance) -> float | None:
        """Again from the top: another request may have leased while this one waited for the lock."""
        asked_at = self._clock()
        while not allowance.take(asked_at):
            if (seconds := allowance.wait(asked_at)) is not None:
                return seconds
            async with self._database.single() as tx:
                leased = await lease(tx, caller, self._size, self.most)
            allowance.add(leased, asked_at)
            asked_at = self._clock()
        return None

    def _new(self, caller: str) -> Allowance:
        if len(self._callers) >= MOST_CALLERS:
            now = self._clock()
            self._callers = {c: a for c, a in self._callers.items() if now < a.until or a.one.locked()}
        return self._callers.setdefault(caller, Allowance())


# The clock is the database's, one for all processes. A statement that waited for the row may be of the minute before:
# it counts in the minute it finds. One that finds a minute of the future sees a clock that was set back.
_LEASE = text(
    """
    INSERT INTO key_usage AS u (caller, window_start, taken)
    VALUES (:caller, date_trunc('minute', statement_timestamp()), CAST(:size AS int))
    ON CONFLICT (caller) DO UPDATE SET
        taken = CASE
            WHEN u.window_start >= excluded.window_start AND u.window_start <= excluded.window_start + interval '1 minute'
            THEN least(u.taken::bigint + excluded.taken, 2147483647)::int ELSE excluded.taken
        END,
        window_start = CASE
            WHEN u.window_start <= excluded.window_start + interval '1 minute'
            THEN greatest(u.window_start, excluded.window_start) ELSE excluded.window_start
        END
    RETURNING taken, greatest(extract(epoch FROM window_start + interval '1 minute' - clock_timestamp()), 0) AS seconds
    """
)
_FORGET = text("DELETE FROM key_usage WHERE window_start < now() - interval '1 hour'")
