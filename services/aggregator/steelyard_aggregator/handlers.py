"""Results come in batches: pairs are settled, scores written, sessions folded, counters moved, runs finished, in one
transaction."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from steelyard.clock import utc_now
from steelyard.events import RunExpanded, RunFinished, TraceDeferred, TraceScored
from steelyard.runs import GONE, Settled, distinct, settle
from steelyard.service import Service
from steelyard.settings import Settings
from steelyard.store import ledger, session_scores, sessions_folded, settling
from steelyard.store.database import Database, Tx
from steelyard.store.outbox import Outbox
from steelyard.store.settling import HeldRun
from steelyard_aggregator.fold import Ended, Signal, folded


def aggregator(settings: Settings, database: Database) -> Service:
    service = Service("aggregator")
    service.parts.append(database)

    @service.on
    async def settle_results(
        results: Sequence[TraceScored | TraceDeferred | RunExpanded],
        outbox: Outbox[RunFinished] = Outbox(),  # noqa: B008 - it holds nothing
    ) -> None:
        """Reading everything twice changes nothing: only pairs that are not settled are touched."""
        async with database.begin() as tx:
            finished = await settled_in(tx, results, settings.judge_attempts)
            await outbox.put(tx, *(RunFinished(run_id=r, project_id=p, status="COMPLETED") for r, p in finished))

    return service


async def settled_in(
    tx: Tx, results: Sequence[TraceScored | TraceDeferred | RunExpanded], most_attempts: int
) -> list[tuple[UUID, UUID]]:
    """All that becomes true with these results; returns the runs that they finished, with their projects."""
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
    failed += await _fold(tx, runs, [key for key in ended if runs[key[0]].of_sessions])
    finished = await settling.count_runs(tx, settled, ended, failed, released)
    if settled or postponed:
        await ledger.ring(tx)
    return finished


async def _fold(tx: Tx, runs: Mapping[UUID, HeldRun], sessions: Sequence[tuple[UUID, str]]) -> Counter[UUID]:
    """Scores the sessions that counted down to zero; returns how many of their metrics were not scored."""
    failed, outcomes = Counter[UUID](), list[tuple[UUID, str, Sequence[str]]]()
    there = await sessions_folded.hold(tx, [(runs[run].project_id, session) for run, session in sessions])
    async for target, pairs in sessions_folded.signals(tx, sessions):
        run = runs[target.run_id]
        ended = Ended(
            run_id=run.run_id, project_id=run.project_id, session_id=target.target, size=target.size,
            metrics=target.metrics or run.metrics, weights=run.filters.get("signal_weights"), snapshot_at=run.created_at,
            signals=[Signal(p.trace_id, p.metric, p.value, p.reason, p.trace_version) for p in pairs],
        )  # fmt: skip
        # Of a session that was deleted meanwhile nothing is said: nobody could look at it.
        rows = list(folded(ended)) if (run.project_id, target.target) in there else []
        await session_scores.put(tx, rows)
        unscored = [r["name"] for r in rows if r["status"] == "FAILED"] if rows else list(ended.metrics)
        failed[run.run_id] += len(unscored)
        outcomes.append((run.run_id, target.target, unscored))
    await sessions_folded.failed(tx, outcomes)
    return failed


def _gone(settled: Settled) -> Settled:
    """Whatever was said about it: a trace that was deleted has no score."""
    return replace(settled, value=None, reason=GONE)
