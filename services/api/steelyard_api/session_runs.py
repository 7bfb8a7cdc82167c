"""/evaluations/session-runs: runs that judge whole sessions, by what the signals of their traces fold into."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from steelyard.metrics import why_no_session_metric
from steelyard.metrics.sessions import SESSION_METRICS, WEIGHTS, SessionMetric, weights_of
from steelyard.runs import sample_size
from steelyard.store import answers, runs, session_scores, sessions, sessions_expanded
from steelyard.store.database import Tx
from steelyard.traces import storable
from steelyard_api.access import Visitor
from steelyard_api.creating import Conflict, Creating, written
from steelyard_api.errors import Refused, not_found
from steelyard_api.estimates import estimated_sessions, session_wishes
from steelyard_api.runs import NOT_PAUSED, STARTING, RunId, added_up, announce, asked_for, judge_for, resumed, shown
from steelyard_api.shapes import (
    BatchSessionRunIn,
    EstimateOut,
    Page,
    RunOut,
    RunStatus,
    SessionMetricOut,
    SessionRunIn,
    SessionScoreOut,
    UsageOut,
)
from steelyard_api.streams import Rows, array_in_pages
from steelyard_api.traces import Limit, Offset
from steelyard_api.wire import StrictRoute

# A score of a long session tells of hundreds of traces.
SCORES_AT_ONCE = 200
router = APIRouter(prefix="/evaluations", tags=["Session runs"], route_class=StrictRoute)
NAMED, LONGEST = 15, 80  # of ids that a refusal gives back


@router.get("/session-metrics", summary="List session metrics")
async def list_session_metrics(visitor: Visitor) -> list[SessionMetricOut]:
    """The metrics that a run of sessions may ask for."""
    return [_metric(m) for m in SESSION_METRICS.values()]


@router.post(
    "/session-runs", status_code=202, summary="Start a run of sessions", response_model=RunOut, responses=STARTING
)
async def start_run(run: SessionRunIn, visitor: Visitor, creating: Creating, request: Request) -> Response:
    """Scores the sessions that match, each by each metric. First the signals that their traces lack are judged and kept
    as scores of the traces, then they are folded. The answer comes at once with the number of sessions; poll the run
    until its status is COMPLETED or FAILED. What a session gets later does not belong to the run. 400 when a metric, a
    signal or a model is unknown, or when no session matches."""
    metrics, weights = _known(run.metrics), _weights(run.signal_weights)
    if run.sampling_rate == 0:
        raise Refused(400, "A sampling_rate of 0 selects nothing", ("sampling_rate", "must be greater than 0"))
    judge = judge_for(request.app.state, run.model)

    async def work(tx: Tx) -> RunOut:
        found, snapshot = await sessions.matching(tx, visitor.project, run.filters)
        if not found:
            raise Refused(400, "No session of this project matches the filters", ("filters", "match no session"))
        asked = asked_for(visitor.project, run.name, metrics, run.model, judge)
        asked |= {"filters": run.filters.as_json() | weights}
        asked |= {"sampling_rate": run.sampling_rate, "snapshot": snapshot}
        asked |= await session_wishes(tx, visitor.project, run, judge, request.app.state.settings)
        return await _start(tx, asked | {"total_targets": sample_size(found, run.sampling_rate)})

    return await creating.make(work, 202, request.app.state.settings.runs_per_minute)


@router.post(
    "/session-runs/batch",
    status_code=202,
    summary="Start a run of these sessions",
    response_model=RunOut,
    responses=STARTING,
)
async def start_batch_run(run: BatchSessionRunIn, visitor: Visitor, creating: Creating, request: Request) -> Response:
    """Scores the sessions that are named, each by each metric. 400 when the project lacks one; the answer names them."""
    metrics, weights = _known(run.metrics), _weights(run.signal_weights)
    wanted = list(dict.fromkeys(storable(run.session_ids)))
    judge = judge_for(request.app.state, run.model)

    async def work(tx: Tx) -> RunOut:
        if missing := await sessions.missing(tx, visitor.project, wanted):
            raise _missing(missing)
        asked = asked_for(visitor.project, run.name, metrics, run.model, judge)
        asked |= {"filters": weights, "total_targets": 0}
        named = run.model_copy(update={"session_ids": wanted})
        asked |= await session_wishes(tx, visitor.project, named, judge, request.app.state.settings)
        return await _start(tx, asked, wanted)

    return await creating.make(work, 202, request.app.state.settings.runs_per_minute)


@router.post("/session-runs/estimate", summary="Estimate a run of sessions")
async def estimate_run(run: SessionRunIn, visitor: Visitor, request: Request) -> EstimateOut:
    """What a run with this body would mean, take and cost if no trace had its signals yet; those that are there are not
    paid for again. Nothing is started and no model is asked."""
    _known(run.metrics)
    _weights(run.signal_weights)
    judge = judge_for(request.app.state, run.model)
    async with visitor.database.begin(visitor.project) as tx:
        return await estimated_sessions(tx, visitor.project, run, judge, request.app.state.settings)


@router.get("/session-runs", summary="List runs of sessions")
async def list_runs(
    visitor: Visitor,
    status: Annotated[RunStatus | None, Query(description="exact")] = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> Page[RunOut]:
    """The project's runs of sessions, newest first."""
    async with visitor.database.begin(visitor.project) as tx:
        wanted = status.value if status else None
        found, total = await runs.page(tx, visitor.project, wanted, limit, offset, runs.SESSIONS)
    return Page(items=[shown(r) for r in found], total=total, limit=limit, offset=offset)


@router.get("/session-runs/{run_id}", summary="Read a run of sessions")
async def read_run(run_id: RunId, visitor: Visitor) -> RunOut:
    """How far the run is. Poll until its status is COMPLETED or FAILED."""
    async with visitor.database.begin(visitor.project) as tx:
        return shown(await _found(tx, visitor.project, run_id))


@router.get("/session-runs/{run_id}/usage", summary="Read what a run of sessions cost")
async def read_run_usage(run_id: RunId, visitor: Visitor) -> UsageOut:
    """Every call to a model that the run has made for signals so far, failed ones included, added up. A retry has its
    own."""
    async with visitor.database.begin(visitor.project) as tx:
        found = await _found(tx, visitor.project, run_id)
        rows = await answers.spent(tx, visitor.project, run_id)
    return added_up(rows, found["max_cost_usd"])


@router.get(
    "/session-runs/{run_id}/scores", summary="Read the scores of a run of sessions", response_model=list[SessionScoreOut]
)  # fmt: skip
async def read_run_scores(run_id: RunId, visitor: Visitor) -> Response:
    """Every session's scores that the run has so far, FAILED ones with their reason. A session's scores appear when the
    last signal of its traces is there. The signals are scores of the traces, with the same `eval_run_id`."""
    async with visitor.database.begin(visitor.project) as tx:
        await _found(tx, visitor.project, run_id)

    async def page(tx: Tx, after: Any) -> Rows:
        return await session_scores.of_run(tx, visitor.project, run_id, after, SCORES_AT_ONCE)

    return await array_in_pages(visitor, page, lambda score: (score["session_id"], score["name"]), SCORES_AT_ONCE)


@router.post(
    "/session-runs/{run_id}/retry", status_code=202, summary="Retry a run's failed sessions", response_model=RunOut,
    responses=STARTING,
)  # fmt: skip
async def retry_run(run_id: RunId, visitor: Visitor, creating: Creating, request: Request) -> Response:
    """Starts a new run of exactly the session+metric pairs that the run could not score, by the same judge and with the
    same weights; signals that are there are not judged again. 422 when there are none, also when all of those sessions
    are deleted; 409 while the run is not finished."""

    async def work(tx: Tx) -> RunOut:
        await runs.hold(tx, visitor.project, run_id, runs.SESSIONS)
        parent = await _found(tx, visitor.project, run_id)
        if parent["status"] in (RunStatus.PENDING, RunStatus.RUNNING):
            raise Conflict("The run is not finished: retry it when its status is COMPLETED or FAILED")
        failed, there, metrics = await sessions_expanded.failures(tx, run_id)
        if not there:
            said = "all failed sessions were deleted" if failed else "the run has no failed session+metric pairs"
            raise Refused(422, "There is nothing to retry", ("run_id", said))
        judge = judge_for(request.app.state, parent["judge_model"])
        asked = asked_for(visitor.project, parent["name"], metrics, parent["model"], judge)
        asked |= {
            name: parent[name] for name in ("filters", "sampling_rate", "max_cost_usd", "pair_cost_usd", "grouped")
        }
        asked |= {"parent_run_id": run_id, "root_run_id": parent["root_run_id"] or run_id}
        return await _start(tx, asked | {"total_targets": there})

    return await creating.make(work, 202, request.app.state.settings.runs_per_minute)


@router.post("/session-runs/{run_id}/resume", summary="Try a paused run of sessions at once", responses=NOT_PAUSED)
async def resume_run(run_id: RunId, visitor: Visitor) -> RunOut:
    """For a run that is paused because its judge's quota is exhausted, after the quota was raised: one of its signals is
    asked for now and not at `paused_until`. 409 when the run is not paused."""
    return await written(visitor, lambda tx: resumed(tx, visitor.project, run_id, runs.SESSIONS))


@router.delete("/session-runs/{run_id}", status_code=204, summary="Delete a run of sessions")
async def delete_run(
    run_id: RunId,
    visitor: Visitor,
    delete_scores: Annotated[
        bool, Query(description="also delete the run's scores: the sessions' and the signals of their traces")
    ] = False,
) -> Response:
    """Deletes the run; its scores, the sessions' and the traces', stay without their `eval_run_id`, unless
    `delete_scores` says otherwise. A run may be deleted while it is under way: it is gone at once, and what judges are
    still at changes nothing when it arrives."""
    if not await written(visitor, lambda tx: runs.hide(tx, visitor.project, run_id, delete_scores, runs.SESSIONS)):
        raise not_found("Run")
    await written(visitor, lambda tx: runs.treat_scores(tx, visitor.project, run_id, delete_scores))
    return Response(status_code=204)


async def _start(tx: Tx, asked: Mapping[str, Any], given: Sequence[str] = ()) -> RunOut:
    await runs.put(tx, {**asked, "target_type": runs.SESSIONS})
    if given:
        await sessions_expanded.write_given(tx, asked["id"], asked["project_id"], given)
    await announce(tx, asked["id"], asked["project_id"])
    return shown(await _found(tx, asked["project_id"], asked["id"]))


async def _found(tx: Tx, project: UUID, run_id: UUID) -> dict[str, Any]:
    """A run of traces is none of these: its id is as unknown here as a random one."""
    found = await runs.get(tx, project, run_id, runs.SESSIONS)
    if found is None:
        raise not_found("Run")
    return found


def _known(metrics: Sequence[str]) -> list[str]:
    unknown = [m for m in metrics if m not in SESSION_METRICS]
    if unknown:
        said = "; ".join(why_no_session_metric(storable(m[:100])) for m in unknown[:10])
        raise Refused(400, said[:1].upper() + said[1:], ("metrics", said))
    return list(dict.fromkeys(metrics))


def _weights(given: Mapping[str, float] | None) -> dict[str, Any]:
    """What goes into the run's filters: all weights as they will be used, or nothing where none was given."""
    if given is None:
        return {}
    if unknown := [name for name in given if name not in WEIGHTS]:
        said = f"unknown signals {', '.join(repr(storable(n[:100])) for n in unknown[:10])}; known are {', '.join(WEIGHTS)}"
        raise Refused(400, said[:1].upper() + said[1:], ("signal_weights", said))
    return {"signal_weights": weights_of(given)}


def _missing(ids: Sequence[str]) -> Refused:
    some, more = ", ".join(repr(i)[:LONGEST] for i in ids[:NAMED]), ""
    if len(ids) > NAMED:
        more = f" and {len(ids) - NAMED} more"
    return Refused(400, f"The project has no such sessions: {some}{more}", ("session_ids", f"unknown: {some}{more}"))


def _metric(m: SessionMetric) -> SessionMetricOut:
    return SessionMetricOut(
        name=m.name,
        description=m.description,
        category=m.category,
        default_threshold=m.threshold,
        prompt_preview=[],
        signal_weights=dict(WEIGHTS),
    )
