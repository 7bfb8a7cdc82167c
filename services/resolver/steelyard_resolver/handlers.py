"""RunRequested wakes two loops: one expands runs into pairs, the other keeps the judges' window full."""

import asyncio
from collections.abc import Sequence

from steelyard.events import ProviderClosed, RunExpanded, RunFinished, RunRequested, TraceJob, TraceScored
from steelyard.kafka import Cluster
from steelyard.service import Publish, Service
from steelyard.settings import Settings
from steelyard.store.bells import Bells
from steelyard.store.database import Database
from steelyard.store.ledger import REFILL
from steelyard.store.outbox import Outbox
from steelyard_resolver.closings import Closings
from steelyard_resolver.deaths import Deaths
from steelyard_resolver.dispatch import Dispatcher
from steelyard_resolver.evicting import Evictor
from steelyard_resolver.expand import BACKOFF_SECONDS, Expander
from steelyard_resolver.overdue import Overdue
from steelyard_resolver.readers import SharedReaders


def resolver(
    settings: Settings, cluster: Cluster, database: Database, backoff: Sequence[float] = BACKOFF_SECONDS
) -> Service:
    """Any number may run: what a run's turn needs is locked in the ledger, and nothing lives in memory alone."""
    service = Service("resolver")
    asked, room = asyncio.Event(), asyncio.Event()
    readers = SharedReaders(cluster, settings.judge_slots)
    bells = Bells(settings.worker_database_url.get_secret_value(), {REFILL: room})
    service.parts += [database, readers, bells]
    expander = Expander(database, backoff=backoff)
    closings = Closings()
    dispatcher = Dispatcher(database, readers, closings)
    evictor = Evictor(database, readers)
    late = Overdue(database, readers, settings.redispatch_seconds)
    deaths = Deaths(database)

    @service.on
    async def wake(run: RunRequested) -> None:
        """The loop would find the run anyway: a lost event delays it by a second and loses nothing."""
        asked.set()

    @service.follow
    def keep_to_closings(closed: ProviderClosed) -> None:
        """Runs of a model that takes no calls are held back, and go on as soon as it answers."""
        closings.hear(closed)
        room.set()

    @service.loop(every=1.0, bell=asked)
    async def expand_runs(outbox: Outbox[RunExpanded | RunFinished] = Outbox()) -> bool:  # noqa: B008
        """One page of one run a turn, so that a huge run blocks nobody."""
        wrote = await expander.turn(outbox)
        if wrote:
            room.set()
        return wrote

    @service.loop(every=1.0, bell=room)
    async def release_jobs(publish: Publish[TraceJob | TraceScored]) -> bool:
        """Refills the window; rung by the aggregator, with a poll behind it."""
        return await dispatcher.turn(publish)

    @service.loop(every=max(0.5, settings.redispatch_seconds / 3))
    async def send_overdue_again(
        publish: Publish[TraceScored],
        outbox: Outbox[RunExpanded] = Outbox(),  # noqa: B008
    ) -> bool:
        """Jobs that were read or lost without an outcome; what was sent too often is settled as undeliverable."""
        await late.release_again(outbox)
        if await late.turn(publish):
            room.set()
        return False

    @service.loop(every=0.5)
    async def evict_dead_judges() -> bool:
        """Their jobs go to the others at once."""
        await evictor.turn()
        return False

    @service.loop(every=1.0)
    async def count_deaths() -> bool:
        """What dead judges had under way; who judges it next finds the count."""
        await deaths.turn()
        return False

    return service
