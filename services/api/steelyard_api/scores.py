"""/evaluations/trace-scores: what people and programs say about traces, beside what judges said."""

import math
import re
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import APIRouter, Path, Query, Response

from steelyard.store import scores, traces
from steelyard.store.database import Tx
from steelyard.traces import storable
from steelyard_api.access import Visitor
from steelyard_api.creating import CREATING, Creating, written
from steelyard_api.errors import Refused, not_found
from steelyard_api.shapes import (
    GivenSource,
    Page,
    ScoreBefore,
    ScoreIn,
    ScoreOut,
    ScorePatch,
    ScoreSource,
    ScoreStatus,
    ScoreType,
    Short,
    When,
)
from steelyard_api.traces import Limit, Offset, TraceId
from steelyard_api.wire import StrictRoute

router = APIRouter(prefix="/evaluations/trace-scores", tags=["Trace scores"], route_class=StrictRoute)
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,6})?")
_PLAIN = re.compile(r"(?:0|1|0\.[0-9]{1,15}|1\.0{1,15})")
ScoreId = Annotated[UUID, Path(description="the score's id")]
ScoreFrom = Annotated[When | None, Query(description="created at this time or later")]
ScoreTo = Annotated[When | None, Query(description="created before this time")]


@router.post("", status_code=201, summary="Score a trace", response_model=ScoreOut, responses=CREATING)
async def create_score(score: ScoreIn, visitor: Visitor, creating: Creating) -> Response:
    """Attaches a score to a trace. A trace may have many scores of one name; the newest counts where one is shown.

    A PROGRAMMATIC score may come before its trace: for an id that the project does not have (yet) it is answered with
    status PENDING, becomes SUCCESS when the project ingests that trace, and is deleted after 24 hours without it. An
    ANNOTATION needs its trace, and is a 404 without."""
    given = storable(score.model_dump(mode="python")) | {"id": uuid4(), "author_user_id": visitor.author}
    given |= {"value": checked(score.value, score.data_type), "reason": storable(score.reason)}
    given |= {"data_type": score.data_type.value, "source": score.source.value, "trace_id": score.trace_id}

    async def work(tx: Tx) -> ScoreOut:
        made = await scores.put(tx, visitor.project, given, park=score.source is GivenSource.PROGRAMMATIC)
        if made is None:
            raise not_found("Trace")
        return ScoreOut(**made)

    return await creating.make(work, 201)


@router.get("", summary="List scores")
async def list_scores(
    visitor: Visitor,
    trace_id: Annotated[UUID | None, Query(description="exact")] = None,
    name: Annotated[Short | None, Query(description="exact")] = None,
    source: Annotated[ScoreSource | None, Query(description="exact")] = None,
    status: Annotated[ScoreStatus | None, Query(description="exact")] = None,
    data_type: Annotated[ScoreType | None, Query(description="exact")] = None,
    eval_run_id: Annotated[UUID | None, Query(description="of this run")] = None,
    environment: Annotated[Short | None, Query(description="the trace's, exact")] = None,
    date_from: ScoreFrom = None,
    date_to: ScoreTo = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> Page[ScoreOut]:
    """The project's scores, newest first."""
    wanted = scores.ScoreFilters(
        trace_id=trace_id,
        name=storable(name),
        source=source.value if source else None,
        status=status.value if status else None,
        data_type=data_type.value if data_type else None,
        eval_run_id=eval_run_id,
        environment=storable(environment),
        date_from=date_from,
        date_to=date_to,
    )
    async with visitor.database.begin(visitor.project) as tx:
        found, total = await scores.page(tx, visitor.project, wanted, limit, offset)
    return Page(items=[ScoreOut(**s) for s in found], total=total, limit=limit, offset=offset)


@router.get("/{trace_id}", summary="Read a trace's scores")
async def read_scores(trace_id: TraceId, visitor: Visitor) -> list[ScoreOut]:
    """The newest score of each name, whatever its status. (Here the id is a trace's; below it is a score's.)"""
    async with visitor.database.begin(visitor.project) as tx:
        if await traces.missing(tx, visitor.project, [trace_id]):
            raise not_found("Trace")
        found = await scores.latest_of(tx, visitor.project, trace_id)
    return [ScoreOut(**s) for s in found]


@router.get("/{score_id}/history", summary="Read what a score said before")
async def read_history(score_id: ScoreId, visitor: Visitor) -> list[ScoreBefore]:
    """What the score said before each of its changes, the latest first: what a judge said is never lost."""
    async with visitor.database.begin(visitor.project) as tx:
        if await scores.get(tx, visitor.project, score_id) is None:
            raise not_found("Score")
        return [ScoreBefore(**s) for s in await scores.history(tx, visitor.project, score_id)]


@router.patch("/{score_id}", summary="Change a score")
async def change_score(score_id: ScoreId, patch: ScorePatch, visitor: Visitor) -> ScoreOut:
    """A person's word over a score: its source becomes ANNOTATION and its status SUCCESS. What it said before stays in
    its history. A score that was not scored needs a value."""
    said = patch.model_dump(exclude_unset=True, mode="python")
    if not said:
        raise Refused(422, "Validation error", ("value", "say what to change: value, reason or metadata"))

    async def work(tx: Tx) -> ScoreOut:
        before = await scores.lock(tx, visitor.project, score_id)
        if before is None:
            raise not_found("Score")
        await scores.change(tx, before, _changed(before, said), visitor.author)
        after = await scores.get(tx, visitor.project, score_id)
        assert after is not None, "its row is locked"
        return ScoreOut(**after)

    return await written(visitor, work)


@router.delete("/{score_id}", status_code=204, summary="Delete a score")
async def delete_score(score_id: ScoreId, visitor: Visitor) -> Response:
    """Deletes the score and its history."""
    if not await written(visitor, lambda tx: scores.delete(tx, visitor.project, score_id)):
        raise not_found("Score")
    return Response(status_code=204)


def _changed(before: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    value = before["value"]
    if "value" in said:
        value = checked(said["value"], ScoreType(before["data_type"])) if said["value"] is not None else None
    if value is None:
        raise Refused(422, "Validation error", ("value", "is needed: the score has none"))
    return {
        "value": value,
        "reason": storable(said["reason"]) if "reason" in said else before["reason"],
        "metadata": storable(said["metadata"] or {}) if "metadata" in said else before["metadata"],
        # A parked one still waits for its trace.
        "status": "PENDING" if before["status"] == "PENDING" else "SUCCESS",
    }


def checked(value: str | bool | int | float, kind: ScoreType) -> str:
    """The value as it is stored, or a 422 that says what it may be."""
    if kind is ScoreType.BOOLEAN:
        said = str(value).strip().lower()
        if said not in ("true", "false"):
            raise Refused(422, "Validation error", ("value", 'a BOOLEAN score is "true" or "false"'))
        return said
    if kind is ScoreType.NUMERIC:
        return _number(value)
    said = str(storable(value if isinstance(value, str) else str(value)))
    if not said.strip() or len(said) > 255:
        raise Refused(422, "Validation error", ("value", "a CATEGORICAL score has 1 to 255 characters"))
    return said


def _number(value: str | bool | int | float) -> str:
    """As it was written where that is a plain decimal; otherwise the shortest that means the same number."""
    said = "" if isinstance(value, bool) else str(value).strip()
    number = float(said) if _NUMBER.fullmatch(said) else math.nan
    if not 0 <= number <= 1:
        raise Refused(422, "Validation error", ("value", "a NUMERIC score is a number from 0 to 1"))
    return said if _PLAIN.fullmatch(said) else repr(abs(number))
