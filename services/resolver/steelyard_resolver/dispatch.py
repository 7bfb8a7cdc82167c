"""Work is released in a window: no more pairs are under way than the judges can soon hold, shared among the runs."""

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from uuid import UUID

from steelyard.bulkhead import Bulkheads
from steelyard.errors import Later
from steelyard.events import Owed, TraceJob, TraceScored
from steelyard.runs import PairState, shares, window
from steelyard.service import Publish
from steelyard.store import ledger
from steelyard.store.database import Database
from steelyard.store.runs import SESSIONS
from steelyard_resolver.closings import Closings
from steelyard_resolver.readers import SharedReaders
from steelyard_resolver.watermarks import Watermarks

log = logging.getLogger(__name__)
# How long a slot that became free waits for its next pair: answer, settlement, NOTIFY, dispatch, fetch.
REFILL_SECONDS = 0.3
PRODUCE_SECONDS = 5.0
CLOSED_AT_ONCE = 1000
# What a probe's answer takes to be heard after its pair is settled; until then no other is sent.
PROBE_SECONDS = 5.0


class Dispatcher:
    """Publishes inside the transaction that marks the pairs: a crash in between repeats jobs and loses none."""

    def __init__(self, database: Database, readers: SharedReaders, closings: Closings) -> None:
        self._database, self._readers, self._closings = database, readers, closings
        self._pace = _Pace()
        self._runs = Bulkheads("resolver", "dispatch")
        self._marks = Watermarks()

    async def turn(self, publish: Publish[TraceJob | TraceScored]) -> bool:
        """True when something was released, so that the next turn looks at once."""
        slots = await self._readers.slots()
        found = await self._demands(slots)
        if await self._closings.write(self._database, found):
            found = await self._demands(slots)
        total = window(slots, self._pace.of({d.run_id: d.settled for d in found}), REFILL_SECONDS)
        given = shares(total, {d.run_id: self._share_of(d) for d in found})
        going = [d for d in found if not self._runs.closed(d.run_id)]
        released = 0
        for demand in going:
            with self._runs.around(demand.run_id):
                released += await self._serve(demand, given[demand.run_id], publish)
        for demand in self._to_probe(going):
            with self._runs.around(demand.run_id):
                released += await self._probe(demand, publish)
        self._runs.keep({d.run_id for d in found})
        self._marks.doubt(found)
        return released > 0

    async def _demands(self, slots: int) -> list[ledger.Demand]:
        async with self._database.begin() as tx:
            return await ledger.demands(tx, 4 * slots, self._marks.known)

    async def _serve(self, demand: ledger.Demand, share: int, publish: Publish[TraceJob | TraceScored]) -> int:
        if demand.stopping or demand.broke():
            return await self._close(demand, publish)
        if demand.ready and share > demand.in_flight:
            return await self._refill(demand, share, publish)
        return 0

    def _share_of(self, d: ledger.Demand) -> int:
        """A run that cannot be served now, or whose model takes no calls, keeps what is under way; its share of the window
        is the others'."""
        if d.paused_why or self._closings.closed(d.model) or self._runs.closed(d.run_id):
            return d.in_flight
        return min(d.in_flight + d.ready, d.affordable())

    def _to_probe(self, found: Sequence[ledger.Demand]) -> list[ledger.Demand]:
        """Of each model whose time has come one run, the oldest; and none while a pair of the model is under way."""
        busy = {d.model for d in found if d.in_flight}
        due = [d for d in found if d.due and d.ready and d.affordable() and not d.stopping]
        free = [d for d in due if d.model not in busy and not self._closings.limited(d.model)]
        return list({d.model: d for d in reversed(free)}.values())

    async def _probe(self, demand: ledger.Demand, publish: Publish[TraceJob | TraceScored]) -> int:
        """Its answer opens the model for all of its runs, or closes it once more."""
        async with self._database.begin() as tx:
            if not await ledger.claim_probe(tx, demand.model, PROBE_SECONDS):
                return 0
        return await self._refill(demand, 1, publish, probe=True)

    async def _close(self, demand: ledger.Demand, publish: Publish[TraceJob | TraceScored]) -> int:
        """A page of what will never be sent is settled as not scored, by the aggregator as everything is: counts still
        sum, and a retry finds what is left."""
        async with self._database.begin() as tx:
            if not await ledger.lock_run(tx, demand.run_id):
                return 0
            if not demand.stopping:
                await ledger.stop(tx, demand.run_id, "budget", over_budget(demand))
                log.info("run %s: %s", demand.run_id, over_budget(demand))
            pairs = await ledger.unsent(tx, demand.run_id, CLOSED_AT_ONCE)
            await publish(not_sent(p, demand.stopping or "budget") for p in pairs)
        # The aggregator rings when it has settled them.
        return 0

    async def _refill(
        self, demand: ledger.Demand, share: int, publish: Publish[TraceJob | TraceScored], probe: bool = False
    ) -> int:
        """The advisory lock lets one dispatcher at a time into a run; settling and cancelling never wait for it."""
        async with self._database.begin() as tx:
            if not await ledger.lock_run(tx, demand.run_id):
                return 0
            mark = self._marks.known.get(demand.run_id)
            busy, mark = await ledger.under_way(tx, demand.run_id, mark, self._marks.grace_seconds)
            self._marks.move(demand.run_id, mark)
            pairs = await ledger.take(tx, demand.run_id, share - busy, mark, probe) if share > busy else []
            if not pairs:
                return 0
            made = jobs(demand, pairs, probe)
            try:
                async with asyncio.timeout(PRODUCE_SECONDS):
                    incarnation = await self._readers.recent_incarnation()
                    places = await publish(made)
            except TimeoutError as e:
                raise Later(f"Kafka took no jobs within {PRODUCE_SECONDS:.0f} s") from e
            where = {job.trace_id: (p.partition, p.offset) for job, p in zip(made, places, strict=True)}
            await ledger.dispatched(tx, demand.run_id, pairs, [where[p.trace_id] for p in pairs], incarnation)
            return len(pairs)


def jobs(demand: ledger.Demand, pairs: Sequence[ledger.Taken], probe: bool = False) -> list[TraceJob]:
    """One job for a trace with all metrics it owes, so that it is loaded and read once."""
    by_trace = sorted(pairs, key=lambda p: str(p.trace_id))
    return [
        TraceJob(
            run_id=demand.run_id,
            project_id=demand.project_id,
            target=group[0].target,
            trace_id=trace_id,
            model=demand.model,
            owed=tuple(Owed(metric=p.metric, dispatch_no=p.dispatch_no, attempt=p.attempts) for p in group),
            root_run_id=demand.root_run_id,
            reuse=demand.reuse,
            grouped=demand.grouped,
            in_session=demand.target_type == SESSIONS,
            probe=probe,
        )
        for trace_id, group in ((t, list(g)) for t, g in itertools.groupby(by_trace, key=lambda p: p.trace_id))
    ]


def over_budget(demand: ledger.Demand) -> str:
    return (
        f"stopped at max_cost_usd {demand.max_cost_usd:g}: {demand.spent:.4f} are spent, and another pair may cost up to "
        f"{demand.pair_cost_usd:.4f}"
    )


def not_sent(pair: PairState, why: str) -> TraceScored:
    said = "the run's max_cost_usd was reached before it was sent" if why == "budget" else f"the run was stopped: {why}"
    return TraceScored(
        run_id=pair.run_id,
        project_id=pair.project_id,
        target=pair.target,
        trace_id=pair.trace_id,
        metric=pair.metric,
        value=None,
        reason=said,
        metadata={"not_sent": why},
    )


class _Pace:
    """Pairs settled per second, over the last seconds: an estimate that may be lost."""

    def __init__(self) -> None:
        self._at, self._counts, self._rate = time.monotonic(), dict[UUID, int](), 0.0

    def of(self, settled: dict[UUID, int]) -> float:
        now = time.monotonic()
        if (passed := now - self._at) >= 1.0:
            gained = sum(max(0, n - self._counts.get(run, n)) for run, n in settled.items())
            self._rate = 0.5 * self._rate + 0.5 * gained / passed
            self._at, self._counts = now, settled
        return self._rate
