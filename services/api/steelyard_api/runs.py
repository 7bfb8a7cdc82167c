"""/evaluations: runs are asked for here, watched, and their scores read."""

import os
from enum import StrEnum
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Query, Request

from steelyard.events import RunRequested
from steelyard.metrics import CATALOGUE
from steelyard.metrics.preview import previews
from steelyard.providers import default_model, why_not
from steelyard.runs import sample_size
from steelyard.settings import Settings
from steelyard.store import runs, scores, traces
from steelyard.store.database import Tx
from steelyard.store.outbox import Outbox
from steelyard.traces import storable
from steelyard_api.access import Visitor
from steelyard_api.errors import Refused, not_found
from steelyard_api.shapes import MetricOut, Page, Preview, RunIn, RunOut, ScoreOut
from steelyard_api.traces import Limit, Offset
from steelyard_api.wire import StrictRoute

router = APIRouter(prefix="/evaluations", tags=["Evaluations"], route_class=StrictRoute)


class RunStatus(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


@router.get("/trace-metrics", summary="List trace metrics")
async def list_trace_metrics(visitor: Visitor) -> list[MetricOut]:
    """The metrics that a run may ask for."""
    return [
        MetricOut(
            name=m.name,
            description=m.description,
            category=m.category,
            default_threshold=m.threshold,
            prompt_preview=[Preview(stage=stage, prompt=prompt) for stage, prompt in previews(m)],
        )
        for m in CATALOGUE.values()
    ]


@router.post("/trace-runs", status_code=202, summary="Start a run")
async def start_run(run: RunIn, visitor: Visitor, request: Request) -> RunOut:
    """Scores the traces that match, each by each metric. The answer comes at once with the number of traces; poll the
    run until its status is COMPLETED or FAILED. Traces that arrive later do not belong to it. 400 when a metric or a
    model is unknown, or when no trace matches."""
    metrics = list(dict.fromkeys(run.metrics))
    _known(metrics)
    if run.sampling_rate == 0:
        raise Refused(400, "A sampling_rate of 0 selects nothing", ("sampling_rate", "must be greater than 0"))
    judge = _judge(request.app.state.settings, run.model)
    async with visitor.database.begin(visitor.project) as tx:
        found, snapshot = await traces.matching(tx, visitor.project, run.filters)
        if not found:
            raise Refused(400, "No trace of this project matches the filters", ("filters", "match no trace"))
        asked = {
            "id": uuid4(),
            "project_id": visitor.project,
            "name": storable(run.name),
            "metric_names": metrics,
            "filters": run.filters.as_json(),
            "sampling_rate": run.sampling_rate,
            "model": run.model,
            "judge_model": judge,
            "total_targets": sample_size(found, run.sampling_rate),
            "snapshot": snapshot,
        }
        made = await runs.put(tx, asked)
        await announce(tx, asked["id"], visitor.project)
    return _shown(made)


async def announce(tx: Tx, run: UUID, project: UUID, outbox: Outbox[RunRequested] = Outbox()) -> None:  # noqa: B008
    """In the transaction that wrote the run: both happen or neither."""
    await outbox.put(tx, RunRequested(run_id=run, project_id=project))


@router.get("/trace-runs", summary="List runs")
async def list_runs(
    visitor: Visitor,
    status: Annotated[RunStatus | None, Query()] = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> Page[RunOut]:
    """The project's runs, newest first."""
    async with visitor.database.begin(visitor.project) as tx:
        found, total = await runs.page(tx, visitor.project, status.value if status else None, limit, offset)
    return Page(items=[_shown(r) for r in found], total=total, limit=limit, offset=offset)


@router.get("/trace-runs/{run_id}", summary="Read a run")
async def read_run(run_id: UUID, visitor: Visitor) -> RunOut:
    """How far the run is. Poll until its status is COMPLETED or FAILED."""
    async with visitor.database.begin(visitor.project) as tx:
        found = await runs.get(tx, visitor.project, run_id)
    if found is None:
        raise not_found("Run")
    return _shown(found)


@router.get("/trace-runs/{run_id}/scores", summary="Read a run's scores")
async def read_run_scores(run_id: UUID, visitor: Visitor) -> list[ScoreOut]:
    """Every score the run has so far, FAILED ones with their reason. A score appears as soon as its pair is settled."""
    async with visitor.database.begin(visitor.project) as tx:
        if await runs.get(tx, visitor.project, run_id) is None:
            raise not_found("Run")
        found = await scores.of_run(tx, visitor.project, run_id)
    return [ScoreOut(**s) for s in found]


def _known(metrics: list[str]) -> None:
    unknown = [m for m in metrics if m not in CATALOGUE]
    if unknown:
        said = f"unknown metric {', '.join(repr(m) for m in unknown)}; known are {', '.join(CATALOGUE)}"
        raise Refused(400, said[:1].upper() + said[1:], ("metrics", said))


def _judge(settings: Settings, model: str | None) -> str:
    judge = model or default_model(settings.judge_model, settings.judge_base_url, os.environ)
    if why := why_not(judge, settings.judge_base_url, os.environ):
        raise Refused(400, f"Model {judge!r} cannot be used: {why}", ("model", why))
    return judge


def _shown(run: dict[str, object]) -> RunOut:
    return RunOut.model_validate({**run, "total_traces": run["total_targets"]})
