"""/evaluations/analytics/session-scores: session scores added up, over time, of one session, and sessions compared."""

from typing import Annotated

from fastapi import APIRouter, Query

from steelyard.store import scores, session_scores
from steelyard.traces import storable
from steelyard_api.access import Visitor
from steelyard_api.analytics import MetricName
from steelyard_api.errors import not_found
from steelyard_api.scores import ScoreFrom, ScoreTo
from steelyard_api.sessions import SessionId
from steelyard_api.shapes import Page, ScoreBucket, ScoreSummary, ScoreTrend, SessionCompared, SessionScoreBefore
from steelyard_api.traces import Granularity, Limit, Offset, Order
from steelyard_api.wire import StrictRoute

router = APIRouter(prefix="/evaluations/analytics/session-scores", tags=["Session analytics"], route_class=StrictRoute)
OneMetric = Annotated[
    str | None, Query(min_length=1, max_length=255, description="of this metric; of all when left out")
]


@router.get("/summary", summary="Sum up session scores")
async def summary(visitor: Visitor, date_from: ScoreFrom = None, date_to: ScoreTo = None) -> list[ScoreSummary]:
    """One row for each metric that has session scores: average, extremes, median, how many were scored and how many
    were not."""
    async with visitor.database.begin(visitor.project) as tx:
        found = await scores.summary(tx, visitor.project, date_from, date_to, scores.SESSION_SCORES)
    return [ScoreSummary(**r) for r in found]


@router.get("/trend", summary="Session scores over time")
async def trend(
    visitor: Visitor,
    metric_name: MetricName,
    granularity: Annotated[Granularity, Query(description="in UTC; weeks begin on Monday")] = Granularity.day,
    date_from: ScoreFrom = None,
    date_to: ScoreTo = None,
) -> list[ScoreTrend]:
    """The average of a metric in each hour, day or week by when the scores were created; what was not scored does not
    count. Empty buckets are left out."""
    name, by = storable(metric_name), granularity.value
    async with visitor.database.begin(visitor.project) as tx:
        found = await scores.trend(tx, visitor.project, name, by, date_from, date_to, scores.SESSION_SCORES)
    return [ScoreTrend(**r) for r in found]


@router.get("/distribution", summary="How often which session score")
async def distribution(
    visitor: Visitor,
    metric_name: MetricName,
    buckets: Annotated[int, Query(ge=1, le=100, description="of the same width, from 0 to 1")] = 10,
    date_from: ScoreFrom = None,
    date_to: ScoreTo = None,
) -> list[ScoreBucket]:
    """A histogram of a metric's values. A value on an edge belongs to the bucket that begins there, 1.0 to the last one.
    Every bucket is in the answer, the empty ones too."""
    name = storable(metric_name)
    async with visitor.database.begin(visitor.project) as tx:
        found = await scores.distribution(tx, visitor.project, name, buckets, date_from, date_to, scores.SESSION_SCORES)
    return [ScoreBucket(**r) for r in found]


@router.get("/comparison", summary="Compare sessions")
async def comparison(
    visitor: Visitor,
    metric_name: MetricName,
    sort_order: Annotated[Order, Query(description="asc: the worst first; desc: the best first")] = Order.asc,
    limit: Annotated[int, Query(ge=1, le=100, description="items on a page")] = 20,
    offset: Offset = 0,
) -> Page[SessionCompared]:
    """The project's sessions by the newest value that a metric has for each. A later run that could not score a session
    leaves it at its place; sessions without a value, and those that were deleted, are not in the list. Of the same
    value, the session ids decide."""
    name, descending = storable(metric_name), sort_order is Order.desc
    async with visitor.database.begin(visitor.project) as tx:
        found, total = await session_scores.comparison(tx, visitor.project, name, descending, limit, offset)
    return Page(items=[SessionCompared(**r) for r in found], total=total, limit=limit, offset=offset)


@router.get("/history/{session_id:anything}", summary="Read how a session's scores changed")
async def history(
    session_id: SessionId, visitor: Visitor, metric_name: OneMetric = None, limit: Limit = 50
) -> list[SessionScoreBefore]:
    """One row for each run and metric in the order they were made, failed ones too: the newest `limit` of them."""
    name, metric = storable(session_id), storable(metric_name)
    async with visitor.database.begin(visitor.project) as tx:
        found = await session_scores.history(tx, visitor.project, name, metric, limit)
        if not found and not await session_scores.any_of(tx, visitor.project, name):
            raise not_found("Session")
    return [SessionScoreBefore(**r) for r in found]
