"""Gates before providers, one for each account: what closes here is told to everybody, and what closes elsewhere is heard."""

import asyncio
import contextlib
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta

from steelyard.clock import Clock, utc_now
from steelyard.errors import Later
from steelyard.events import ProviderClosed

# How long a call waits for its turn. Longer, and the conversations of a slow provider would hold all of a judge's slots.
PATIENCE = 5.0
# Of an exhausted quota it is the run that waits: its pairs come back soon, so that they are there when it goes on.
SOON = 2.0


class Shut(Later):
    """The provider takes nothing now: nobody's attempt, and everybody is to know."""


class Exhausted(Shut):
    """The account's quota is used up: waiting alone brings none."""

    def __init__(self, why: str) -> None:
        super().__init__(why, after=SOON + jitter(SOON), counts=False)


@dataclass
class Gate:
    """What one provider takes on one key. A 429 closes it until the time its answer named, and halves how many calls
    go out at once afterwards; each round of answers adds one. Nothing is known, and nothing limited, before the first."""

    until: float = 0.0
    why: str = ""
    exhausted_until: float = 0.0
    why_exhausted: str = ""
    at_once: float = math.inf
    busy: int = 0
    lowered: float = 0.0
    patience: float = PATIENCE
    waiting: deque["asyncio.Future[None]"] = field(default_factory=deque)

    @contextlib.asynccontextmanager
    async def passed(self, model: str) -> AsyncIterator[None]:
        self._open()
        if self.full:
            await self._turn(model)
        else:
            self.busy += 1
        try:
            self._open()  # it may have closed meanwhile
            yield
        finally:
            self._leave()

    @property
    def full(self) -> bool:
        return self.busy + 1 > self.at_once

    @property
    def exhausted(self) -> bool:
        return self.exhausted_until > time.monotonic()

    def close(self, why: str, seconds: float) -> None:
        self.until, self.why = max(self.until, time.monotonic() + seconds), why

    def exhaust(self, why: str, seconds: float) -> None:
        self.exhausted_until, self.why_exhausted = max(self.exhausted_until, time.monotonic() + seconds), why

    def refill(self) -> None:
        self.exhausted_until = 0.0

    def fewer(self, began: float) -> None:
        """Calls that were under way together are limited together, and count once."""
        if began >= self.lowered:
            self.at_once = max(1.0, min(self.at_once, self.busy) / 2)
            self.lowered = time.monotonic()

    def more(self) -> None:
        """Only as long as the limit is felt: what is not tried says nothing."""
        if self.full:
            self.at_once += 1 / self.at_once

    def _open(self) -> None:
        if self.exhausted:
            raise Exhausted(self.why_exhausted)
        if (wait := self.until - time.monotonic()) > 0:
            raise Shut(self.why, after=wait + jitter(wait), counts=False)

    async def _turn(self, model: str) -> None:
        """First come, first served. Who leaves hands its place on, so it is counted already when the turn comes."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            async with asyncio.timeout(self.patience):
                await turn
        except (TimeoutError, asyncio.CancelledError) as e:
            if turn.done() and not turn.cancelled():
                self._leave()  # it came in the moment in which nobody waited for it any more
            if isinstance(e, TimeoutError):
                rounds = min(12.0, 1 + len(self.waiting) / self.at_once)
                why = f"{model} takes {int(self.at_once)} calls at once"
                raise Later(why, after=self.patience * rounds + jitter(self.patience), counts=False) from None
            raise

    def _leave(self) -> None:
        self.busy -= 1
        while self.waiting and (self.waiting[0].done() or not self.full):
            turn = self.waiting.popleft()
            if not turn.done():
                self.busy += 1
                turn.set_result(None)


@dataclass
class Gates:
    """Every judge keeps to what any judge was told by a provider, and the dispatcher releases nothing meanwhile."""

    quota_seconds: float = 900.0
    clock: Clock = utc_now
    bell: asyncio.Event = field(default_factory=asyncio.Event)
    _gates: dict[str, Gate] = field(default_factory=dict)
    # By account and model: the last that was said by anybody with its end by this process's clock, and what nobody was told yet.
    _said: dict[tuple[str, str], tuple[ProviderClosed, float]] = field(default_factory=dict)
    _untold: dict[tuple[str, str], ProviderClosed] = field(default_factory=dict)
    _probing: set[str] = field(default_factory=set)

    def of(self, account: str) -> Gate:
        return self._gates.setdefault(account, Gate())

    def all(self) -> list[Gate]:
        return list(self._gates.values())

    @contextlib.asynccontextmanager
    async def passed(self, account: str, model: str) -> AsyncIterator[Gate]:
        """Whoever finds the gate shut says so for its model, too: an account's limit holds for each of its models."""
        gate = self.of(account)
        try:
            async with gate.passed(model):
                yield gate
        except Shut:
            self._say_closed(account, model, gate)
            raise

    def probe(self, account: str) -> None:
        """One call is to find out whether the quota is still exhausted; nobody else is sent meanwhile."""
        self._probing.add(account)
        self.of(account).refill()

    def answered(self, account: str, model: str) -> None:
        """Only a probe's answer opens: one to a call that was sent before the quota ran out proves nothing."""
        if account not in self._probing:
            return
        self._probing.discard(account)
        closed = {m for (a, m), (said, _) in self._said.items() if a == account and said.exhausted}
        for each in sorted(closed | {model}):
            now = self.clock()
            self._say(ProviderClosed(account=account, model=each, at=now, until=now, why="it answers again"))

    def hear(self, event: ProviderClosed) -> None:
        """For as long as it says, from now on: another process's clock may be wrong."""
        gate, seconds = self.of(event.account), event.seconds
        self._said[event.account, event.model] = event, time.monotonic() + seconds
        if event.opens:
            gate.refill()
        elif event.exhausted:
            gate.exhaust(event.why, seconds)
        else:
            gate.close(event.why, seconds)

    def untold(self) -> list[ProviderClosed]:
        return list(self._untold.values())

    def told(self, events: list[ProviderClosed]) -> None:
        for e in events:
            if self._untold.get((e.account, e.model)) is e:
                del self._untold[e.account, e.model]

    def _say_closed(self, account: str, model: str, gate: Gate) -> None:
        """Once for each closing: of a hundred calls that are limited together, one is heard of. What a probe meets is
        news, however soon it was, and a limit by the minute too: the others still know of the quota alone."""
        probed = account in self._probing
        if gate.exhausted:
            self._probing.discard(account)
        until, why = (gate.exhausted_until, gate.why_exhausted) if gate.exhausted else (gate.until, gate.why)
        now = self.clock()
        said = ProviderClosed(
            account=account, model=model, at=now, until=now + timedelta(seconds=until - time.monotonic()),
            why=why, exhausted=gate.exhausted,
        )  # fmt: skip
        if probed or self._is_news(said, until):
            self._say(said)

    def _is_news(self, event: ProviderClosed, until: float) -> bool:
        """Whether it closes for longer than what is known, by more than calls that were limited together differ."""
        known, known_until = self._said.get((event.account, event.model), (None, 0.0))
        return known is None or (event.exhausted and not known.exhausted) or until - known_until > 1.0

    def _say(self, event: ProviderClosed) -> None:
        self._untold[event.account, event.model] = event
        self._said[event.account, event.model] = event, time.monotonic() + event.seconds
        self.bell.set()


def jitter(wait: float) -> float:
    """So that not everybody who waited knocks in the same moment."""
    return random.uniform(0.05, 0.05 + min(5.0, wait * 0.05))
