"""Results come in batches: pairs are settled, scores written, counters moved, runs finished, in one transaction. Sessions
whose last pair that was are folded by loops of their own."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from steelyard.clock import utc_now
from steelyard.events import RunExpanded, RunFinished, TraceDeferred, TraceScored
from steelyard.runs import GONE, Settled, distinct, settle
from steelyard.service import Service
from steelyard.settings import Settings
from steelyard.store import ledger, sessions_folded, settling
from steelyard.store.database import Database, Tx
from steelyard.store.outbox import Outbox
from steelyard_aggregator.folding import Folder


def aggregator(settings: Settings, database: Database) -> Service:
    service = Service("aggregator")
    service.parts.append(database)
    small, large = Folder(database, large=False), Folder(database, large=True)
    ended, ended_large = asyncio.Event(), asyncio.Event()

    @service.on
    async def settle_results(
        results: Sequence[TraceScored | TraceDeferred | RunExpanded],
        outbox: Outbox[RunFinished] = Outbox(),  # noqa: B008 - it holds nothing
    ) -> None:
        """Reading everything twice changes nothing: only pairs that are not settled are touched."""
        async with database.begin() as tx:
            settled = await settled_in(tx, results, settings.judge_attempts)
            await outbox.put(
                tx, *(RunFinished(run_id=r, project_id=p, status="COMPLETED") for r, p in settled.finished)
            )
        if settled.sessions:
            ended.set()
            ended_large.set()

    @service.loop(every=1.0, bell=ended)
    async def fold_sessions(outbox: Outbox[RunFinished] = Outbox()) -> bool:  # noqa: B008
        """Rung by the batch that settled a session's last pair, with a poll behind it for what others left."""
        return await small.turn(outbox)

    @service.loop(every=1.0, bell=ended_large)
    async def fold_large_sessions(outbox: Outbox[RunFinished] = Outbox()) -> bool:  # noqa: B008
        """One at a time, while small ones go on."""
        return await large.turn(outbox)

    return service


@dataclass(frozen=True)
class Settlement:
    """Runs that were finished, with their projects, and sessions that are to be folded."""

    finished: Sequence[tuple[UUID, UUID]]
    sessions: Sequence[tuple[UUID, str]]


async def settled_in(
    tx: Tx, results: Sequence[TraceScored | TraceDeferred | RunExpanded], most_attempts: int
) -> Settlement:
    """All that becomes true with these results. A session of which nothing is owed any more is to be folded, and its run
    waits for that: the fold of a large one takes seconds, and other runs' pairs are locked here."""
    outcomes = distinct(r for r in results if not isinstance(r, RunExpanded))
    released = sorted({r.run_id for r in results if isinstance(r, RunExpanded)})
    runs = await settling.hold_runs(tx, list({key[0] for key in outcomes})) if outcomes else {}
    pairs = await settling.lock_unsettled(tx, sorted(key for key in outcomes if key[0] in runs)) if runs else []
    settled, postponed = settle(pairs, outcomes, most_attempts, utc_now())
    there = await settling.hold_traces(tx, [(s.pair.trace_id, s.pair.project_id) for s in settled]) if settled else {}
    settled = [s if s.pair.trace_id in there else _gone(s) for s in settled]
    await settling.postpone(tx, postponed)
    if settled:
        await settling.settle(tx, settled, there)
    ended = await settling.count_targets(tx, settled)
    # A run of sessions counts the session metrics that failed, not the signals.
    failed = Counter(s.pair.run_id for s in settled if s.outcome == "FAILED" and not runs[s.pair.run_id].of_sessions)
    sessions = [key for key in ended if runs[key[0]].of_sessions]
    await sessions_folded.put(tx, sessions)
    evaluated = [key for key in ended if not runs[key[0]].of_sessions]
    finished = await settling.count_runs(tx, settled, evaluated, failed, released)
    if settled or postponed:
        await ledger.ring(tx)
    return Settlement(finished, sessions)


def _gone(settled: Settled) -> Settled:
    """Whatever was said about it: a trace that was deleted has no score."""
    return replace(settled, value=None, reason=GONE)
