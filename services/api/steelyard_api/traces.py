"""/traces: what agents did comes in here, is changed, listed and read."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, Field

from steelyard.filters import TraceFilters
from steelyard.store import traces, trends
from steelyard.store.database import Tx
from steelyard.store.traces import Arrival
from steelyard.traces import TraceStatus, milliseconds, storable
from steelyard_api.access import Visitor
from steelyard_api.creating import CREATING, Creating, written
from steelyard_api.errors import Refused, not_found
from steelyard_api.ingest import Ingest
from steelyard_api.shapes import (
    Deleted,
    ModelUse,
    Page,
    Retag,
    Short,
    SpanIn,
    SpanOut,
    SpanPatch,
    SpansAccepted,
    TraceAccepted,
    TraceBucket,
    TraceIds,
    TraceIn,
    TraceListed,
    TraceOut,
    TracePatch,
    Updated,
    UsageBucket,
    UserListed,
    When,
)  # fmt: skip
from steelyard_api.wire import StrictRoute

router = APIRouter(prefix="/traces", tags=["Traces"], route_class=StrictRoute)
TraceId = Annotated[UUID, Path(description="the trace's id")]
SpanId = Annotated[UUID, Path(description="the span's id")]
Limit = Annotated[int, Query(ge=1, le=200, description="items on a page")]
Offset = Annotated[int, Query(ge=0, le=2**31 - 1, description="items to skip")]
Since = Annotated[When | None, Query(description="at this time or later")]
Until = Annotated[When | None, Query(description="before this time")]
WantedTags = Annotated[
    list[Short] | None, Query(max_length=200, description="any of these; repeat the parameter for more than one")
]

NUL = b"\\u0000"  # the one way to write it in JSON that the parser lets pass


class SortBy(StrEnum):
    started_at = "started_at"
    ended_at = "ended_at"
    name = "name"
    latency = "latency"
    status = "status"


class Order(StrEnum):
    asc = "asc"
    desc = "desc"


class Granularity(StrEnum):
    hour = "hour"
    day = "day"
    week = "week"


class Measure(StrEnum):
    volume = "volume"
    errors = "errors"
    latency = "latency"
    cost = "cost"
    tokens = "tokens"
    models = "models"


@router.post("", status_code=202, summary="Send a trace", response_model=TraceAccepted, responses=CREATING)
async def send_trace(trace: TraceIn, visitor: Visitor, creating: Creating, request: Request) -> Any:
    """Stores a trace with up to 500 spans. The 202 means that it is stored: the next request sees it.

    A trace id that the project has already is an update: fields that are not sent (or null) stay as they are, metadata
    and tags merge, spans are added or updated by their ids. So sending the same trace twice changes nothing, as long
    as you choose the ids. An id that another project has is answered with 404 and changes nothing. Characters that a
    database cannot hold (NUL) become U+FFFD. Scores that were sent ahead for this trace id are attached to it."""
    body = await request.body()
    arrival = _arrival(trace, clean=NUL not in body)
    accepted = TraceAccepted(trace_id=arrival.trace_id, task_id=visitor.request_id)
    ingest: Ingest = request.app.state.ingest

    async def work(tx: Tx) -> BaseModel:
        await traces.put(tx, visitor.project, arrival.trace, arrival.spans)
        return accepted

    try:
        if creating.named:
            return await creating.make(work, 202)
        await ingest.put(visitor.project, arrival, len(body))
    except traces.Foreign:
        raise not_found("Trace") from None
    return accepted


@router.get("", summary="List traces")
async def list_traces(
    visitor: Visitor,
    limit: Limit = 50,
    offset: Offset = 0,
    session_id: Annotated[Short | None, Query(description="exact")] = None,
    status: Annotated[TraceStatus | None, Query(description="exact")] = None,
    user_id: Annotated[Short | None, Query(description="exact")] = None,
    tags: WantedTags = None,
    name: Annotated[
        str | None, Query(max_length=512, description="part of the name, in any case; % and _ mean themselves")
    ] = None,
    started_after: Since = None,
    started_before: Until = None,
    sort_by: Annotated[SortBy, Query(description="latency is the time from start to end")] = SortBy.started_at,
    sort_order: Annotated[Order, Query(description="traces without the value come last either way")] = Order.desc,
) -> Page[TraceListed]:
    """The project's traces, newest first unless asked otherwise, without their spans."""
    wanted = TraceFilters(
        date_from=started_after,
        date_to=started_before,
        status=status,
        session_id=storable(session_id),
        user_id=storable(user_id),
        tags=tuple(storable(tags)) if tags else None,
        name=storable(name),
    )
    async with visitor.database.begin(visitor.project) as tx:
        found, total = await traces.page(
            tx, visitor.project, wanted, sort_by.value, sort_order is Order.desc, limit, offset
        )
    items = [TraceListed(**t, latency_ms=_latency(t["started_at"], t["ended_at"])) for t in found]
    return Page(items=items, total=total, limit=limit, offset=offset)


class Window(BaseModel):
    """Two times, the earlier one first."""

    since: datetime
    until: datetime


def window(
    started_after: Annotated[When, Query(description="at this time or later")],
    started_before: Annotated[When, Query(description="before this time")],
) -> Window:
    return Window(since=started_after, until=started_before)


@router.get("/analytics", summary="Traces over time")
async def read_analytics(
    visitor: Visitor,
    between: Annotated[Window, Depends(window)],
    metric: Annotated[
        Measure,
        Query(
            description="volume, errors and latency answer with the same buckets of counts and latencies; cost and tokens "
            "with buckets of what the spans used; models with the most called models of the whole time, not in buckets"
        ),
    ] = Measure.volume,
    granularity: Annotated[Granularity, Query(description="in UTC; weeks begin on Monday")] = Granularity.day,
) -> list[TraceBucket] | list[UsageBucket] | list[ModelUse]:
    """Numbers of the traces that started in this time. Buckets in which nothing started are left out."""
    project, since, until = visitor.project, between.since, between.until
    async with visitor.database.begin(visitor.project) as tx:
        if metric is Measure.models:
            return [ModelUse(**r) for r in await trends.of_models(tx, project, since, until)]
        if metric in (Measure.cost, Measure.tokens):
            used = await trends.of_usage(tx, project, granularity.value, since, until)
            return [UsageBucket(**r) for r in used]
        return [TraceBucket(**r) for r in await trends.of_traces(tx, project, granularity.value, since, until)]


@router.get("/users", summary="List users")
async def list_users(visitor: Visitor, limit: Limit = 50, offset: Offset = 0) -> Page[UserListed]:
    """Everyone whom a trace names as its user, the last seen first."""
    async with visitor.database.begin(visitor.project) as tx:
        found, total = await trends.users(tx, visitor.project, limit, offset)
    return Page(items=[UserListed(**u) for u in found], total=total, limit=limit, offset=offset)


@router.post("/batch/delete", summary="Delete traces")
async def delete_traces(these: TraceIds, visitor: Visitor) -> Deleted:
    """Deletes up to 500 traces with their spans and scores. Ids that the project lacks are passed over."""
    return Deleted(deleted=await written(visitor, lambda tx: traces.delete(tx, visitor.project, these.trace_ids)))


@router.post("/batch/tags", summary="Tag traces")
async def tag_traces(these: Retag, visitor: Visitor) -> Updated:
    """Adds and removes tags of up to 500 traces. Ids that the project lacks are passed over."""
    add, remove = storable(these.add_tags), storable(these.remove_tags)
    if not add and not remove:
        raise Refused(422, "Validation error", ("add_tags", "say what to add or what to remove"))
    retag = traces.retag
    return Updated(updated=await written(visitor, lambda tx: retag(tx, visitor.project, these.trace_ids, add, remove)))


@router.get("/{trace_id}", summary="Read a trace")
async def read_trace(trace_id: TraceId, visitor: Visitor) -> TraceOut:
    """The whole trace, its spans in the order they started."""
    async with visitor.database.begin(visitor.project) as tx:
        return await _read(tx, visitor.project, trace_id)


@router.patch("/{trace_id}", summary="Change a trace")
async def change_trace(trace_id: TraceId, patch: TracePatch, visitor: Visitor) -> TraceOut:
    """Touches only the fields that are in the body; null clears one. Metadata merges, tags are replaced.

    A trace may be changed while it is being judged: every change of the trace or of a span moves its `version`, and a
    score says in `trace_version` which one it saw. Run the metric again to score the new one; earlier scores stay."""
    changes = _changes(patch, never_null=("name", "status"), empty={"tags": []})

    async def work(tx: Tx) -> TraceOut:
        if not await traces.patch(tx, visitor.project, trace_id, changes):
            raise not_found("Trace")
        return await _read(tx, visitor.project, trace_id)

    return await written(visitor, work)


@router.delete("/{trace_id}", status_code=204, summary="Delete a trace")
async def delete_trace(trace_id: TraceId, visitor: Visitor) -> Response:
    """Deletes the trace with its spans and all its scores. A run that means it goes on: its pairs of this trace end as
    not scored, because the trace was deleted."""
    if not await written(visitor, lambda tx: traces.delete(tx, visitor.project, [trace_id])):
        raise not_found("Trace")
    return Response(status_code=204)


@router.post(
    "/{trace_id}/spans", status_code=201, summary="Add spans", response_model=SpansAccepted, responses=CREATING
)
async def add_spans(
    trace_id: TraceId,
    spans: Annotated[list[SpanIn], Field(min_length=1, max_length=500)],
    visitor: Visitor,
    creating: Creating,
) -> Response:
    """Adds spans to a trace, or updates those whose ids it has: what is not sent (or null) stays as it is."""
    rows = [_named(storable(s.model_dump(mode="python"))) for s in spans]

    async def work(tx: Tx) -> BaseModel:
        if not await traces.add_spans(tx, visitor.project, trace_id, rows):
            raise not_found("Trace")
        return SpansAccepted(span_ids=[r["span_id"] for r in rows])

    return await creating.make(work, 201)


@router.patch("/{trace_id}/spans/{span_id}", summary="Change a span")
async def change_span(trace_id: TraceId, span_id: SpanId, patch: SpanPatch, visitor: Visitor) -> SpanOut:
    """Touches only the fields that are in the body; null clears one. Metadata merges."""
    changes = _changes(patch, never_null=("name", "kind", "status"), empty={})

    async def work(tx: Tx) -> SpanOut:
        if not await traces.patch_span(tx, visitor.project, trace_id, span_id, changes):
            raise not_found("Span")
        changed = await traces.get(tx, trace_id, visitor.project)
        return next(SpanOut.of(trace_id, s) for s in (changed.spans if changed else ()) if s.span_id == span_id)

    return await written(visitor, work)


async def _read(tx: Tx, project: UUID, trace_id: UUID) -> TraceOut:
    found = await traces.get(tx, trace_id, project)
    if found is None:
        raise not_found("Trace")
    return TraceOut.of(found, (await traces.sums(tx, [trace_id]))[trace_id])


def _arrival(trace: TraceIn, clean: bool) -> Arrival:
    """Looking into every word of a large trace costs as much as checking its shape: only where there is a reason."""
    dumped = trace.model_dump(mode="python")
    fields = dumped if clean else storable(dumped)
    spans = fields.pop("spans")
    fields["trace_id"] = trace.trace_id or uuid4()
    for name in ("session_id", "user_id"):
        fields[name] = fields[name] or None  # an empty one names nobody, and could not stand in a path
    return Arrival(fields, [_named(s) for s in spans])


def _named(span: dict[str, Any]) -> dict[str, Any]:
    return span if span["span_id"] else {**span, "span_id": uuid4()}


def _changes(patch: TracePatch | SpanPatch, never_null: tuple[str, ...], empty: dict[str, Any]) -> dict[str, Any]:
    said = storable(patch.model_dump(exclude_unset=True, mode="python"))
    changes = {k: empty.get(k) if v is None else v for k, v in said.items() if v is not None or k not in never_null}
    return {k: (v or None) if k in ("session_id", "user_id") else v for k, v in changes.items()}


def _latency(started: datetime, ended: datetime | None) -> float | None:
    return milliseconds(started, ended)
