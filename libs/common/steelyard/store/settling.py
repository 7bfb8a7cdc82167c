"""Results become true: pairs are settled, scores written, targets and runs counted down. Each change of a pair is a
compare-and-set; the caller goes through these verbs in the order of the locks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from steelyard.runs import PairState, Postponed, Settled, score_id
from steelyard.store.database import Tx, dumps
from steelyard.store.ledger import state
from steelyard.store.runs import SESSIONS


@dataclass(frozen=True)
class HeldRun:
    """What settling has to know of a run."""

    run_id: UUID
    project_id: UUID
    of_sessions: bool


async def hold_runs(tx: Tx, runs: Sequence[UUID]) -> dict[UUID, HeldRun]:
    """Held against their deletion; one that is deleted is not there, and its pairs are as good as gone."""
    rows = await tx.execute(_HOLD_RUNS, {"runs": sorted(runs)})
    return {r.id: HeldRun(r.id, r.project_id, r.target_type == SESSIONS) for r in rows}


async def lock_unsettled(tx: Tx, keys: Sequence[tuple[UUID, UUID, str]]) -> list[PairState]:
    """Sorted and locked: two aggregators that meet wait for each other and never in a circle. The caller holds the runs."""
    given = {"runs": [k[0] for k in keys], "traces": [k[1] for k in keys], "metrics": [k[2] for k in keys]}
    return [state(r) for r in await tx.execute(_LOCK_PAIRS, given)]


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
            "seconds": [p.seconds for p in postponed],
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
    runs = sorted({*done, *evaluated, *released})
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


def _keys(pairs: Sequence[PairState]) -> dict[str, Any]:
    return {
        "runs": [p.run_id for p in pairs],
        "traces": [p.trace_id for p in pairs],
        "metrics": [p.metric for p in pairs],
    }


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


_HOLD_RUNS = text(
    """
    SELECT id, project_id, target_type FROM runs
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
    UPDATE pairs p SET status = 'owed', available_at = now() + make_interval(secs => k.seconds),
        attempts = k.attempts, reason = k.reason
    FROM unnest(
        CAST(:runs AS uuid[]), CAST(:traces AS uuid[]), CAST(:metrics AS text[]),
        CAST(:seconds AS float8[]), CAST(:attempts AS int[]), CAST(:reasons AS text[])
    ) AS k (run_id, trace_id, metric, seconds, attempts, reason)
    WHERE p.run_id = k.run_id AND p.trace_id = k.trace_id AND p.metric = k.metric
    """
)
_SETTLE = text(
    """
    UPDATE pairs p SET status = 'settled', outcome = k.outcome, settled_at = now(),
        reason = CASE k.outcome WHEN 'FAILED' THEN k.reason END, value = k.value,
        trace_version = coalesce(k.version, p.trace_version)
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
