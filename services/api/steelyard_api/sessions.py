"""/sessions: traces of one conversation, seen as one."""

from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from steelyard.store import session_scores, sessions, traces, trends
from steelyard.store.database import Tx
from steelyard.traces import storable
from steelyard_api.access import Visit, Visitor
from steelyard_api.creating import written
from steelyard_api.errors import Refused, not_found
from steelyard_api.shapes import Page, SessionBucket, SessionDeleted, SessionListed, SessionOut, Short, TraceOut
from steelyard_api.traces import Granularity, Limit, Offset, Order, Since, Until, WantedTags
from steelyard_api.wire import StrictRoute

router = APIRouter(prefix="/sessions", tags=["Sessions"], route_class=StrictRoute)
SessionId = Annotated[str, Path(min_length=1, max_length=255, description="percent-encoded, slashes too (%2F)")]
TraceLimit = Annotated[int, Query(ge=1, le=1000, description="traces on a page")]


class SessionSort(StrEnum):
    recent = "recent"
    trace_count = "trace_count"
    latency = "latency"
    cost = "cost"


@router.get("", summary="List sessions")
async def list_sessions(
    visitor: Visitor,
    limit: Limit = 50,
    offset: Offset = 0,
    user_id: Annotated[Short | None, Query(description="sessions with a trace of this user")] = None,
    has_error: Annotated[bool | None, Query(description="with a trace whose status is ERROR, or without any")] = None,
    started_after: Annotated[
        Since, Query(description="sessions whose last trace started at this time or later")
    ] = None,
    started_before: Annotated[Until, Query(description="sessions whose first trace started before this time")] = None,
    tags: WantedTags = None,
    query: Annotated[Short | None, Query(description="part of the session's id, in any case")] = None,
    sort_by: Annotated[SessionSort, Query(description="recent is the start of the last trace")] = SessionSort.recent,
    sort_order: Annotated[Order, Query(description="sessions without the value come last either way")] = Order.desc,
) -> Page[SessionListed]:
    """The project's sessions. The filters choose sessions; the sums are always of all traces of a session."""
    wanted = sessions.SessionFilters(
        user_id=storable(user_id),
        has_error=has_error,
        active_after=started_after,
        active_before=started_before,
        tags=tuple(storable(tags)) if tags else None,
        part=storable(query),
    )
    async with visitor.database.begin(visitor.project) as tx:
        found, total = await sessions.page(
            tx, visitor.project, wanted, sort_by.value, sort_order is Order.desc, limit, offset
        )
    return Page(items=[SessionListed(**s) for s in found], total=total, limit=limit, offset=offset)


@router.get("/analytics", summary="Sessions over time", response_model=list[SessionBucket])
async def read_analytics(
    visitor: Visitor,
    started_after: Annotated[Since, Query(description="needed: sessions that began at this time or later")] = None,
    started_before: Annotated[Until, Query(description="needed: sessions that began before this time")] = None,
    granularity: Annotated[Granularity, Query(description="in UTC; weeks begin on Monday")] = Granularity.day,
    limit: Annotated[int, Query(ge=1, le=1000, include_in_schema=False)] = 200,
    offset: Annotated[int, Query(ge=0, le=2**31 - 1, include_in_schema=False)] = 0,
) -> list[SessionBucket] | Response:
    """Numbers of the sessions that began in this time. Buckets in which none began are left out.

    A session may be called `analytics`: without both times this is its detail, where the project has such a session."""
    async with visitor.database.begin(visitor.project) as tx:
        if started_after is not None and started_before is not None:
            found = await trends.of_sessions(tx, visitor.project, granularity.value, started_after, started_before)
            return [SessionBucket(**r) for r in found]
        named = await _session(tx, visitor, "analytics", limit, offset)
    if named is None or started_after is not None or started_before is not None:
        given = {"started_after": started_after, "started_before": started_before}
        missing = [(name, "Field required") for name, value in given.items() if value is None]
        raise Refused(422, "Validation error", *missing)
    return Response(named.model_dump_json(), media_type="application/json")


@router.get("/{session_id:anything}", summary="Read a session")
async def read_session(
    session_id: SessionId, visitor: Visitor, limit: TraceLimit = 200, offset: Offset = 0
) -> SessionOut:
    """A session with its traces, whole and in the order they started, page by page; the sums are of all of them."""
    async with visitor.database.begin(visitor.project) as tx:
        found = await _session(tx, visitor, storable(session_id), limit, offset)
    if found is None:
        raise not_found("Session")
    return found


@router.delete("/{session_id:anything}", summary="Delete a session")
async def delete_session(session_id: SessionId, visitor: Visitor) -> SessionDeleted:
    """Deletes all traces of the session with their spans and scores, and the scores of the session itself; those also
    where its last trace is gone already."""
    name = storable(session_id)

    async def work(tx: Tx) -> tuple[int, int]:
        of_traces = await traces.delete_session(tx, visitor.project, name)
        return of_traces, await session_scores.delete_session(tx, visitor.project, name)

    deleted = await written(visitor, work)
    if not any(deleted):
        raise not_found("Session")
    return SessionDeleted(deleted=deleted[0])


async def _session(tx: Tx, visitor: Visit, session_id: str, limit: int, offset: int) -> SessionOut | None:
    summed = await sessions.get(tx, visitor.project, session_id)
    if summed is None:
        return None
    ids = await sessions.traces_of(tx, visitor.project, session_id, limit, offset)
    whole, sums = await traces.load(tx, ids, visitor.project), await traces.sums(tx, ids)
    return SessionOut(**summed, traces=[TraceOut.of(whole[i], sums[i]) for i in ids if i in whole and i in sums])
