"""What happened over time: traces, sessions and users added up in SQL, by hour, day or week in UTC."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from steelyard.store.database import Tx

MOST_MODELS = 50


async def of_traces(tx: Tx, project: UUID, granularity: str, since: datetime, until: datetime) -> list[dict[str, Any]]:
    """Counts, errors and latencies of the traces that started in each bucket; buckets without any are left out."""
    return await _rows(tx, _TRACES, project, granularity, since, until)


async def of_usage(tx: Tx, project: UUID, granularity: str, since: datetime, until: datetime) -> list[dict[str, Any]]:
    return await _rows(tx, _USAGE, project, granularity, since, until)


async def of_models(tx: Tx, project: UUID, since: datetime, until: datetime) -> list[dict[str, Any]]:
    """By calls, the most called first."""
    given = {"project": project, "since": since, "until": until, "most": MOST_MODELS}
    return [dict(r._mapping) for r in await tx.execute(_MODELS, given)]


async def of_sessions(
    tx: Tx, project: UUID, granularity: str, since: datetime, until: datetime
) -> list[dict[str, Any]]:
    """A session counts in the bucket in which it began."""
    return await _rows(tx, _SESSIONS, project, granularity, since, until)


async def users(tx: Tx, project: UUID, limit: int, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The last seen first."""
    given = {"project": project, "limit": limit, "offset": offset}
    found = [dict(r._mapping) for r in await tx.execute(_USERS, given)]
    if found:
        total = int(found[0]["total"])
    else:
        total = int((await tx.execute(_COUNT_USERS, {"project": project})).scalar_one()) if offset else 0
    return [{k: v for k, v in r.items() if k != "total"} for r in found], total


async def _rows(
    tx: Tx, statement: Any, project: UUID, granularity: str, since: datetime, until: datetime
) -> list[dict[str, Any]]:
    given = {"project": project, "granularity": granularity, "since": since, "until": until}
    return [dict(r._mapping) for r in await tx.execute(statement, given)]


_TRACES = text(
    """
    SELECT date_trunc(:granularity, started_at, 'UTC') AS bucket, count(*) AS trace_count,
        count(*) FILTER (WHERE status = 'ERROR') AS error_count, avg(ms) AS avg_latency_ms,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) AS p50_latency_ms,
        percentile_cont(0.9) WITHIN GROUP (ORDER BY ms) AS p90_latency_ms,
        percentile_cont(0.99) WITHIN GROUP (ORDER BY ms) AS p99_latency_ms
    FROM (
        SELECT started_at, status,
            CASE WHEN ended_at IS NOT NULL THEN greatest(extract(epoch FROM ended_at - started_at) * 1000, 0)::float8 END AS ms
        FROM traces WHERE project_id = :project AND started_at >= :since AND started_at < :until
    ) t GROUP BY 1 ORDER BY 1
    """
)
_USAGE = text(
    """
    SELECT date_trunc(:granularity, started_at, 'UTC') AS bucket, sum(total_tokens)::bigint AS total_tokens,
        sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
        sum(total_cost) AS total_cost
    FROM traces WHERE project_id = :project AND started_at >= :since AND started_at < :until
    GROUP BY 1 ORDER BY 1
    """
)
_MODELS = text(
    """
    SELECT model, count(*) AS call_count, coalesce(sum(total_tokens), 0)::bigint AS total_tokens,
        coalesce(sum(total_cost), 0) AS total_cost
    FROM spans WHERE project_id = :project AND model IS NOT NULL AND started_at >= :since AND started_at < :until
    GROUP BY model ORDER BY call_count DESC, model LIMIT :most
    """
)
_SESSIONS = text(
    """
    SELECT date_trunc(:granularity, first_trace_at, 'UTC') AS bucket, count(*) AS session_count,
        avg(trace_count)::float8 AS avg_traces_per_session,
        avg(greatest(extract(epoch FROM ended_at - first_trace_at) * 1000, 0))::float8 AS avg_session_duration_ms
    FROM sessions WHERE project_id = :project AND first_trace_at >= :since AND first_trace_at < :until
    GROUP BY 1 ORDER BY 1
    """
)
_USERS = text(
    """
    SELECT user_id, count(*) AS trace_count, min(started_at) AS first_seen, max(started_at) AS last_seen,
        count(*) FILTER (WHERE status = 'ERROR') AS error_count, count(*) OVER () AS total
    FROM traces WHERE project_id = :project AND user_id IS NOT NULL
    GROUP BY user_id ORDER BY last_seen DESC, user_id LIMIT :limit OFFSET :offset
    """
)
_COUNT_USERS = text("SELECT count(DISTINCT user_id) FROM traces WHERE project_id = :project AND user_id IS NOT NULL")
