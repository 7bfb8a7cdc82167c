"""What a run means: its targets, and their pairs page by page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Text, cast, func, literal, or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.types import UserDefinedType

from steelyard.filters import TraceFilters
from steelyard.runs import sample_size
from steelyard.store.database import Tx
from steelyard.store.runs import SESSIONS
from steelyard.store.tables import Target, TraceRow

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
    failures: int = 0


async def next_unexpanded(tx: Tx, skip: Sequence[UUID] = ()) -> Unexpanded | None:
    """The oldest run that nobody else is expanding right now; its lock is an advisory one, so nobody waits for it."""
    for r in (await tx.execute(_UNEXPANDED, {"skip": list(skip)})).all():
        if (await tx.execute(_LOCK_EXPANSION, {"id": str(r.id)})).scalar():
            again = (await tx.execute(_STILL_UNEXPANDED, {"id": r.id})).one_or_none()
            if again is not None:
                return Unexpanded(
                    r.id, r.project_id, r.filters, r.sampling_rate, r.metric_names, r.snapshot,
                    again.targets_written, again.cursor, r.parent_run_id, r.target_type == SESSIONS, again.expansion_failures,
                )  # fmt: skip
    return None


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


async def write_pairs(tx: Tx, run: Unexpanded, page: int) -> bool:
    """The pairs of the next targets; the cursor moves in the same transaction. False when all are written."""
    given: dict[str, Any] = {"run": run.run_id, "cursor": run.cursor or "", "page": page}
    if run.parent:
        last = (await tx.execute(_PAIRS_AGAIN, given | {"parent": run.parent})).one()
    else:
        last = (await tx.execute(_PAIRS, given | {"metrics": list(run.metrics)})).one()
    if last.targets:
        await move_cursor(tx, run.run_id, last.cursor, last.written)
    return bool(last.targets == page)


async def move_cursor(tx: Tx, run_id: UUID, cursor: str, written: int, gone: int = 0) -> None:
    """`written` are the page's new pairs; `gone` are targets of which nothing is left to score: they are not waited for."""
    await tx.execute(_CURSOR, {"run": run_id, "cursor": cursor, "written": written, "gone": gone})


async def failures(tx: Tx, run_id: UUID) -> tuple[int, int, list[str]]:
    """Of a run's failed pairs: how many there are, how many traces of them still exist, and by which metrics."""
    row = (await tx.execute(_FAILURES, {"run": run_id})).one()
    return int(row.failed), int(row.traces), list(row.metrics or ())


async def put_off(tx: Tx, run: Unexpanded, seconds: float, counts: bool) -> int | None:
    """After a page that failed, in a transaction of its own, so that it is written by a database that works: nobody tries the
    run for so long. How many failures there are now; None when another resolver counted the same one."""
    given = {"run": run.run_id, "seen": run.failures, "seconds": seconds, "counts": counts}
    return (await tx.execute(_PUT_OFF, given)).scalar()


async def expanded(tx: Tx, run_id: UUID) -> None:
    await tx.execute(_EXPANDED, {"run": run_id})


async def unreleased(tx: Tx, seconds: float) -> list[tuple[UUID, UUID]]:
    """Runs that were expanded long ago and still wait for somebody to hear of it: the message was lost."""
    return [(r.id, r.project_id) for r in await tx.execute(_UNRELEASED, {"seconds": seconds})]


async def fail_run(tx: Tx, run_id: UUID, why: str) -> bool:
    """For a run that could not do its work at all. False when it is over already."""
    return bool((await tx.execute(_FAIL_RUN, {"run": run_id, "why": why})).rowcount)


_UNEXPANDED = text(
    """
    SELECT id, project_id, filters, sampling_rate, metric_names, snapshot, parent_run_id, target_type FROM runs
    WHERE status IN ('PENDING', 'RUNNING') AND NOT expanded AND deleted_at IS NULL AND id <> ALL(CAST(:skip AS uuid[]))
        AND coalesce(expand_after <= now(), true)
    ORDER BY created_at, id LIMIT 20
    """
)
# Another lock than the dispatcher's: what is written can be sent while the next page is being written.
_LOCK_EXPANSION = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:id, 8))")
_STILL_UNEXPANDED = text(
    """
    SELECT targets_written, cursor, expansion_failures FROM runs
    WHERE id = :id AND NOT expanded AND coalesce(expand_after <= clock_timestamp(), true)
    """
)
_PUT_OFF = text(
    """
    UPDATE runs SET expansion_failures = expansion_failures + CAST(:counts AS bool)::int,
        expand_after = clock_timestamp() + make_interval(secs => :seconds)
    WHERE id = :run AND NOT expanded AND expansion_failures = :seen RETURNING expansion_failures
    """
)
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
        INSERT INTO pairs (run_id, trace_id, metric, project_id, target, available_at)
        SELECT :run, page.target::uuid, metric, page.project_id, page.target, statement_timestamp()
        FROM page CROSS JOIN unnest(CAST(:metrics AS text[])) AS metric
        ON CONFLICT DO NOTHING RETURNING 1
    )
    SELECT count(*) AS targets, max(target) AS cursor, (SELECT count(*) FROM written) AS written FROM page
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
        INSERT INTO pairs (run_id, trace_id, metric, project_id, target, available_at)
        SELECT :run, p.trace_id, p.metric, page.project_id, page.target, statement_timestamp()
        FROM page JOIN pairs p ON p.run_id = :parent AND p.trace_id = page.target::uuid AND p.outcome = 'FAILED'
        ON CONFLICT DO NOTHING RETURNING 1
    )
    SELECT count(*) AS targets, max(target) AS cursor, (SELECT count(*) FROM written) AS written FROM page
    """
)
_GIVEN_TARGETS = text(
    """
    INSERT INTO targets (run_id, target, project_id, "left")
    SELECT CAST(:run AS uuid), trace::text, CAST(:project AS uuid), CAST(:metrics AS int)
    FROM unnest(CAST(:traces AS uuid[])) AS trace
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
    UPDATE runs SET cursor = :cursor, status = 'RUNNING', expansion_failures = 0,
        pairs_written = pairs_written + :written, total_targets = total_targets - :gone, "left" = "left" - :gone
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
