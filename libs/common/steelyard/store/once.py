"""What makes a creating request safe to repeat, and rare enough: both in the transaction that creates."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from steelyard.store.database import Tx


@dataclass(frozen=True)
class Remembered:
    """The answer that a request with this key had."""

    request_hash: bytes
    status: int
    response: bytes


async def alone(tx: Tx, project: UUID, scope: str, key: str) -> bool:
    """Whether nobody else is at this key right now; a process that dies in the middle lets go of it."""
    return bool((await tx.execute(_ALONE, {"what": f"{project}/{scope}/{key}"})).scalar())


async def recall(tx: Tx, project: UUID, scope: str, key: str) -> Remembered | None:
    row = (await tx.execute(_RECALL, {"project": project, "scope": scope, "key": key})).one_or_none()
    return Remembered(bytes(row.request_hash), row.status, bytes(row.response)) if row else None


async def remember(tx: Tx, project: UUID, scope: str, key: str, answer: Remembered) -> None:
    given = {"project": project, "scope": scope, "key": key, "hash": answer.request_hash, "status": answer.status}
    await tx.execute(_REMEMBER, given | {"response": answer.response})


async def take(tx: Tx, project: UUID, scope: str, most: int, seconds: float = 60.0) -> float | None:
    """Counts one more in the last minute; where that would be one too many, the seconds to wait.

    The times themselves are kept, so no minute ever sees more than `most`; the row's lock makes that right over any
    number of processes, and what is rolled back was not counted."""
    given = {"project": project, "scope": scope, "most": most, "seconds": seconds}
    if (await tx.execute(_TAKE, given)).scalar():
        return None
    wait = (await tx.execute(_WAIT, {"project": project, "scope": scope, "most": most, "seconds": seconds})).scalar()
    return max(0.0, float(wait or 0.0))


async def forget(tx: Tx, hours: float, page: int) -> int:
    return (await tx.execute(_FORGET, {"hours": hours, "page": page})).rowcount


_ALONE = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:what, 12))")
_RECALL = text(
    """
    SELECT request_hash, status, response FROM idempotency_keys
    WHERE project_id = :project AND scope = :scope AND key = :key
    """
)
_REMEMBER = text(
    """
    INSERT INTO idempotency_keys (project_id, scope, key, request_hash, status, response)
    VALUES (:project, :scope, :key, :hash, :status, :response)
    """
)
_TAKE = text(
    """
    INSERT INTO rate_limits AS r (project_id, scope, times)
    VALUES (CAST(:project AS uuid), :scope, ARRAY[clock_timestamp()])
    ON CONFLICT (project_id, scope) DO UPDATE SET times = ARRAY(
        SELECT t FROM unnest(r.times) AS t WHERE t > clock_timestamp() - make_interval(secs => :seconds) ORDER BY t
    ) || clock_timestamp()
    WHERE (
        SELECT count(*) FROM unnest(r.times) AS t WHERE t > clock_timestamp() - make_interval(secs => :seconds)
    ) < :most
    RETURNING true
    """
)
_WAIT = text(
    """
    SELECT extract(epoch FROM min(t) + make_interval(secs => :seconds) - clock_timestamp())
    FROM (SELECT t FROM rate_limits, unnest(times) AS t WHERE project_id = :project AND scope = :scope
        ORDER BY t DESC LIMIT :most) newest
    """
)
_FORGET = text(
    """
    DELETE FROM idempotency_keys WHERE ctid IN (
        SELECT ctid FROM idempotency_keys WHERE created_at < now() - make_interval(secs => 3600 * :hours)
        LIMIT :page FOR UPDATE SKIP LOCKED
    )
    """
)
