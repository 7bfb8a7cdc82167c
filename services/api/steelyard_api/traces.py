"""/traces: what agents did comes in here, and can be read back."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Query

from steelyard.filters import TraceFilters
from steelyard.store import traces
from steelyard.traces import TraceStatus, milliseconds, storable
from steelyard_api.access import Visitor
from steelyard_api.errors import not_found
from steelyard_api.shapes import Page, Short, TraceAccepted, TraceIn, TraceListed, TraceOut, When
from steelyard_api.wire import StrictRoute

router = APIRouter(prefix="/traces", tags=["Traces"], route_class=StrictRoute)
Limit = Annotated[int, Query(ge=1, le=200, description="items on a page")]
Offset = Annotated[int, Query(ge=0, le=2**31 - 1, description="items to skip")]


class SortBy(StrEnum):
    started_at = "started_at"
    ended_at = "ended_at"
    name = "name"
    latency = "latency"
    status = "status"


class Order(StrEnum):
    asc = "asc"
    desc = "desc"


@router.post("", status_code=202, summary="Send a trace")
async def send_trace(trace: TraceIn, visitor: Visitor) -> TraceAccepted:
    """Stores a trace with up to 500 spans. A trace id that the project has already is an update: fields that are not
    sent (or null) stay as they are, metadata and tags merge, spans are added or updated by their ids."""
    trace_id = trace.trace_id or uuid4()
    fields = storable(trace.model_dump(exclude={"spans"}, mode="python")) | {"trace_id": trace_id}
    spans = [storable(s.model_dump(mode="json")) | {"span_id": str(s.span_id or uuid4())} for s in trace.spans]
    try:
        async with visitor.database.begin(visitor.project) as tx:
            await traces.put(tx, visitor.project, fields, spans)
    except traces.Foreign:
        raise not_found("Trace") from None
    return TraceAccepted(trace_id=trace_id, task_id=visitor.request_id)


@router.get("", summary="List traces")
async def list_traces(
    visitor: Visitor,
    limit: Limit = 50,
    offset: Offset = 0,
    session_id: Annotated[Short | None, Query(description="exact")] = None,
    status: Annotated[TraceStatus | None, Query()] = None,
    user_id: Annotated[Short | None, Query(description="exact")] = None,
    tags: Annotated[list[str] | None, Query(description="any of these; repeat the parameter")] = None,
    name: Annotated[str | None, Query(max_length=512, description="part of the name, in any case")] = None,
    started_after: Annotated[When | None, Query(description="at this time or later")] = None,
    started_before: Annotated[When | None, Query(description="before this time")] = None,
    sort_by: SortBy = SortBy.started_at,
    sort_order: Order = Order.desc,
) -> Page[TraceListed]:
    """The project's traces, newest first unless asked otherwise, without their spans."""
    wanted = TraceFilters(
        date_from=started_after,
        date_to=started_before,
        status=status,
        session_id=session_id,
        user_id=user_id,
        tags=tuple(tags) if tags else None,
        name=name,
    )
    async with visitor.database.begin(visitor.project) as tx:
        found, total = await traces.page(
            tx, visitor.project, wanted, sort_by.value, sort_order is Order.desc, limit, offset
        )
    items = [TraceListed(**t, latency_ms=_latency(t["started_at"], t["ended_at"])) for t in found]
    return Page(items=items, total=total, limit=limit, offset=offset)


@router.get("/{trace_id}", summary="Read a trace")
async def read_trace(trace_id: UUID, visitor: Visitor) -> TraceOut:
    """The whole trace, its spans in the order they started."""
    async with visitor.database.begin(visitor.project) as tx:
        found = await traces.get(tx, trace_id, visitor.project)
    if found is None:
        raise not_found("Trace")
    return TraceOut.of(found)


def _latency(started: datetime, ended: datetime | None) -> float | None:
    return milliseconds(started, ended)
