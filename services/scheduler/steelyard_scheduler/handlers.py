"""The clock's loops: it looks at the ledger and tells, it tidies up, and it relays what a dead service left behind."""

import logging

from prometheus_client import Gauge

from steelyard.service import Service
from steelyard.settings import Settings
from steelyard.store import answers, once, scores, tidying, usage
from steelyard.store.database import Database

log = logging.getLogger(__name__)
LOOK_EVERY = 10.0
TIDY_EVERY = 60.0
SWEEP_EVERY = 5.0
PAGE = 5000
PARKED_HOURS = 24.0
REMEMBERED_HOURS = 24.0

CENSUS = {
    name: Gauge(f"steelyard_ledger_{name}", told)
    for name, told in {
        "runs_active": "Runs that are not finished",
        "pairs_owed": "Pairs of unfinished runs that wait in the ledger",
        "pairs_dispatched": "Pairs whose job is under way",
        "dispatched_oldest_seconds": "Age of the oldest job under way",
        "outbox_rows": "Messages that are owed to Kafka",
        "outbox_oldest_seconds": "Age of the oldest message that is owed to Kafka",
    }.items()
}


def scheduler(settings: Settings, database: Database) -> Service:
    """Several may run: counting is harmless, and pruning takes rows in pages that do not wait for each other."""
    service = Service("scheduler")
    service.parts.append(database)

    @service.loop(every=LOOK_EVERY)
    async def look() -> bool:
        """One place counts the ledger: the same queries from every pod would cost more than they tell."""
        async with database.begin() as tx:
            for name, value in (await tidying.census(tx)).items():
                CENSUS[name].set(value)
        return False

    @service.loop(every=TIDY_EVERY)
    async def tidy() -> bool:
        """In pages, each its own transaction: a large clean-up never holds up the work."""
        async with database.begin() as tx:
            pairs = await tidying.prune(tx, settings.ledger_days, PAGE)
        async with database.begin() as tx:
            parked = await scores.prune_parked(tx, PARKED_HOURS, PAGE)
        async with database.begin() as tx:
            requests = await once.forget(tx, REMEMBERED_HOURS, PAGE)
            await usage.forget(tx)
        async with database.begin() as tx:
            replies = await answers.forget(tx, settings.ledger_days, PAGE)
        if pairs or parked or requests or replies:
            said = "pruned %d pairs of old runs, %d scores whose trace never came, %d answers to old requests, %d judges' replies"
            log.info(said, pairs, parked, requests, replies)
        return PAGE in (pairs, parked, requests, replies)

    @service.loop(every=SWEEP_EVERY)
    async def sweep() -> bool:
        """What deleted runs have left; nobody sees it any more, but the dispatcher's questions pass over it."""
        async with database.begin() as tx:
            return await tidying.sweep(tx, PAGE) > 0

    return service
