"""/evaluations/analytics: scores added up, over time, and by how often which value was given."""

from typing import Annotated

from fastapi import APIRouter, Query

from steelyard.store import scores
from steelyard.traces import storable
from steelyard_api.access import Visitor
from steelyard_api.scores import ScoreFrom, ScoreTo
from steelyard_api.shapes import ScoreBucket, ScoreSummary, ScoreTrend
from steelyard_api.traces import Granularity
from steelyard_api.wire import StrictRoute

router = APIRouter(prefix="/evaluations/analytics/trace-scores", tags=["Score analytics"], route_class=StrictRoute)
MetricName = Annotated[str, Query(min_length=1, max_length=255, description="a metric's or a score's name")]


@router.get("/summary", summary="Sum up scores")
async def summary(visitor: Visitor, date_from: ScoreFrom = None, date_to: ScoreTo = None) -> list[ScoreSummary]:
    """One row for each name that has scores: average, extremes, median, how many were scored and how many were not.
    PENDING scores do not count."""
    async with visitor.database.begin(visitor.project) as tx:
        return [ScoreSummary(**r) for r in await scores.summary(tx, visitor.project, date_from, date_to)]


@router.get("/trend", summary="Scores over time")
async def trend(
    visitor: Visitor,
    metric_name: MetricName,
    granularity: Annotated[Granularity, Query(description="in UTC; weeks begin on Monday")] = Granularity.day,
    date_from: ScoreFrom = None,
    date_to: ScoreTo = None,
) -> list[ScoreTrend]:
    """The average of a metric in each hour, day or week by when the scores were created. NUMERIC scores count as they
    are, BOOLEAN ones as 1 and 0; what was not scored, and CATEGORICAL ones, do not. Empty buckets are left out."""
    name = storable(metric_name)
    async with visitor.database.begin(visitor.project) as tx:
        found = await scores.trend(tx, visitor.project, name, granularity.value, date_from, date_to)
    return [ScoreTrend(**r) for r in found]


@router.get("/distribution", summary="How often which score")
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
        found = await scores.distribution(tx, visitor.project, name, buckets, date_from, date_to)
    return [ScoreBucket(**r) for r in found]
