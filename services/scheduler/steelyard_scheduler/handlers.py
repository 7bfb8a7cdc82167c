"""The clock's loops: it looks at the ledger and tells, it tidies up, and it relays what a dead service left behind."""

import logging
from collections.abc import Awaitable, Callable, Mapping

from prometheus_client import Gauge

from steelyard.bulkhead import Bulkheads
from steelyard.service import Service
from steelyard.settings import Settings
from steelyard.store import answers, once, scores, tidying, usage
from steelyard.store.database import Database, Tx

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


async def _requests(tx: Tx, _: Settings) -> int:
    await usage.forget(tx)
    return await once.forget(tx, REMEMBERED_HOURS, PAGE)


CHORES: Mapping[str, Callable[[Tx, Settings], Awaitable[int]]] = {
    "pairs of old runs": lambda tx, s: tidying.prune(tx, s.ledger_days, PAGE),
    "scores whose trace never came": lambda tx, _: scores.prune_parked(tx, PARKED_HOURS, PAGE),
    "answers to old requests": _requests,
    "judges' replies": lambda tx, s: answers.forget(tx, s.ledger_days, PAGE),
}


def scheduler(settings: Settings, database: Database) -> Service:
    """Several may run: counting is harmless, and pruning takes rows in pages that do not wait for each other."""
    service, chores = Service("scheduler"), Bulkheads("scheduler", "tidying")
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
        """In pages, each its own transaction: a large clean-up never holds up the work, nor does one that fails another."""
        pruned = dict.fromkeys(CHORES, 0)
        for what, chore in CHORES.items():
            if not chores.closed(what):
                with chores.around(what):
                    async with database.begin() as tx:
                        pruned[what] = await chore(tx, settings)
        if any(pruned.values()):
            log.info("pruned %s", ", ".join(f"{n} {what}" for what, n in pruned.items() if n))
        return PAGE in pruned.values()

    @service.loop(every=SWEEP_EVERY)
    async def sweep() -> bool:
        """What deleted runs have left; nobody sees it any more, but the dispatcher's questions pass over it."""
        async with database.begin() as tx:
            return await tidying.sweep(tx, PAGE) > 0

    return service
