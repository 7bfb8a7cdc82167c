"""A job is one trace and the metrics it still owes to one run; each pair's outcome is published as it becomes known."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from steelyard.clock import Clock, utc_now
from steelyard.errors import Later
from steelyard.events import LONGEST_WAIT, Oversize, Owed, ProviderClosed, TraceDeferred, TraceJob, TraceScored
from steelyard.metrics import SESSION_SIGNALS
from steelyard.metrics.judging import NotScored, Score
from steelyard.runs import GONE
from steelyard.service import Publish, Service
from steelyard.store import loading
from steelyard.store.begun import MOST_DEATHS, Prospect, Standing
from steelyard.store.database import Database, reason, temporary
from steelyard.store.presence import Presence
from steelyard.tasks import ended
from steelyard.traces import Trace
from steelyard_judge.admission import FACTOR, Admission
from steelyard_judge.gates import Gates
from steelyard_judge.lookup import Lookup
from steelyard_judge.marks import Marks
from steelyard_judge.orders import Order
from steelyard_judge.quarantine import Quarantine

log = logging.getLogger(__name__)
# One metric of one trace by one judge. Raises Later when it may be asked again.
Scorer = Callable[[str, Trace, Order], Awaitable[Score | NotScored]]
Outcome = TraceScored | TraceDeferred
LOAD_BYTES = 256 * 2**20
# Longer than nearly every conversation. A judge that is frozen keeps its lock, and so its marks.
ELSEWHERE_SECONDS = 30.0
FATAL = f"each of the {MOST_DEATHS} times that this was judged alone, the process that judged it died: it is not tried again"
# A pair that has to wait for its turn alone waits in the ledger and not in a slot.
WAITS_ALONE, ORPHANED = "a judge died with it: it waits to be judged alone", "its last judge has gone"


def judge(
    slots: int,
    database: Database,
    score: Scorer,
    gates: Gates | None = None,
    job_seconds: float = 300.0,
    clock: Clock = utc_now,
    load_bytes: int = LOAD_BYTES,
    elsewhere_seconds: float = ELSEWHERE_SECONDS,
) -> Service:
    """What was decided becomes true in the aggregator; beside its calls a judge writes only what it has under way."""
    presence = Presence(database.url)
    service = Service("judge", identity=str(presence.incarnation))
    shared = gates or Gates()
    service.parts += [database, presence]
    lookup, marks = Lookup(database, presence.incarnation), Marks(database, presence)
    admission, quarantine = Admission(load_bytes // FACTOR), Quarantine()
    conversations = asyncio.Semaphore(slots)
    under_way: dict[tuple[UUID, UUID, str], asyncio.Event] = {}

    @service.window(slots)
    async def judge_trace(job: TraceJob) -> AsyncIterator[TraceScored | TraceDeferred]:
        """Single-flight: of a job that is delivered again while its pairs are under way here, the first delivery answers."""
        keys = {o.metric: (job.run_id, job.trace_id, o.metric) for o in job.owed}
        others = [under_way[key] for key in keys.values() if key in under_way]
        mine = [o for o in job.owed if keys[o.metric] not in under_way]
        under_way.update({keys[o.metric]: asyncio.Event() for o in mine})
        try:
            async with aclosing(_still_owed(job, mine)) as outcomes:
                async for outcome in outcomes:
                    yield outcome
        finally:
            for o in mine:
                under_way.pop(keys[o.metric]).set()
        for other in others:
            await other.wait()

    async def _still_owed(job: TraceJob, mine: Sequence[Owed]) -> AsyncGenerator[Outcome, None]:
        """Settled pairs are skipped: a redelivery costs a look-up and no call."""
        prospect = await _prospect(job, {o.metric for o in mine}) if mine else None
        if prospect is None:
            return
        standing = {s.metric: s for s in prospect.pairs}
        owed = [o for o in mine if o.metric in standing]
        if free := [o for o in owed if standing[o.metric].free]:
            async with quarantine.beside(), aclosing(_judged(job, free, prospect.stored)) as outcomes:
                async for outcome in outcomes:
                    yield outcome
        for o in (o for o in owed if o not in free):
            async with aclosing(_suspect(job, o, standing[o.metric], prospect.stored)) as outcomes:
                async for outcome in outcomes:
                    yield outcome

    async def _prospect(job: TraceJob, metrics: set[str]) -> Prospect | None:
        """What another judge has under way, as after a rebalance, is waited for: its answers are being paid for. Not for ever,
        since that judge may be standing still."""
        patience = time.monotonic() + elsewhere_seconds
        while True:
            prospect = await lookup.prospect(job.run_id, job.trace_id)
            if prospect is None or time.monotonic() > patience:
                return prospect
            if not any(s.elsewhere for s in prospect.pairs if s.metric in metrics):
                return prospect
            await asyncio.sleep(random.uniform(0.2, 0.4))

    @service.follow
    def keep_to_closings(closed: ProviderClosed) -> None:
        shared.hear(closed)

    @service.loop(every=1.0, bell=shared.bell)
    async def tell_closings(publish: Publish[ProviderClosed]) -> bool:
        """Rung by the gate that closed; what was not acknowledged is told in the next turn."""
        untold = shared.untold()
        await publish(untold)
        shared.told(untold)
        return False

    async def _suspect(
        job: TraceJob, owed: Owed, standing: Standing, stored: int | None
    ) -> AsyncGenerator[Outcome, None]:
        """Alone in this judge, so that its death would be nobody else's; the third one is the last."""
        if standing.fatal:
            yield _scored(job, owed, NotScored(FATAL, {"judge_deaths": standing.deaths}), None)
        elif standing.orphaned or quarantine.taken:
            why = ORPHANED if standing.orphaned else WAITS_ALONE
            yield _deferred(job, owed, why, random.uniform(2, 6), clock(), counts=False)
        else:
            log.warning(
                "%s of trace %s is judged alone: %d judges died with it", owed.metric, job.trace_id, standing.deaths
            )
            async with quarantine.alone(), aclosing(_judged(job, [owed], stored, alone=True)) as outcomes:
                async for outcome in outcomes:
                    yield outcome

    async def _judged(
        job: TraceJob, owed: Sequence[Owed], stored: int | None, alone: bool = False
    ) -> AsyncGenerator[Outcome, None]:
        """Admitted, written down, loaded, judged; its mark goes when its outcomes are published."""
        keys = [(job.run_id, job.trace_id, o.metric) for o in owed]
        async with admission.ticket(loading.most(stored)) as ticket:
            await marks.begin(keys, alone)
            try:
                loaded = await lookup.trace(job.trace_id, stored)
                trace = loaded.trace if loaded else None
                # An id that was deleted may come back in another project: it is not the trace that the run meant.
                if loaded is None or trace is None or trace.project_id != job.project_id:
                    for o in owed:
                        yield _scored(job, o, NotScored(GONE), None)
                    return
                ticket.shrink(loaded.size)
                kept: dict[str, Any] = {}
                async with aclosing(_as_they_come(_pair(job, o, trace, kept) for o in owed)) as outcomes:
                    async for outcome in outcomes:
                        if outcome is not None:
                            yield outcome
            finally:
                marks.end(keys)

    async def _pair(job: TraceJob, owed: Owed, trace: Trace, kept: dict[str, Any]) -> Outcome | None:
        async with conversations:
            return await _converse(job, owed, trace, kept)

    async def _converse(job: TraceJob, owed: Owed, trace: Trace, kept: dict[str, Any]) -> Outcome | None:
        """Whatever fails is this pair's own outcome, its look-up too: raising would end the job's other conversations,
        and calls that are under way are paid for."""
        try:
            # Asked when the slot opens, not when the job was fetched: minutes may lie between.
            if owed.metric not in await lookup.wanted(job.run_id, job.trace_id):
                return None
            before = job.in_session and owed.metric in SESSION_SIGNALS
            earlier = await lookup.earlier(job.run_id, job.trace_id) if before else ()
            order = Order.of(job, owed, earlier, kept)
            return _scored(job, owed, await _in_time(score(owed.metric, trace, order)), trace)
        except Later as e:
            return _deferred(job, owed, str(e), e.after or _pause(owed.attempt), clock(), e.counts)
        except Exception as e:
            if temporary(e):
                # Our own database or broker: no attempt of the pair's.
                return _deferred(job, owed, reason(e), _pause(owed.attempt), clock(), counts=False)
            # A bug of one metric ends its own pair and no other.
            log.exception("%s of trace %s", owed.metric, job.trace_id)
            return _scored(job, owed, NotScored(f"internal error: {type(e).__name__}"), trace)

    async def _in_time(answer: Awaitable[Score | NotScored]) -> Score | NotScored:
        """Every call may be in time and the conversation never end; a slot is not held for that."""
        deadline = asyncio.timeout(job_seconds)
        try:
            async with deadline:
                return await answer
        except TimeoutError as e:
            if not deadline.expired():
                raise
            # Waiting for a database that is away was nobody's attempt.
            counts = await database.unwell() is None
            raise Later(f"judging took longer than {job_seconds:g} s", counts=counts) from e

    return service


def _scored(job: TraceJob, owed: Owed, answer: Score | NotScored, trace: Trace | None) -> TraceScored:
    outcome = TraceScored(
        run_id=job.run_id,
        project_id=job.project_id,
        target=job.target,
        trace_id=job.trace_id,
        metric=owed.metric,
        value=answer.value if isinstance(answer, Score) else None,
        reason=answer.reason,
        metadata=answer.metadata,
        trace_version=trace.version if trace else None,
    )
    try:
        outcome.encode()
    except Oversize:
        return outcome.model_copy(update={"value": None, "reason": "result too large", "metadata": {}})
    return outcome


def _deferred(job: TraceJob, owed: Owed, why: str, seconds: float, now: datetime, counts: bool) -> TraceDeferred:
    return TraceDeferred(
        run_id=job.run_id,
        project_id=job.project_id,
        target=job.target,
        trace_id=job.trace_id,
        metric=owed.metric,
        dispatch_no=owed.dispatch_no,
        after=seconds,
        until=now + timedelta(seconds=min(LONGEST_WAIT, seconds)),
        reason=why[:500],
        counts=counts,
    )


async def _as_they_come(works: Iterable[Awaitable[Outcome | None]]) -> AsyncGenerator[Outcome | None, None]:
    """Closed early, it waits for the end of what it began: a conversation that is cut off still writes down its calls."""
    tasks = [asyncio.ensure_future(w) for w in works]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        await ended(tasks)


def _pause(attempt: int) -> float:
    """1, 4, 16, 60 … seconds, in the ledger and not in a slot: a model that is away for a minute costs no score."""
    return float(min(60, 4 ** min(attempt, 3)) * random.uniform(0.75, 1.25))
