"""/evaluations/trace-runs: runs are asked for here, watched, retried and deleted."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.datastructures import State

from steelyard.events import RunRequested
from steelyard.metrics import CATALOGUE, why_unknown
from steelyard.metrics.judging import Metric
from steelyard.metrics.preview import previews
from steelyard.providers import PROVIDERS, RULES, Provider, default_model, why_not
from steelyard.runs import sample_size
from steelyard.settings import Settings
from steelyard.store import answers, expansion, ledger, runs, scores, traces
from steelyard.store.database import Tx
from steelyard.store.outbox import Outbox
from steelyard.traces import storable
from steelyard_api.access import Visitor
from steelyard_api.creating import CREATING, Conflict, Creating, written
from steelyard_api.errors import Refused, not_found
from steelyard_api.estimates import estimated, wishes
from steelyard_api.shapes import (
    BatchRunIn,
    EstimateOut,
    Failure,
    FiltersOut,
    MetricOut,
    Page,
    Preview,
    ProviderOut,
    RunIn,
    RunOut,
    RunStatus,
    RunTemplate,
    ScoreOut,
    Spent,
    UsageOut,
    When,
)
from steelyard_api.streams import Rows, array_in_pages
from steelyard_api.traces import Limit, Offset
from steelyard_api.wire import StrictRoute

router = APIRouter(prefix="/evaluations", tags=["Trace runs"], route_class=StrictRoute)
SCORES_AT_ONCE = 1000
RunId = Annotated[UUID, Path(description="the run's id")]
ADDED_UP = ("calls", "input_tokens", "output_tokens", "cached_tokens", "cost_usd", "unpriced_calls")
# Beside what every creating request may be answered.
STARTING: dict[int | str, dict[str, Any]] = CREATING | {
    429: {
        "model": Failure,
        "description": "too many of these in the last minute; Retry-After says when the next one is taken",
    }
}
NOT_PAUSED: dict[int | str, dict[str, Any]] = {409: {"model": Failure, "description": "the run is not paused"}}


@router.get("/providers", summary="List judges")
async def list_providers(visitor: Visitor, request: Request) -> list[ProviderOut]:
    """Whose models may judge here, and why one may not."""
    base_url = request.app.state.settings.judge_base_url
    found = [_provider(p, base_url, request.app.state.environ) for p in PROVIDERS]
    if base_url:
        own = "every model that JUDGE_BASE_URL serves, e.g. openai/qwen3"
        found.append(ProviderOut(key="own", name="Your own", description=own, available=True, message=base_url))
    rules = "no model: finds proofs of failure by rules, weak at proving success"
    return [*found, ProviderOut(key="heuristic", name="Rules", description=rules, available=True, message=RULES)]


@router.get("/trace-metrics", summary="List trace metrics")
async def list_trace_metrics(visitor: Visitor) -> list[MetricOut]:
    """The metrics that a run may ask for."""
    return [_metric(m) for m in CATALOGUE.values()]


@router.get("/trace-runs/template", summary="Get a run to fill in")
async def read_template(
    visitor: Visitor,
    request: Request,
    metric: Annotated[str, Query(max_length=255, description="a name from GET /evaluations/trace-metrics")],
) -> RunTemplate:
    """What a run by one metric would be if nothing else were said, with the prompts that its judge is asked."""
    _known([metric], "metric")
    model = _default(request.app.state)
    return RunTemplate(metric=_metric(CATALOGUE[metric]), filters=FiltersOut(), sampling_rate=1.0, model=model)


@router.post("/trace-runs", status_code=202, summary="Start a run", response_model=RunOut, responses=STARTING)
async def start_run(run: RunIn, visitor: Visitor, creating: Creating, request: Request) -> Response:
    """Scores the traces that match, each by each metric. The answer comes at once with the number of traces; poll the
    run until its status is COMPLETED or FAILED. Traces that arrive later do not belong to it. 400 when a metric or a
    model is unknown, or when no trace matches.

    The run belongs to the project and not to the key that asked for it: it goes on when the key is revoked."""
    metrics = _known(run.metrics)
    if run.sampling_rate == 0:
        raise Refused(400, "A sampling_rate of 0 selects nothing", ("sampling_rate", "must be greater than 0"))
    judge = judge_for(request.app.state, run.model)

    async def work(tx: Tx) -> RunOut:
        found, snapshot = await traces.matching(tx, visitor.project, run.filters)
        if not found:
            raise Refused(400, "No trace of this project matches the filters", ("filters", "match no trace"))
        asked = asked_for(visitor.project, run.name, metrics, run.model, judge)
        asked |= {"filters": run.filters.as_json(), "sampling_rate": run.sampling_rate, "snapshot": snapshot}
        asked |= await wishes(tx, visitor.project, run, metrics, judge, request.app.state.settings)
        return await _start(tx, asked | {"total_targets": sample_size(found, run.sampling_rate)})

    return await creating.make(work, 202, request.app.state.settings.runs_per_minute)


@router.post(
    "/trace-runs/batch",
    status_code=202,
    summary="Start a run of these traces",
    response_model=RunOut,
    responses=STARTING,
)
async def start_batch_run(run: BatchRunIn, visitor: Visitor, creating: Creating, request: Request) -> Response:
    """Scores the traces that are named, each by each metric. 400 when the project lacks one; the answer names them."""
    metrics, wanted = _known(run.metrics), list(dict.fromkeys(run.trace_ids))
    judge = judge_for(request.app.state, run.model)

    async def work(tx: Tx) -> RunOut:
        if missing := await traces.missing(tx, visitor.project, wanted):
            raise _missing(missing)
        asked = asked_for(visitor.project, run.name, metrics, run.model, judge) | {"total_targets": 0}
        asked |= await wishes(tx, visitor.project, run, metrics, judge, request.app.state.settings)
        return await _start(tx, asked, wanted)

    return await creating.make(work, 202, request.app.state.settings.runs_per_minute)


@router.post("/trace-runs/estimate", summary="Estimate a run")
async def estimate_run(run: RunIn, visitor: Visitor, request: Request) -> EstimateOut:
    """What a run with this body would mean, take and cost. Nothing is started and no model is asked."""
    metrics = _known(run.metrics)
    judge = judge_for(request.app.state, run.model)
    async with visitor.database.begin(visitor.project) as tx:
        return await estimated(tx, visitor.project, run, metrics, judge, request.app.state.settings)


@router.get("/trace-runs/{run_id}/usage", summary="Read what a run cost")
async def read_run_usage(run_id: RunId, visitor: Visitor) -> UsageOut:
    """Every call to a model that the run has made so far, failed ones included, added up. A retry has its own."""
    async with visitor.database.begin(visitor.project) as tx:
        found = await _found(tx, visitor.project, run_id)
        rows = await answers.spent(tx, visitor.project, run_id)
    return added_up(rows, found["max_cost_usd"])


@router.get("/usage", summary="Read what the project's judges cost")
async def read_usage(
    visitor: Visitor,
    date_from: Annotated[When | None, Query(description="calls made at this time or later")] = None,
    date_to: Annotated[When | None, Query(description="calls made before this time")] = None,
) -> UsageOut:
    """Every call to a model that the project's runs made, deleted runs' too, added up by metric and model."""
    async with visitor.database.begin(visitor.project) as tx:
        rows = await answers.spent_by_project(tx, visitor.project, date_from, date_to)
    return added_up(rows, None)


@router.get("/trace-runs", summary="List runs")
async def list_runs(
    visitor: Visitor,
    status: Annotated[RunStatus | None, Query(description="exact")] = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> Page[RunOut]:
    """The project's runs, newest first."""
    async with visitor.database.begin(visitor.project) as tx:
        found, total = await runs.page(tx, visitor.project, status.value if status else None, limit, offset)
    return Page(items=[shown(r) for r in found], total=total, limit=limit, offset=offset)


@router.get("/trace-runs/{run_id}", summary="Read a run")
async def read_run(run_id: RunId, visitor: Visitor) -> RunOut:
    """How far the run is. Poll until its status is COMPLETED or FAILED."""
    async with visitor.database.begin(visitor.project) as tx:
        return shown(await _found(tx, visitor.project, run_id))


@router.delete("/trace-runs/{run_id}", status_code=204, summary="Delete a run")
async def delete_run(
    run_id: RunId,
    visitor: Visitor,
    delete_scores: Annotated[bool, Query(description="also delete the scores that the run made")] = False,
) -> Response:
    """Deletes the run; its scores stay, without their `eval_run_id`, unless `delete_scores` says otherwise.

    A run may be deleted while it is under way: it is gone at once, nothing more of it is sent to a judge, and what
    judges are still at changes nothing when it arrives. The scores it has made by then are treated as above.
    `delete_scores` also deletes those that a person has changed since, with their history."""
    if not await written(visitor, lambda tx: runs.hide(tx, visitor.project, run_id, delete_scores)):
        raise not_found("Run")
    await written(visitor, lambda tx: runs.treat_scores(tx, visitor.project, run_id, delete_scores))
    return Response(status_code=204)


@router.post(
    "/trace-runs/{run_id}/retry", status_code=202, summary="Retry a run's failures", response_model=RunOut,
    responses=STARTING,
)  # fmt: skip
async def retry_run(run_id: RunId, visitor: Visitor, creating: Creating, request: Request) -> Response:
    """Starts a new run of exactly the trace+metric pairs that the run could not score, by the same judge. 422 when
    there are none, also when the traces of all of them are deleted; 409 while the run is not finished."""

    async def work(tx: Tx) -> RunOut:
        await runs.hold(tx, visitor.project, run_id)
        parent = await _found(tx, visitor.project, run_id)
        if parent["status"] in (RunStatus.PENDING, RunStatus.RUNNING):
            raise Conflict("The run is not finished: retry it when its status is COMPLETED or FAILED")
        failed, there, metrics = await expansion.failures(tx, run_id)
        if not there:
            said = "all failed pairs are of traces that were deleted" if failed else "the run has no failed pairs"
            raise Refused(422, "There is nothing to retry", ("run_id", said))
        judge = judge_for(request.app.state, parent["judge_model"])
        asked = asked_for(visitor.project, parent["name"], metrics, parent["model"], judge)
        asked |= {"filters": parent["filters"], "sampling_rate": parent["sampling_rate"]}
        asked |= {name: parent[name] for name in ("max_cost_usd", "pair_cost_usd", "reuse", "grouped")}
        asked |= {"root_run_id": parent["root_run_id"] or run_id}
        return await _start(tx, asked | {"parent_run_id": run_id, "total_targets": there})

    return await creating.make(work, 202, request.app.state.settings.runs_per_minute)


@router.post("/trace-runs/{run_id}/resume", summary="Try a paused run at once", responses=NOT_PAUSED)
async def resume_run(run_id: RunId, visitor: Visitor) -> RunOut:
    """For a run that is paused because its judge's quota is exhausted, after the quota was raised: one of its pairs is sent
    now and not at `paused_until`. If it is answered, every run of the model goes on; if not, they wait once more. 409 when
    the run is not paused."""

    return await written(visitor, lambda tx: resumed(tx, visitor.project, run_id, runs.TRACES))


@router.get("/trace-runs/{run_id}/scores", summary="Read a run's scores", response_model=list[ScoreOut])
async def read_run_scores(run_id: RunId, visitor: Visitor) -> Response:
    """Every score the run has so far, FAILED ones with their reason. A score appears as soon as its pair is settled."""
    async with visitor.database.begin(visitor.project) as tx:
        await _found(tx, visitor.project, run_id)

    async def page(tx: Tx, after: Any) -> Rows:
        return await scores.of_run(tx, visitor.project, run_id, after, SCORES_AT_ONCE)

    return await array_in_pages(visitor, page, lambda score: (score["trace_id"], score["name"]), SCORES_AT_ONCE)


async def announce(tx: Tx, run: UUID, project: UUID, outbox: Outbox[RunRequested] = Outbox()) -> None:  # noqa: B008
    """In the transaction that wrote the run: both happen or neither."""
    await outbox.put(tx, RunRequested(run_id=run, project_id=project))


async def _start(tx: Tx, asked: Mapping[str, Any], given: Sequence[UUID] = ()) -> RunOut:
    await runs.put(tx, asked)
    if given:
        await expansion.write_given_targets(tx, asked["id"], asked["project_id"], given, len(asked["metric_names"]))
    await announce(tx, asked["id"], asked["project_id"])
    return shown(await _found(tx, asked["project_id"], asked["id"]))


async def resumed(tx: Tx, project: UUID, run_id: UUID, of: str) -> RunOut:
    paused = await runs.resume(tx, project, run_id, of)
    found = await runs.get(tx, project, run_id, of)
    if found is None:
        raise not_found("Run")
    if not paused:
        raise Conflict("The run is not paused")
    await ledger.ring(tx)
    return shown(found)


async def _found(tx: Tx, project: UUID, run_id: UUID) -> dict[str, Any]:
    found = await runs.get(tx, project, run_id)
    if found is None:
        raise not_found("Run")
    return found


def asked_for(project: UUID, name: str | None, metrics: Sequence[str], model: str | None, judge: str) -> dict[str, Any]:
    asked = {"id": uuid4(), "project_id": project, "name": storable(name), "metric_names": list(metrics)}
    return asked | {"model": model, "judge_model": judge}


def added_up(rows: Sequence[Mapping[str, Any]], limit: float | None) -> UsageOut:
    sums = {name: sum(r[name] for r in rows) for name in ADDED_UP}
    return UsageOut(**sums, max_cost_usd=limit, by_metric=[Spent(**r) for r in rows])


def _missing(ids: Sequence[UUID]) -> Refused:
    some, more = ", ".join(str(i) for i in ids[:50]), f" and {len(ids) - 50} more" if len(ids) > 50 else ""
    return Refused(400, f"The project has no such traces: {some}{more}", ("trace_ids", f"unknown: {some}{more}"))


def _metric(m: Metric) -> MetricOut:
    return MetricOut(
        name=m.name,
        description=m.description,
        category=m.category,
        default_threshold=m.threshold,
        prompt_preview=[Preview(stage=stage, prompt=prompt) for stage, prompt in previews(m)],
    )


def _provider(p: Provider, base_url: str | None, environ: Mapping[str, str]) -> ProviderOut:
    why = why_not(p.default_model, base_url, environ)
    message = why or f"configured; {p.default_model} when a run names no model of its own"
    return ProviderOut(key=p.key, name=p.name, description=p.description, available=why is None, message=message)


def _known(metrics: Sequence[str], field: str = "metrics") -> list[str]:
    unknown = [m for m in metrics if m not in CATALOGUE]
    if unknown:
        said = "; ".join(why_unknown(storable(m[:100])) for m in unknown[:10])
        raise Refused(400, said[:1].upper() + said[1:], (field, said))
    return list(dict.fromkeys(metrics))


def _default(state: State) -> str:
    settings: Settings = state.settings
    return default_model(settings.judge_model, settings.judge_base_url, state.environ)


def judge_for(state: State, model: str | None) -> str:
    judge = model or _default(state)
    if why := why_not(judge, state.settings.judge_base_url, state.environ):
        raise Refused(400, f"Model {judge!r} cannot be used: {why}", ("model", why))
    return judge


def shown(run: Mapping[str, Any]) -> RunOut:
    said = run["error_message"] or _paused(run)
    return RunOut.model_validate({**run, "total_traces": run["total_targets"], "error_message": said})


def _paused(run: Mapping[str, Any]) -> str | None:
    if run["paused_why"] is None:
        return None
    if run["paused_until"] is None:
        return f"paused: {run['paused_why']}; being tried again"
    kind = "session-runs" if run["target_type"] == runs.SESSIONS else "trace-runs"
    at_once = f"POST /evaluations/{kind}/{run['id']}/resume tries at once"
    return f"paused: {run['paused_why']}; tried again at {run['paused_until']:%Y-%m-%dT%H:%M:%SZ}; {at_once}"
