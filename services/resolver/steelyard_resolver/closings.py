"""Which models take no calls now, as judges have told it, and what that makes of their runs in the ledger."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from steelyard.bulkhead import Bulkheads
from steelyard.events import ProviderClosed
from steelyard.store import ledger
from steelyard.store.database import Database

log = logging.getLogger(__name__)


class Closings:
    """The newest word about each model. A limit by the minute is known here alone: it is over soon, and a resolver that
    starts hears it again. An exhausted quota is written down at the runs it holds, and there it holds for every resolver,
    until somebody tells that the model answers again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._newest: dict[str, ProviderClosed] = {}
        self._unwritten: set[str] = set()
        self._models = Bulkheads("resolver", "closing")

    def hear(self, event: ProviderClosed) -> None:
        self._newest[event.model], self._until[event.model] = event, self._clock() + event.seconds
        if event.exhausted:
            self._unwritten.add(event.model)

    def closed(self, model: str) -> bool:
        return self._seconds_left(model) > 0

    def _seconds_left(self, model: str) -> float:
        """From when it was heard, by this process's clock."""
        return self._until.get(model, 0.0) - self._clock()

    def limited(self, model: str) -> bool:
        """Closed, and not for want of quota: a probe would bring nothing."""
        return self.closed(model) and not self._newest[model].exhausted

    async def write(self, database: Database, found: Sequence[ledger.Demand]) -> bool:
        """Whether any run was paused or goes on. A transaction for each model, so that no two of them lock runs in
        another order than settling does."""
        unwritten, self._unwritten = self._unwritten, set()
        by_model, changed = _by_model(found), False
        try:
            for model, some in by_model.items():
                if self._models.closed(model):
                    continue
                with self._models.around(model):
                    changed |= await self._write(database, model, some, model in unwritten)
                    unwritten.discard(model)
        finally:
            self._unwritten |= unwritten & set(by_model)
        return changed

    async def _write(self, database: Database, model: str, some: Sequence[ledger.Demand], anew: bool) -> bool:
        held, said = [d for d in some if d.paused_why], self._newest.get(model)
        if said and said.opens:
            return bool(held) and await self._go_on(database, model)
        if said and said.exhausted and self.closed(model):
            if not anew and len(held) == len(some):
                return False
            pause = ledger.Pause(model, said.why, seconds=self._seconds_left(model))
            return await self._hold(database, pause, anew)
        if held and len(held) < len(some):
            # A run that came while the model is being tried: it waits with the others for what comes of it.
            return await self._hold(
                database, ledger.Pause(model, held[0].paused_why or "", held[0].paused_until), False
            )
        return False

    async def _hold(self, database: Database, pause: ledger.Pause, anew: bool) -> bool:
        async with database.begin() as tx:
            count = await ledger.pause(tx, pause, anew)
        if count:
            log.warning("%d runs are paused: %s", count, pause.why)
        return count > 0

    async def _go_on(self, database: Database, model: str) -> bool:
        async with database.begin() as tx:
            count = await ledger.unpause(tx, model)
        if count:
            log.info("%d runs go on: %s answers again", count, model)
        return count > 0


def _by_model(found: Sequence[ledger.Demand]) -> Mapping[str, list[ledger.Demand]]:
    """Without those that are being stopped: nothing more of them is sent, and nothing is to be paused."""
    going = sorted((d for d in found if not d.stopping), key=lambda d: d.model)
    return {model: list(some) for model, some in groupby(going, key=lambda d: d.model)}
