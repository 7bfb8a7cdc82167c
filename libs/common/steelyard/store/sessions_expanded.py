"""What a run of sessions means: its sessions as the run's snapshot saw them, and a pair for each signal of each trace.

The pairs of a session are written in one transaction together with how many they are, so a session that counts down to
zero has had all of them.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from steelyard.filters import SessionRunFilters
from steelyard.metrics.sessions import SIGNALS
from steelyard.store import expansion
from steelyard.store.database import Tx
from steelyard.store.expansion import Unexpanded

# Of a page of sessions, as many as have so many traces together, and one in any case.
MOST_TRACES = 2500
WEIGHTS = "signal_weights"


async def write_targets(tx: Tx, run: Unexpanded) -> int:
    """The sample of what the run's count had seen; of a retry, the sessions that have a metric without a score."""
    if run.parent:
        given: dict[str, Any] = {"run": run.run_id, "parent": run.parent, "snapshot": run.snapshot}
        written = (await tx.execute(_AGAIN, given)).rowcount
    else:
        filters = SessionRunFilters.model_validate({k: v for k, v in run.filters.items() if k != WEIGHTS})
        written = (await tx.execute(text(_sampled(filters)), _wanted(run, filters))).rowcount
    await expansion.targets_written(tx, run.run_id, written)
    return written


async def write_pairs(tx: Tx, run: Unexpanded, page: int) -> bool:
    """The pairs of the next sessions; False when all are written. A session of which no trace is left is given up."""
    given = {"run": run.run_id, "cursor": run.cursor or "", "page": page, "traces": MOST_TRACES}
    last = (await tx.execute(_PAIRS, given | {"signals": list(SIGNALS), "snapshot": run.snapshot})).one()
    if last.targets:
        await expansion.move_cursor(tx, run.run_id, last.cursor, last.written, last.gone)
    return bool(last.targets < last.ahead or last.ahead == page)


async def write_given(tx: Tx, run_id: UUID, project: UUID, sessions: Sequence[str]) -> None:
    given = {"run": run_id, "project": project, "sessions": list(sessions)}
    await expansion.targets_written(tx, run_id, (await tx.execute(_GIVEN_SESSIONS, given)).rowcount)


async def failures(tx: Tx, run_id: UUID) -> tuple[int, int, list[str]]:
    """Of a run of sessions: how many session metrics failed, of how many sessions that still exist, and by which."""
    row = (await tx.execute(_FAILURES, {"run": run_id})).one()
    return int(row.failed), int(row.sessions), list(row.metrics or ())


def _wanted(run: Unexpanded, filters: SessionRunFilters) -> dict[str, Any]:
    return {
        "run": run.run_id,
        "project": run.project_id,
        "snapshot": run.snapshot,
        "since": filters.date_from,
        "until": filters.date_to,
        "user": filters.user_id,
        "tags": list(filters.tags) if filters.tags else None,
        "errors": filters.has_error,
        "least": filters.min_trace_count or 1,
        "rate": run.sampling_rate,
    }


def _sampled(filters: SessionRunFilters) -> str:
    """All that match, counted and sampled in one statement as `runs.sample_size` says. Who asks for a user's or a tag's
    sessions looks at those and not at all."""
    narrowed = ""
    if filters.user_id is not None:
        narrowed += """ AND s.session_id IN (
            SELECT session_id FROM traces WHERE project_id = :project AND user_id = :user AND session_id IS NOT NULL
        )"""
    if filters.tags:
        narrowed += """ AND s.session_id IN (
            SELECT session_id FROM session_tags WHERE project_id = :project AND tag = ANY(CAST(:tags AS text[]))
        )"""
    return _SAMPLED.replace("/* narrowed */", narrowed)


# The second: of a transaction that has not begun. The row was restored from another server's dump, and is older than the run.
_SEEN = """(
    pg_visible_in_snapshot(t.created_xid, CAST(CAST(:snapshot AS text) AS pg_snapshot))
    OR t.created_xid >= pg_snapshot_xmax(pg_current_snapshot())
)"""
# What the table of sessions says now is never less than what the snapshot saw, unless something was deleted: so it leads,
# and the traces decide.
_MATCHING = f"""
    SELECT s.session_id, v.n FROM sessions s
    CROSS JOIN LATERAL (
        SELECT count(*) AS n, count(*) FILTER (WHERE t.status = 'ERROR') > 0 AS errors, min(t.started_at) AS began,
            max(t.started_at) AS last, bool_or(t.user_id = CAST(:user AS text)) AS of_user,
            bool_or(t.tags && CAST(:tags AS text[])) AS tagged
        FROM traces t WHERE t.project_id = s.project_id AND t.session_id = s.session_id AND {_SEEN}
    ) v
    WHERE s.project_id = :project AND s.trace_count >= :least AND v.n >= :least
        AND s.last_trace_at >= coalesce(CAST(:since AS timestamptz), '-infinity')
        AND v.last >= coalesce(CAST(:since AS timestamptz), '-infinity')
        AND s.first_trace_at < coalesce(CAST(:until AS timestamptz), 'infinity')
        AND v.began < coalesce(CAST(:until AS timestamptz), 'infinity')
        AND (CAST(:user AS text) IS NULL OR v.of_user) AND (CAST(:tags AS text[]) IS NULL OR v.tagged)
        AND (CAST(:errors AS bool) IS NULL OR v.errors = CAST(:errors AS bool)) /* narrowed */
"""
_SAMPLED = f"""
    WITH found AS MATERIALIZED ({_MATCHING})
    INSERT INTO targets (run_id, target, project_id, size)
    SELECT CAST(:run AS uuid), session_id, CAST(:project AS uuid), n FROM found
    ORDER BY md5(CAST(:run AS uuid)::text || session_id), session_id
    LIMIT (
        SELECT CASE WHEN CAST(:rate AS float8) <= 0 THEN 0
            ELSE least(count(*), greatest(1, floor(count(*) * CAST(:rate AS float8) + 1e-9))) END FROM found
    )
    ON CONFLICT DO NOTHING
"""
_AGAIN = text(
    f"""
    INSERT INTO targets (run_id, target, project_id, size, metrics)
    SELECT CAST(:run AS uuid), p.target, p.project_id, v.n, p.failed_metrics
    FROM targets p CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM traces t
        WHERE t.project_id = p.project_id AND t.session_id = p.target AND {_SEEN}
    ) v
    WHERE p.run_id = :parent AND p.failed_metrics <> '{{}}' AND v.n > 0
    ON CONFLICT DO NOTHING
    """
)
_PAIRS = text(
    f"""
    WITH ahead AS MATERIALIZED (
        SELECT target, project_id, size FROM targets WHERE run_id = :run AND target > :cursor ORDER BY target LIMIT :page
    ), page AS MATERIALIZED (
        SELECT target, project_id FROM (
            SELECT target, project_id, sum(size) OVER (ORDER BY target) - size AS before FROM ahead
        ) summed WHERE before < :traces
    ), written AS (
        INSERT INTO pairs (run_id, trace_id, metric, project_id, target, trace_version, place, available_at)
        SELECT CAST(:run AS uuid), t.trace_id, signal, t.project_id, t.target, t.version, t.place, statement_timestamp()
        FROM (
            SELECT t.trace_id, page.project_id, page.target, t.version,
                row_number() OVER (PARTITION BY page.target ORDER BY t.started_at, t.trace_id) - 1 AS place
            FROM page JOIN traces t ON t.project_id = page.project_id AND t.session_id = page.target AND {_SEEN}
        ) t
        CROSS JOIN unnest(CAST(:signals AS text[])) AS signal
        ON CONFLICT DO NOTHING RETURNING target
    ), counted AS MATERIALIZED (
        SELECT target, count(*) AS n FROM written GROUP BY target
    ), opened AS (
        UPDATE targets t SET "left" = c.n, size = c.n / cardinality(CAST(:signals AS text[]))
        FROM counted c WHERE t.run_id = :run AND t.target = c.target RETURNING 1
    ), gone AS (
        DELETE FROM targets t USING page
        WHERE t.run_id = :run AND t.target = page.target AND NOT EXISTS (SELECT 1 FROM counted c WHERE c.target = t.target)
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM ahead) AS ahead, (SELECT count(*) FROM page) AS targets,
        (SELECT max(target) FROM page) AS cursor, (SELECT count(*) FROM gone) AS gone, (SELECT count(*) FROM opened) AS opened,
        (SELECT count(*) FROM written) AS written
    """
)
_GIVEN_SESSIONS = text(
    """
    INSERT INTO targets (run_id, target, project_id, size)
    SELECT CAST(:run AS uuid), s.session_id, s.project_id, s.trace_count
    FROM unnest(CAST(:sessions AS text[])) AS wanted JOIN sessions s ON s.project_id = :project AND s.session_id = wanted
    """
)
_FAILURES = text(
    """
    SELECT count(*) AS failed, count(DISTINCT s.session_id) AS sessions,
        array_agg(DISTINCT f.metric) FILTER (WHERE s.session_id IS NOT NULL) AS metrics
    FROM targets t CROSS JOIN unnest(t.failed_metrics) AS f (metric)
    LEFT JOIN sessions s ON s.project_id = t.project_id AND s.session_id = t.target
    WHERE t.run_id = :run
    """
)
