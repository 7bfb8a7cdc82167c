"""What the scheduler counts, and what it clears away: pages of rows that nobody needs any more."""

from sqlalchemy import text

from steelyard.store.database import Tx


async def census(tx: Tx) -> dict[str, float]:
    """What is owed is what was written less what is settled and what is under way, by the runs' counters: a million pairs
    that wait are not counted one by one."""
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


_CENSUS = text(
    """
    SELECT (SELECT count(*) FROM runs WHERE status IN ('PENDING', 'RUNNING') AND deleted_at IS NULL) AS runs_active,
        (SELECT greatest(sum(pairs_written - settled_count) - (
            SELECT count(*) FROM pairs p JOIN runs r ON r.id = p.run_id
            WHERE r.status IN ('PENDING', 'RUNNING') AND p.status = 'dispatched' AND r.deleted_at IS NULL
        ), 0) FROM runs WHERE status IN ('PENDING', 'RUNNING') AND deleted_at IS NULL) AS pairs_owed,
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
