"""The ledger: targets and pairs of runs. Every change of a pair's state is here, and each is a compare-and-set.

One order of locks in every transaction: runs (shared), pairs, traces, targets, runs (to count), each sorted. The dispatcher
waits for nobody's lock.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Text, cast, func, literal, or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.types import UserDefinedType

from steelyard.filters import TraceFilters
from steelyard.runs import PairState, Postponed, Settled, sample_size, score_id
from steelyard.store.database import Tx, dumps
from steelyard.store.runs import SESSIONS
from steelyard.store.tables import Target, TraceRow

REFILL = "steelyard_refill"
MOST_REDISPATCHES = 5
_T = TraceRow.__table__.c  # type: ignore[attr-defined]


class _PgSnapshot(UserDefinedType[str]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "PG_SNAPSHOT"


@dataclass(frozen=True)
class Unexpanded:
    run_id: UUID
    project_id: UUID
    filters: Mapping[str, Any]
    sampling_rate: float
    metrics: Sequence[str]
    snapshot: str
    targets_written: bool
    cursor: str | None
    parent: UUID | None = None
    of_sessions: bool = False


# Expanding a run.


async def next_unexpanded(tx: Tx, skip: Sequence[UUID] = ()) -> Unexpanded | None:
    """The oldest run that nobody else is expanding right now; its lock is an advisory one, so nobody waits for it."""
    for r in (await tx.execute(_UNEXPANDED, {"skip": list(skip)})).all():
        if await lock_run(tx, r.id):
            again = (await tx.execute(_STILL_UNEXPANDED, {"id": r.id})).one_or_none()
            if again is not None:
                return Unexpanded(
                    r.id, r.project_id, r.filters, r.sampling_rate, r.metric_names, r.snapshot,
                    again.targets_written, again.cursor, r.parent_run_id, r.target_type == SESSIONS,
                )  # fmt: skip
    return None


async def lock_run(tx: Tx, run_id: UUID) -> bool:
    return bool((await tx.execute(_LOCK_RUN, {"id": str(run_id)})).scalar())


async def write_targets(tx: Tx, run: Unexpanded) -> int:
    """What the run means, in one statement; what was deleted since its count corrects the total."""
    written = await (_retried_targets(tx, run) if run.parent else _sampled_targets(tx, run))
    await targets_written(tx, run.run_id, written)
    return written


async def targets_written(tx: Tx, run_id: UUID, count: int) -> None:
    await tx.execute(_TARGETS_WRITTEN, {"run": run_id, "count": count})


async def _sampled_targets(tx: Tx, run: Unexpanded) -> int:
    """The sample of what the run's count had seen."""
    filters = TraceFilters.model_validate(run.filters)
    visible = or_(
        func.pg_visible_in_snapshot(_T.created_xid, cast(cast(run.snapshot, Text), _PgSnapshot)),
        # Of a transaction that has not begun: the row was restored from another server's dump, and is older than the run.
        _T.created_xid >= text("pg_snapshot_xmax(pg_current_snapshot())"),
    )
    seen = [_T.project_id == run.project_id, visible, *filters.sql()]
    found = (await tx.execute(select(func.count()).select_from(TraceRow).where(*seen))).scalar_one()
    target = cast(_T.trace_id, Text)
    chosen = (
        select(literal(run.run_id), target, literal(run.project_id), literal(len(run.metrics)))
        .where(*seen)
        .order_by(func.md5(literal(str(run.run_id)).concat(target)), target)
        .limit(sample_size(found, run.sampling_rate))
    )
    into = insert(Target).from_select(["run_id", "target", "project_id", "left"], chosen).on_conflict_do_nothing()
    return (await tx.execute(into)).rowcount


async def _retried_targets(tx: Tx, run: Unexpanded) -> int:
    """The traces of the parent's failed pairs, each with as many pairs as failed: not a product."""
    return (await tx.execute(_TARGETS_AGAIN, {"run": run.run_id, "parent": run.parent})).rowcount


async def write_given_targets(tx: Tx, run_id: UUID, project: UUID, traces: Sequence[UUID], metrics: int) -> None:
    """Of a run that names its traces: they live here and travel in no message."""
    given = {"run": run_id, "project": project, "traces": list(traces), "metrics": metrics}
    await tx.execute(_GIVEN_TARGETS, given)
    await targets_written(tx, run_id, len(traces))


async def write_given_sessions(tx: Tx, run_id: UUID, project: UUID, sessions: Sequence[str]) -> None:
    given = {"run": run_id, "project": project, "sessions": list(sessions)}
    await targets_written(tx, run_id, (await tx.execute(_GIVEN_SESSIONS, given)).rowcount)


async def write_pairs(tx: Tx, run: Unexpanded, page: int) -> bool:
    """The pairs of the next targets; the cursor moves in the same transaction. False when all are written."""
    given: dict[str, Any] = {"run": run.run_id, "cursor": run.cursor or "", "page": page}
    if run.parent:
        last = (await tx.execute(_PAIRS_AGAIN, given | {"parent": run.parent})).one()
    else:
        last = (await tx.execute(_PAIRS, given | {"metrics": list(run.metrics)})).one()
    if last.targets:
        await move_cursor(tx, run.run_id, last.cursor)
    return bool(last.targets == page)


async def move_cursor(tx: Tx, run_id: UUID, cursor: str, gone: int = 0) -> None:
    """`gone` are targets of which nothing is left to score: they are not waited for."""
    await tx.execute(_CURSOR, {"run": run_id, "cursor": cursor, "gone": gone})


async def failures(tx: Tx, run_id: UUID) -> tuple[int, int, list[str]]:
    """Of a run's failed pairs: how many there are, how many traces of them still exist, and by which metrics."""
    row = (await tx.execute(_FAILURES, {"run": run_id})).one()
    return int(row.failed), int(row.traces), list(row.metrics or ())


async def session_failures(tx: Tx, run_id: UUID) -> tuple[int, int, list[str]]:
    """Of a run of sessions: how many session metrics failed, of how many sessions that still exist, and by which."""
    row = (await tx.execute(_SESSION_FAILURES, {"run": run_id})).one()
    return int(row.failed), int(row.sessions), list(row.metrics or ())


async def expanded(tx: Tx, run_id: UUID) -> None:
    await tx.execute(_EXPANDED, {"run": run_id})


async def unreleased(tx: Tx, seconds: float) -> list[tuple[UUID, UUID]]:
    """Runs that were expanded long ago and still wait for somebody to hear of it: the message was lost."""
    return [(r.id, r.project_id) for r in await tx.execute(_UNRELEASED, {"seconds": seconds})]


async def fail_run(tx: Tx, run_id: UUID, why: str) -> None:
    """For a run that could not do its work at all."""
    await tx.execute(_FAIL_RUN, {"run": run_id, "why": why})


# Dispatching in a window.


@dataclass(frozen=True)
class Demand:
    run_id: UUID
    project_id: UUID
    model: str
    in_flight: int
    ready: int
    settled: int
    root_run_id: UUID
    reuse: bool
    grouped: bool | None
    owed: int
    spent: float
    max_cost_usd: float | None
    pair_cost_usd: float | None
    stopping: str | None
    target_type: str
    paused_why: str | None
    paused_until: datetime | None
    # Whether a paused run's time has come: by the database's clock, or because somebody resumed it.
    due: bool

    def affordable(self) -> int:
        """How many pairs may be under way at once: each could cost as much as it ever can, and what is spent is spent."""
        if self.max_cost_usd is None or not self.pair_cost_usd:
            return self.in_flight + self.ready
        return max(0, math.floor((self.max_cost_usd - self.spent) / self.pair_cost_usd + 1e-9))

    def broke(self) -> bool:
        """Not one more pair can be paid for, and none under way can leave something over."""
        return self.owed > 0 and self.in_flight == 0 and self.affordable() == 0


@dataclass(frozen=True)
class Taken:
    trace_id: UUID
    metric: str
    target: str
    dispatch_no: int
    attempts: int


@dataclass(frozen=True)
class Pause:
    """`until` is None where the model is being tried."""

    model: str
    why: str
    until: datetime | None


async def demands(tx: Tx, most: int) -> list[Demand]:
    """What each unfinished run has under way and could have, the latter counted no further than anyone could use."""
    return [Demand(*r) for r in await tx.execute(_DEMANDS, {"most": most, "often": MOST_REDISPATCHES})]


async def stop(tx: Tx, run_id: UUID, why: str, said: str) -> bool:
    """Nothing more is sent: what is owed will be settled as not scored. False when somebody else stopped it."""
    return bool((await tx.execute(_STOP, {"run": run_id, "why": why, "said": said})).rowcount)


async def pause(tx: Tx, pause: Pause, anew: bool) -> int:
    """Unfinished runs of a model whose quota is exhausted are held; `anew` also those that are held already, because a
    probe failed. Returns how many changed. For their locks the dispatcher waits: what settles holds them for moments."""
    given = {"model": pause.model, "why": pause.why, "until": pause.until, "anew": anew}
    return (await tx.execute(_PAUSE, given)).rowcount


async def unpause(tx: Tx, model: str) -> int:
    return (await tx.execute(_UNPAUSE, {"model": model})).rowcount


async def claim_probe(tx: Tx, model: str, seconds: float) -> bool:
    """One dispatcher probes a model: for the others its runs are not due, for as long as the answer takes to be heard."""
    return bool((await tx.execute(_CLAIM_PROBE, {"model": model, "seconds": seconds})).rowcount)


async def unsent(tx: Tx, run_id: UUID, page: int) -> list[PairState]:
    """Pairs of a stopped run that will never be sent, those that wait for a later time too."""
    return [_state(r) for r in await tx.execute(_UNSENT, {"run": run_id, "page": page})]


async def in_flight(tx: Tx, run_id: UUID) -> int:
    """Asked again under the run's lock: another dispatcher may have filled the window since."""
    return int((await tx.execute(_IN_FLIGHT, {"run": run_id})).scalar_one())


async def take(tx: Tx, run_id: UUID, count: int) -> list[Taken]:
    """Pairs whose time has come, locked; metrics of one trace beside each other, so that they make one job."""
    return [Taken(*r) for r in await tx.execute(_TAKE, {"run": run_id, "count": count, "often": MOST_REDISPATCHES})]


async def dispatched(tx: Tx, run_id: UUID, pairs: Sequence[Taken], places: Sequence[tuple[int, int]]) -> None:
    """In the transaction that locked them, after the broker acknowledged: a crash before this repeats the jobs."""
    given = {
        "run": run_id,
        "traces": [p.trace_id for p in pairs],
        "metrics": [p.metric for p in pairs],
        "partitions": [partition for partition, _ in places],
        "offsets": [offset for _, offset in places],
    }
    await tx.execute(_DISPATCHED, given)


async def overdue(
    tx: Tx, before: datetime, consumed: Mapping[int, int], lost: Mapping[int, tuple[int, int]], page: int = 1000
) -> tuple[int, list[PairState]]:
    """Back to owed: pairs whose job the judges had read, or the broker lost, without an outcome.

    `consumed` is the judges' committed offset of each partition; `lost` its first and its end offset now.
    Returns how many went back, and those that were sent too often.
    """
    partitions = sorted(set(consumed) | set(lost))
    given = {
        "before": before,
        "partitions": partitions,
        "consumed": [consumed.get(p, 0) for p in partitions],
        "firsts": [lost.get(p, (0, 2**62))[0] for p in partitions],
        "ends": [lost.get(p, (0, 2**62))[1] for p in partitions],
        "page": page,
    }
    back = (await tx.execute(_OVERDUE, given)).rowcount
    return back, [_state(r) for r in await tx.execute(_UNDELIVERABLE, {"page": page})]


async def oldest_dispatch(tx: Tx) -> tuple[datetime, datetime] | None:
    """When the oldest unsettled job was sent, and what time it is by the same clock."""
    row = (await tx.execute(_OLDEST_DISPATCH)).one()
    return (row.oldest, row.now) if row.oldest else None


# What the judges ask.


async def wanted(tx: Tx, keys: Sequence[tuple[UUID, UUID]]) -> set[tuple[UUID, UUID, str]]:
    """Of these runs' traces the pairs that are not settled and whose run is not stopping."""
    given = {"runs": [run for run, _ in keys], "traces": [trace for _, trace in keys]}
    return {(r.run_id, r.trace_id, r.metric) for r in await tx.execute(_WANTED, given)}


# Settling.


@dataclass(frozen=True)
class HeldRun:
    """What settling has to know of a run. Of a run of sessions, `metrics` are what its sessions are scored by."""

    run_id: UUID
    project_id: UUID
    of_sessions: bool
    metrics: Sequence[str]
    filters: Mapping[str, Any]
    created_at: datetime


async def hold_runs(tx: Tx, runs: Sequence[UUID]) -> dict[UUID, HeldRun]:
    """Held against their deletion; one that is deleted is not there, and its pairs are as good as gone."""
    rows = await tx.execute(_HOLD_RUNS, {"runs": sorted(runs)})
    return {
        r.id: HeldRun(r.id, r.project_id, r.target_type == SESSIONS, r.metric_names, r.filters, r.created_at)
        for r in rows
    }


async def lock_unsettled(tx: Tx, keys: Sequence[tuple[UUID, UUID, str]]) -> list[PairState]:
    """Sorted and locked: two aggregators that meet wait for each other and never in a circle. The caller holds the runs."""
    given = {"runs": [k[0] for k in keys], "traces": [k[1] for k in keys], "metrics": [k[2] for k in keys]}
    return [_state(r) for r in await tx.execute(_LOCK_PAIRS, given)]


async def hold_traces(tx: Tx, traces: Sequence[tuple[UUID, UUID]]) -> dict[UUID, str | None]:
    """Environments of those (id and project) that still are there; none of them can be deleted before this transaction
    ends. An id that was deleted and came back in another project is not there."""
    wanted = sorted(set(traces))
    given = {"ids": [trace for trace, _ in wanted], "projects": [project for _, project in wanted]}
    rows = await tx.execute(_HOLD_TRACES, given)
    return {r.trace_id: r.environment for r in rows}


async def postpone(tx: Tx, postponed: Sequence[Postponed]) -> None:
    if postponed:
        given = _keys([p.pair for p in postponed]) | {
            "untils": [p.until for p in postponed],
            "attempts": [p.attempts for p in postponed],
            "reasons": [p.reason for p in postponed],
        }
        await tx.execute(_POSTPONE, given)


async def settle(tx: Tx, settled: Sequence[Settled], there: Mapping[UUID, str | None]) -> None:
    """Pairs, then their scores, then targets, then runs; the caller holds the pairs' locks. A score row needs its
    trace: of a deleted one the pair alone says what happened."""
    await tx.execute(
        _SETTLE,
        _keys([s.pair for s in settled])
        | {"outcomes": [s.outcome for s in settled], "reasons": [s.reason for s in settled]}
        | {"values": [s.value for s in settled], "versions": [s.trace_version for s in settled]},
    )
    rows = [_score(s, there[s.pair.trace_id]) for s in settled if s.pair.trace_id in there]
    if rows:
        await tx.execute(_SCORES, {"rows": dumps(rows)})


async def count_targets(tx: Tx, settled: Sequence[Settled]) -> list[tuple[UUID, str]]:
    """Counts targets down by the rows that changed; returns, sorted, those of which nothing is owed any more."""
    by_target = Counter((s.pair.run_id, s.pair.target) for s in settled)
    if not by_target:
        return []
    keys = sorted(by_target)
    given = {"runs": [k[0] for k in keys], "targets": [k[1] for k in keys], "counts": [by_target[k] for k in keys]}
    await tx.execute(_LOCK_TARGETS, given)
    return sorted((r.run_id, r.target) for r in await tx.execute(_COUNT_TARGETS, given))


async def count_runs(
    tx: Tx,
    settled: Sequence[Settled],
    ended: Sequence[tuple[UUID, str]],
    failed: Mapping[UUID, int],
    released: Sequence[UUID],
) -> list[tuple[UUID, UUID]]:
    """Moves the runs' counters, last in the transaction; returns the runs that this finished."""
    done = Counter(s.pair.run_id for s in settled)
    evaluated = Counter(run for run, _ in ended)
    runs = sorted({*done, *released})
    if not runs:
        return []
    given = {
        "runs": runs,
        "evaluated": [evaluated[r] for r in runs],
        "failed": [failed.get(r, 0) for r in runs],
        "settled": [done[r] for r in runs],
        "released": [r in set(released) for r in runs],
    }
    await tx.execute(_LOCK_RUNS, {"runs": runs})
    return [(r.id, r.project_id) for r in await tx.execute(_COUNT_RUNS, given) if r.finished]


async def ring(tx: Tx) -> None:
    """The window has room: whoever dispatches is told when this transaction commits."""
    await tx.execute(_RING)


# Housekeeping.


async def census(tx: Tx) -> dict[str, float]:
    return {str(k): float(v or 0) for k, v in (await tx.execute(_CENSUS)).one()._mapping.items()}


async def prune(tx: Tx, days: int, page: int = 5000) -> int:
    """Rows of successful pairs of runs that finished long ago; failed ones stay, a retry needs them."""
    return (await tx.execute(_PRUNE, {"days": days, "page": page})).rowcount


async def sweep(tx: Tx, page: int = 5000) -> int:
    """A page of what deleted runs have left; the run's own row goes last, and not before its retries are expanded."""
    gone = (await tx.execute(_SWEEP_PAIRS, {"page": page})).rowcount
    if gone < page:
        gone += (await tx.execute(_SWEEP_TARGETS, {"page": page})).rowcount
    for scores in _SWEEP_SCORES:
        if gone < page:
            gone += (await tx.execute(scores, {"page": page})).rowcount
    if not gone:
        await tx.execute(_SWEEP_SPENDING)
        await tx.execute(_SWEEP_RUNS)
    return gone


def _keys(pairs: Sequence[PairState]) -> dict[str, Any]:
    return {
        "runs": [p.run_id for p in pairs],
        "traces": [p.trace_id for p in pairs],
        "metrics": [p.metric for p in pairs],
    }


def _state(r: Any) -> PairState:
    return PairState(r.run_id, r.trace_id, r.metric, r.project_id, r.target, r.status, r.dispatch_no, r.attempts)


def _score(s: Settled, environment: str | None) -> dict[str, Any]:
    return {
        "id": score_id(*s.pair.key),
        "project_id": s.pair.project_id,
        "trace_id": s.pair.trace_id,
        "eval_run_id": s.pair.run_id,
        "name": s.pair.metric,
        "value": None if s.value is None else repr(float(s.value)),
        "status": s.outcome,
        "reason": s.reason,
        "environment": environment,
        "metadata": s.metadata,
        "trace_version": s.trace_version,
    }


_UNEXPANDED = text(
    """
    SELECT id, project_id, filters, sampling_rate, metric_names, snapshot, parent_run_id, target_type FROM runs
    WHERE status IN ('PENDING', 'RUNNING') AND NOT expanded AND deleted_at IS NULL AND id <> ALL(CAST(:skip AS uuid[]))
    ORDER BY created_at, id LIMIT 20
    """
)
_STILL_UNEXPANDED = text("SELECT targets_written, cursor FROM runs WHERE id = :id AND NOT expanded")
_LOCK_RUN = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:id, 7))")
_TARGETS_WRITTEN = text(
    """
    UPDATE runs SET targets_written = true, total_targets = :count, "left" = "left" + :count WHERE id = :run
    """
)
_PAIRS = text(
    """
    WITH page AS MATERIALIZED (
        SELECT target, project_id FROM targets WHERE run_id = :run AND target > :cursor ORDER BY target LIMIT :page
    ), written AS (
        INSERT INTO pairs (run_id, trace_id, metric, project_id, target)
        SELECT :run, page.target::uuid, metric, page.project_id, page.target
        FROM page CROSS JOIN unnest(CAST(:metrics AS text[])) AS metric
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) AS targets, max(target) AS cursor FROM page
    """
)
_TARGETS_AGAIN = text(
    """
    INSERT INTO targets (run_id, target, project_id, "left")
    SELECT CAST(:run AS uuid), p.trace_id::text, p.project_id, count(*)
    FROM pairs p JOIN traces t ON t.trace_id = p.trace_id AND t.project_id = p.project_id
    WHERE p.run_id = :parent AND p.outcome = 'FAILED'
    GROUP BY p.trace_id, p.project_id ON CONFLICT DO NOTHING
    """
)
_PAIRS_AGAIN = text(
    """
    WITH page AS MATERIALIZED (
        SELECT target, project_id FROM targets WHERE run_id = :run AND target > :cursor ORDER BY target LIMIT :page
    ), written AS (
        INSERT INTO pairs (run_id, trace_id, metric, project_id, target)
        SELECT :run, p.trace_id, p.metric, page.project_id, page.target
        FROM page JOIN pairs p ON p.run_id = :parent AND p.trace_id = page.target::uuid AND p.outcome = 'FAILED'
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) AS targets, max(target) AS cursor FROM page
    """
)
_GIVEN_TARGETS = text(
    """
    INSERT INTO targets (run_id, target, project_id, "left")
    SELECT CAST(:run AS uuid), trace::text, CAST(:project AS uuid), CAST(:metrics AS int)
    FROM unnest(CAST(:traces AS uuid[])) AS trace
    """
)
_GIVEN_SESSIONS = text(
    """
    INSERT INTO targets (run_id, target, project_id, size)
    SELECT CAST(:run AS uuid), s.session_id, s.project_id, s.trace_count
    FROM unnest(CAST(:sessions AS text[])) AS wanted JOIN sessions s ON s.project_id = :project AND s.session_id = wanted
    """
)
_SESSION_FAILURES = text(
    """
    SELECT count(*) AS failed, count(DISTINCT s.session_id) AS sessions,
        array_agg(DISTINCT f.metric) FILTER (WHERE s.session_id IS NOT NULL) AS metrics
    FROM targets t CROSS JOIN unnest(t.failed_metrics) AS f (metric)
    LEFT JOIN sessions s ON s.project_id = t.project_id AND s.session_id = t.target
    WHERE t.run_id = :run
    """
)
_FAILURES = text(
    """
    SELECT count(*) AS failed, count(DISTINCT t.trace_id) AS traces,
        array_agg(DISTINCT p.metric) FILTER (WHERE t.trace_id IS NOT NULL) AS metrics
    FROM pairs p LEFT JOIN traces t ON t.trace_id = p.trace_id AND t.project_id = p.project_id
    WHERE p.run_id = :run AND p.outcome = 'FAILED'
    """
)
_CURSOR = text(
    """
    UPDATE runs SET cursor = :cursor, status = 'RUNNING', total_targets = total_targets - :gone, "left" = "left" - :gone
    WHERE id = :run AND status IN ('PENDING', 'RUNNING')
    """
)
_EXPANDED = text(
    """
    UPDATE runs SET expanded = true, status = CASE status WHEN 'PENDING' THEN 'RUNNING' ELSE status END
    WHERE id = :run
    """
)
_UNRELEASED = text(
    """
    SELECT id, project_id FROM runs WHERE status IN ('PENDING', 'RUNNING') AND expanded AND held AND deleted_at IS NULL
        AND created_at < now() - make_interval(secs => :seconds)
    """
)
_FAIL_RUN = text(
    """
    UPDATE runs SET status = 'FAILED', error_message = :why, completed_at = now(), expanded = true
    WHERE id = :run AND status IN ('PENDING', 'RUNNING')
    """
)
_DEMANDS = text(
    """
    SELECT r.id, r.project_id, r.judge_model, coalesce(f.n, 0), w.n, r.settled_count, coalesce(r.root_run_id, r.id), r.reuse,
        r.grouped, o.n, coalesce(s.cost, 0), r.max_cost_usd, r.pair_cost_usd, r.stopping, r.target_type, r.paused_why,
        r.paused_until, r.paused_why IS NOT NULL AND coalesce(r.paused_until <= now(), true)
    FROM runs r
    LEFT JOIN (SELECT run_id, count(*) AS n FROM pairs WHERE status = 'dispatched' GROUP BY run_id) f ON f.run_id = r.id
    LEFT JOIN run_spending s ON s.run_id = r.id AND r.max_cost_usd IS NOT NULL
    CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM (
            SELECT 1 FROM pairs p WHERE p.run_id = r.id AND p.status = 'owed' AND p.available_at <= now()
                AND p.redispatches <= :often AND r.stopping IS NULL LIMIT :most
        ) capped
    ) w
    CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM (
            SELECT 1 FROM pairs p WHERE p.run_id = r.id AND p.status = 'owed'
                AND (r.max_cost_usd IS NOT NULL OR r.stopping IS NOT NULL) LIMIT 1
        ) any_owed
    ) o
    WHERE r.status IN ('PENDING', 'RUNNING') AND r.targets_written AND r.deleted_at IS NULL
    ORDER BY r.created_at, r.id
    """
)
_STOP = text(
    """
    UPDATE runs SET stopping = :why, error_message = :said
    WHERE id = :run AND stopping IS NULL AND status IN ('PENDING', 'RUNNING')
    """
)
_DUE = "paused_why IS NOT NULL AND coalesce(paused_until <= now(), true)"
_HELD = """
    SELECT id FROM runs
    WHERE judge_model = :model AND status IN ('PENDING', 'RUNNING') AND deleted_at IS NULL AND stopping IS NULL AND {which}
    ORDER BY id FOR NO KEY UPDATE
"""
_PAUSE = text(
    f"""
    WITH these AS ({_HELD.format(which="(paused_why IS NULL OR CAST(:anew AS bool))")})
    UPDATE runs r SET paused_why = :why, paused_until = CAST(:until AS timestamptz) FROM these WHERE r.id = these.id
    """
)
_UNPAUSE = text(
    f"""
    WITH these AS ({_HELD.format(which="paused_why IS NOT NULL")})
    UPDATE runs r SET paused_why = NULL, paused_until = NULL FROM these WHERE r.id = these.id
    """
)
_CLAIM_PROBE = text(
    f"""
    WITH these AS ({_HELD.format(which=_DUE)})
    UPDATE runs r SET paused_until = clock_timestamp() + make_interval(secs => :seconds) FROM these WHERE r.id = these.id
    """
)
_UNSENT = text(
    """
    SELECT p.run_id, trace_id, metric, p.project_id, target, p.status, dispatch_no, attempts
    FROM pairs p JOIN runs r ON r.id = p.run_id AND r.stopping IS NOT NULL AND r.expanded
    WHERE p.run_id = :run AND p.status = 'owed' ORDER BY trace_id, metric LIMIT :page
    """
)
_IN_FLIGHT = text("SELECT count(*) FROM pairs WHERE run_id = :run AND status = 'dispatched'")
_TAKE = text(
    """
    SELECT trace_id, metric, target, dispatch_no + 1, attempts FROM pairs
    WHERE run_id = :run AND status = 'owed' AND available_at <= now() AND redispatches <= :often
    ORDER BY available_at, trace_id, metric LIMIT :count FOR UPDATE SKIP LOCKED
    """
)
_DISPATCHED = text(
    """
    UPDATE pairs p SET status = 'dispatched', dispatch_no = p.dispatch_no + 1, dispatched_at = clock_timestamp(),
        job_partition = d.partition, job_offset = d.offset
    FROM unnest(
        CAST(:traces AS uuid[]), CAST(:metrics AS text[]), CAST(:partitions AS int[]), CAST(:offsets AS bigint[])
    ) AS d (trace_id, metric, partition, "offset")
    WHERE p.run_id = :run AND p.trace_id = d.trace_id AND p.metric = d.metric
    """
)
_OLDEST_DISPATCH = text(
    "SELECT min(dispatched_at) AS oldest, clock_timestamp() AS now FROM pairs WHERE status = 'dispatched'"
)
_OVERDUE = text(
    """
    WITH late AS (
        SELECT p.run_id, p.trace_id, p.metric FROM pairs p
        JOIN unnest(
            CAST(:partitions AS int[]), CAST(:consumed AS bigint[]), CAST(:firsts AS bigint[]), CAST(:ends AS bigint[])
        ) AS k (partition, consumed, first, "end") ON k.partition = p.job_partition
        WHERE p.status = 'dispatched' AND p.dispatched_at < :before
            AND (p.job_offset < k.consumed OR p.job_offset < k.first OR p.job_offset >= k."end")
        ORDER BY p.run_id, p.trace_id, p.metric LIMIT :page FOR UPDATE OF p SKIP LOCKED
    )
    UPDATE pairs p SET status = 'owed', available_at = now(), redispatches = redispatches + 1
    FROM late WHERE p.run_id = late.run_id AND p.trace_id = late.trace_id AND p.metric = late.metric
    """
)
# The number is MOST_REDISPATCHES, written out because the partial index is.
_UNDELIVERABLE = text(
    """
    SELECT run_id, trace_id, metric, p.project_id, target, p.status, dispatch_no, attempts
    FROM pairs p JOIN runs r ON r.id = p.run_id AND r.deleted_at IS NULL
    WHERE p.status = 'owed' AND redispatches > 5 LIMIT :page
    """
)
_WANTED = text(
    """
    SELECT p.run_id, p.trace_id, p.metric
    FROM unnest(CAST(:runs AS uuid[]), CAST(:traces AS uuid[])) AS k (run_id, trace_id)
    JOIN pairs p ON p.run_id = k.run_id AND p.trace_id = k.trace_id
    JOIN runs r ON r.id = p.run_id
    WHERE p.status <> 'settled' AND r.stopping IS NULL AND r.deleted_at IS NULL
    """
)
_HOLD_RUNS = text(
    """
    SELECT id, project_id, target_type, metric_names, filters, created_at FROM runs
    WHERE id = ANY(CAST(:runs AS uuid[])) AND deleted_at IS NULL ORDER BY id FOR KEY SHARE
    """
)
_LOCK_PAIRS = text(
    """
    SELECT p.run_id, p.trace_id, p.metric, p.project_id, p.target, p.status, p.dispatch_no, p.attempts
    FROM pairs p
    JOIN unnest(CAST(:runs AS uuid[]), CAST(:traces AS uuid[]), CAST(:metrics AS text[]))
        AS k (run_id, trace_id, metric) ON p.run_id = k.run_id AND p.trace_id = k.trace_id AND p.metric = k.metric
    WHERE p.status <> 'settled'
    ORDER BY p.run_id, p.trace_id, p.metric FOR UPDATE OF p
    """
)
_HOLD_TRACES = text(
    """
    SELECT t.trace_id, t.environment FROM traces t
    JOIN unnest(CAST(:ids AS uuid[]), CAST(:projects AS uuid[])) AS k (trace_id, project_id)
        ON t.trace_id = k.trace_id AND t.project_id = k.project_id
    ORDER BY t.trace_id FOR KEY SHARE OF t
    """
)
_POSTPONE = text(
    """
    UPDATE pairs p SET status = 'owed', available_at = k.until, attempts = k.attempts, reason = k.reason
    FROM unnest(
        CAST(:runs AS uuid[]), CAST(:traces AS uuid[]), CAST(:metrics AS text[]),
        CAST(:untils AS timestamptz[]), CAST(:attempts AS int[]), CAST(:reasons AS text[])
    ) AS k (run_id, trace_id, metric, until, attempts, reason)
    WHERE p.run_id = k.run_id AND p.trace_id = k.trace_id AND p.metric = k.metric
    """
)
_SETTLE = text(
    """
    UPDATE pairs p SET status = 'settled', outcome = k.outcome, settled_at = now(),
        reason = CASE k.outcome WHEN 'FAILED' THEN k.reason END, value = k.value, trace_version = k.version
    FROM unnest(
        CAST(:runs AS uuid[]), CAST(:traces AS uuid[]), CAST(:metrics AS text[]),
        CAST(:outcomes AS text[]), CAST(:reasons AS text[]), CAST(:values AS float8[]), CAST(:versions AS int[])
    ) AS k (run_id, trace_id, metric, outcome, reason, value, version)
    WHERE p.run_id = k.run_id AND p.trace_id = k.trace_id AND p.metric = k.metric
    """
)
_SCORES = text(
    """
    INSERT INTO trace_scores (
        id, project_id, trace_id, eval_run_id, name, value, status, reason, environment, metadata, trace_version
    )
    SELECT id, project_id, trace_id, eval_run_id, name, value, status, reason, environment, metadata, trace_version
    FROM json_to_recordset(CAST(:rows AS json)) AS n (
        id uuid, project_id uuid, trace_id uuid, eval_run_id uuid, name text, value text, status text, reason text,
        environment text, metadata jsonb, trace_version int
    )
    ON CONFLICT (id) DO NOTHING
    """
)
_LOCK_TARGETS = text(
    """
    SELECT 1 FROM targets t
    JOIN unnest(CAST(:runs AS uuid[]), CAST(:targets AS text[])) AS k (run_id, target)
        ON t.run_id = k.run_id AND t.target = k.target
    ORDER BY t.run_id, t.target FOR UPDATE OF t
    """
)
_COUNT_TARGETS = text(
    """
    WITH counted AS (
        UPDATE targets t SET "left" = t."left" - k.n
        FROM unnest(CAST(:runs AS uuid[]), CAST(:targets AS text[]), CAST(:counts AS int[])) AS k (run_id, target, n)
        WHERE t.run_id = k.run_id AND t.target = k.target
        RETURNING t.run_id, t.target, t."left"
    ) SELECT run_id, target FROM counted WHERE "left" = 0
    """
)
# NO KEY: another aggregator's new scores hold the same run's key, and may wait for this one elsewhere.
_LOCK_RUNS = text("SELECT 1 FROM runs WHERE id = ANY(:runs) ORDER BY id FOR NO KEY UPDATE")
_COUNT_RUNS = text(
    """
    WITH counted AS (
        SELECT r.id, k.evaluated, k.failed, k.settled, k.evaluated + (k.released AND r.held)::int AS gone,
            r.held AND NOT k.released AS held
        FROM runs r
        JOIN unnest(
            CAST(:runs AS uuid[]), CAST(:evaluated AS int[]), CAST(:failed AS int[]), CAST(:settled AS int[]),
            CAST(:released AS bool[])
        ) AS k (id, evaluated, failed, settled, released) ON r.id = k.id
    )
    UPDATE runs r SET
        evaluated_count = r.evaluated_count + c.evaluated,
        failed_count = r.failed_count + c.failed,
        settled_count = r.settled_count + c.settled,
        "left" = r."left" - c.gone,
        held = c.held,
        status = CASE WHEN r."left" = c.gone AND r.status IN ('PENDING', 'RUNNING') THEN 'COMPLETED' ELSE r.status END,
        completed_at = CASE WHEN r."left" = c.gone THEN coalesce(r.completed_at, now()) ELSE r.completed_at END
    FROM counted c WHERE r.id = c.id
    RETURNING r.id, r.project_id, r."left" = 0 AND c.gone > 0 AND r.status = 'COMPLETED' AS finished
    """
)
_RING = text(f"NOTIFY {REFILL}")
_CENSUS = text(
    """
    SELECT (SELECT count(*) FROM runs WHERE status IN ('PENDING', 'RUNNING') AND deleted_at IS NULL) AS runs_active,
        (SELECT count(*) FROM pairs p JOIN runs r ON r.id = p.run_id
            WHERE r.status IN ('PENDING', 'RUNNING') AND p.status = 'owed' AND r.deleted_at IS NULL) AS pairs_owed,
        (SELECT count(*) FROM pairs WHERE status = 'dispatched') AS pairs_dispatched,
        (SELECT extract(epoch FROM now() - min(dispatched_at)) FROM pairs
            WHERE status = 'dispatched') AS dispatched_oldest_seconds,
        (SELECT count(*) FROM outbox) AS outbox_rows,
        (SELECT extract(epoch FROM now() - min(created_at)) FROM outbox) AS outbox_oldest_seconds
    """
)
_PRUNE = text(
    """
    DELETE FROM pairs p USING (
        SELECT p.run_id, p.trace_id, p.metric FROM runs r JOIN pairs p ON p.run_id = r.id
        WHERE r.status IN ('COMPLETED', 'FAILED') AND r.completed_at < now() - make_interval(days => :days)
            AND p.outcome = 'SUCCESS' LIMIT :page FOR UPDATE OF p SKIP LOCKED
    ) old WHERE p.run_id = old.run_id AND p.trace_id = old.trace_id AND p.metric = old.metric
    """
)
# A run whose retries are not expanded yet keeps its failed pairs: they are what the retries mean.
_SWEPT = """
    SELECT r.id FROM runs r WHERE r.deleted_at IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM runs c WHERE c.parent_run_id = r.id AND NOT c.expanded AND c.deleted_at IS NULL
    )
"""
_SWEEP_PAIRS = text(
    f"""
    DELETE FROM pairs p USING (
        SELECT run_id, trace_id, metric FROM pairs WHERE run_id IN ({_SWEPT}) LIMIT :page FOR UPDATE SKIP LOCKED
    ) old WHERE p.run_id = old.run_id AND p.trace_id = old.trace_id AND p.metric = old.metric
    """
)
_SWEEP_TARGETS = text(
    f"""
    DELETE FROM targets t USING (
        SELECT run_id, target FROM targets WHERE run_id IN ({_SWEPT}) LIMIT :page FOR UPDATE SKIP LOCKED
    ) old WHERE t.run_id = old.run_id AND t.target = old.target
    """
)
_SWEEP_SPENDING = text(f"DELETE FROM run_spending WHERE run_id IN ({_SWEPT})")
# Left where the deletion died between hiding the run and treating its scores.
_SWEEP_SCORES = [
    text(
        f"""
        DELETE FROM {table} s USING (
            SELECT id FROM {table} WHERE eval_run_id IN (
                SELECT r.id FROM runs r WHERE r.id IN ({_SWEPT}) AND r.stopping = 'deleted with its scores'
            ) LIMIT :page FOR UPDATE SKIP LOCKED
        ) old WHERE s.id = old.id
        """
    )
    for table in ("trace_scores", "session_scores")
]
_SWEEP_RUNS = text(
    f"""
    DELETE FROM runs r WHERE id IN ({_SWEPT}) AND NOT EXISTS (SELECT 1 FROM pairs p WHERE p.run_id = r.id)
        AND NOT EXISTS (SELECT 1 FROM targets t WHERE t.run_id = r.id)
    """
)
