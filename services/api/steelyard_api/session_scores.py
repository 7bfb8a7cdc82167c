"""/evaluations/session-scores: what runs said about sessions."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from steelyard.store import session_scores
from steelyard.traces import storable
from steelyard_api.access import Visitor
from steelyard_api.creating import written
from steelyard_api.errors import not_found
from steelyard_api.scores import ScoreFrom, ScoreId, ScoreTo
from steelyard_api.sessions import SessionId
from steelyard_api.shapes import Page, ScoreSource, ScoreStatus, SessionScoreOut, Short
from steelyard_api.streams import encoded
from steelyard_api.traces import Limit, Offset
from steelyard_api.wire import StrictRoute

router = APIRouter(prefix="/evaluations/session-scores", tags=["Session scores"], route_class=StrictRoute)


@router.get("", summary="List session scores")
async def list_scores(
    visitor: Visitor,
    session_id: Annotated[Short | None, Query(description="exact")] = None,
    name: Annotated[Short | None, Query(description="exact")] = None,
    source: Annotated[ScoreSource | None, Query(description="exact")] = None,
    status: Annotated[ScoreStatus | None, Query(description="exact")] = None,
    eval_run_id: Annotated[UUID | None, Query(description="of this run")] = None,
    date_from: ScoreFrom = None,
    date_to: ScoreTo = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> Page[SessionScoreOut]:
    """The project's session scores, newest first."""
    wanted = session_scores.SessionScoreFilters(
        session_id=storable(session_id),
        name=storable(name),
        source=source.value if source else None,
        status=status.value if status else None,
        eval_run_id=eval_run_id,
        date_from=date_from,
        date_to=date_to,
    )
    async with visitor.database.begin(visitor.project) as tx:
        found, total = await session_scores.page(tx, visitor.project, wanted, limit, offset)
    return Page(items=[SessionScoreOut(**s) for s in found], total=total, limit=limit, offset=offset)


@router.get("/{session_id:anything}", summary="Read a session's scores", response_model=list[SessionScoreOut])
async def read_scores(session_id: SessionId, visitor: Visitor) -> Response:
    """All of them, newest first: one for each run and metric. (Here the id is a session's; below it is a score's.)"""
    name = storable(session_id)
    async with visitor.database.begin(visitor.project) as tx:
        found = await session_scores.of_session(tx, visitor.project, name)
        if not found and not await session_scores.any_of(tx, visitor.project, name):
            raise not_found("Session")
    return Response(b"[" + encoded(found) + b"]", media_type="application/json")


@router.delete("/{score_id:anything}", status_code=204, summary="Delete a session score")
async def delete_score(score_id: ScoreId, visitor: Visitor) -> Response:
    """Deletes the score, and not the signals that it was folded from: those are scores of traces."""
    if not await written(visitor, lambda tx: session_scores.delete(tx, visitor.project, score_id)):
        raise not_found("Score")
    return Response(status_code=204)
