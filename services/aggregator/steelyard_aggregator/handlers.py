"""Results come in batches: pairs are settled, scores written, counters moved, runs finished, in one transaction."""

from collections.abc import Sequence
from dataclasses import replace

from steelyard.events import RunExpanded, RunFinished, TraceDeferred, TraceScored
from steelyard.runs import GONE, Settled, distinct, settle
from steelyard.service import Service
from steelyard.settings import Settings
from steelyard.store import ledger
from steelyard.store.database import Database
from steelyard.store.outbox import Outbox


def aggregator(settings: Settings, database: Database) -> Service:
    service = Service("aggregator")
    service.parts.append(database)

    @service.on
    async def settle_results(
        results: Sequence[TraceScored | TraceDeferred | RunExpanded],
        outbox: Outbox[RunFinished] = Outbox(),  # noqa: B008 - it holds nothing
    ) -> None:
        """Reading everything twice changes nothing: only pairs that are not settled are touched."""
        outcomes = distinct(r for r in results if not isinstance(r, RunExpanded))
        released = sorted({r.run_id for r in results if isinstance(r, RunExpanded)})
        async with database.begin() as tx:
            pairs = await ledger.lock_unsettled(tx, sorted(outcomes)) if outcomes else []
            settled, postponed = settle(pairs, outcomes, settings.judge_attempts)
            there = (
                await ledger.hold_traces(tx, [(s.pair.trace_id, s.pair.project_id) for s in settled]) if settled else {}
            )
            settled = [s if s.pair.trace_id in there else _gone(s) for s in settled]
            await ledger.postpone(tx, postponed)
            if settled:
                await ledger.settle(tx, settled, there)
            finished = await ledger.count(tx, settled, released)
            if settled or postponed:
                await ledger.ring(tx)
            await outbox.put(tx, *(RunFinished(run_id=r, project_id=p, status="COMPLETED") for r, p in finished))

    return service


def _gone(settled: Settled) -> Settled:
    """Whatever was said about it: a trace that was deleted has no score."""
    return replace(settled, value=None, reason=GONE)
