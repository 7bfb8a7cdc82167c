"""What a run will take and may cost, decided before anyone is asked."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from steelyard.metrics import CATALOGUE, SIGNAL_METRICS
from steelyard.metrics.effort import effort, most_tokens
from steelyard.metrics.judging import Metric
from steelyard.prices import price_of
from steelyard.providers import RULES
from steelyard.runs import sample_size
from steelyard.settings import Settings
from steelyard.store import answers, sessions, traces
from steelyard.store.database import Tx
from steelyard_api.errors import Refused
from steelyard_api.shapes import BatchRunIn, BatchSessionRunIn, EstimateOut, Limited, RunIn, SessionRunIn

SAMPLED = 200  # of the newest traces, for an average
ALL_LOOKED_AT = 2_000  # traces whose sizes are looked at, all of them, for the most that a pair can cost
SECONDS_A_CALL = 3.0
SECONDS_BY_RULES = 0.002


@dataclass(frozen=True)
class Meant:
    """What is scored, and the traces that are judged for it."""

    targets: int
    traces: int
    average_bytes: float


async def estimated(
    tx: Tx, project: UUID, run: RunIn, metrics: Sequence[str], judge: str, settings: Settings
) -> EstimateOut:
    found, _ = await traces.matching(tx, project, run.filters)
    targets = sample_size(found, run.sampling_rate)
    average, _ = await traces.sizes(tx, project, run.filters, (), SAMPLED)
    pace = (await answers.pace(tx, project, judge)) or SECONDS_A_CALL
    asked = [CATALOGUE[m] for m in metrics]
    return _estimate(Meant(targets, targets, average), asked, judge, pace, settings)


async def estimated_sessions(tx: Tx, project: UUID, run: SessionRunIn, judge: str, settings: Settings) -> EstimateOut:
    """As if no trace had its signals yet. Which sessions a sample takes is not known before the run is: their traces
    are taken to be as many as on average."""
    found, _ = await sessions.matching(tx, project, run.filters)
    targets = sample_size(found, run.sampling_rate)
    in_all = await sessions.traces_in(tx, project, run.filters)
    average, _ = await sessions.sizes(tx, project, run.filters, (), SAMPLED)
    pace = (await answers.pace(tx, project, judge)) or SECONDS_A_CALL
    meant = Meant(targets, round(in_all * targets / found) if found else 0, average)
    return _estimate(meant, SIGNAL_METRICS, judge, pace, settings)


def _estimate(
    meant: Meant, metrics: Sequence[Metric], judge: str, seconds_a_call: float, settings: Settings
) -> EstimateOut:
    ruled, n = judge == RULES, meant.traces
    one = effort([] if ruled else metrics, meant.average_bytes)
    price = price_of(judge, settings.judge_base_url)
    cost = price.of(one.input_tokens * n, one.output_tokens * n) if price else None
    by_rules, by_model = len(metrics) * SECONDS_BY_RULES, one.calls * seconds_a_call / settings.judge_slots
    return EstimateOut(
        total_targets=meant.targets,
        pairs=n * len(metrics),
        judge_model=judge,
        calls=one.calls * n,
        input_tokens=one.input_tokens * n,
        output_tokens=one.output_tokens * n,
        cost_usd=None if cost is None else round(cost, 6),
        seconds=round(n * (by_rules if ruled else by_model), 1),
    )


async def wishes(
    tx: Tx, project: UUID, run: RunIn | BatchRunIn, metrics: Sequence[str], judge: str, settings: Settings
) -> dict[str, Any]:
    """What a run asks for beside its traces and metrics."""
    filters, ids = (run.filters, ()) if isinstance(run, RunIn) else (None, tuple(run.trace_ids))

    async def most_bytes() -> int | None:
        return (await traces.sizes(tx, project, filters, ids, ALL_LOOKED_AT))[1]

    asked = {"reuse": run.reuse, "grouped": run.grouped}
    return asked | await limits(run, [CATALOGUE[m] for m in metrics], most_bytes, judge, settings)


async def session_wishes(
    tx: Tx, project: UUID, run: SessionRunIn | BatchSessionRunIn, judge: str, settings: Settings
) -> dict[str, Any]:
    """A pair of a run of sessions is a trace and one of its signals, whatever the signals fold into."""
    filters, ids = (run.filters, ()) if isinstance(run, SessionRunIn) else (None, tuple(run.session_ids))

    async def most_bytes() -> int | None:
        return (await sessions.sizes(tx, project, filters, ids, ALL_LOOKED_AT))[1]

    return {"grouped": run.grouped} | await limits(run, SIGNAL_METRICS, most_bytes, judge, settings)


async def limits(
    run: Limited,
    metrics: Sequence[Metric],
    most_bytes: Callable[[], Awaitable[int | None]],
    judge: str,
    settings: Settings,
) -> dict[str, Any]:
    """A limit that cannot be kept, or that nothing fits into, is refused now and not found out later."""
    asked: dict[str, Any] = {"max_cost_usd": run.max_cost_usd}
    if run.max_cost_usd is None:
        return asked
    price = price_of(judge, settings.judge_base_url)
    if price is None and not run.allow_unknown_price:
        said = f"cannot be kept: nobody lists a price for {judge!r}; allow_unknown_price starts the run all the same"
        raise Refused(400, f"max_cost_usd {said}", ("max_cost_usd", said))
    if price is None or judge == RULES:
        return asked
    most = await most_bytes()
    pair = max(price.of(*most_tokens(m, most, settings.judge_max_tokens)) for m in metrics)
    if pair > run.max_cost_usd:
        said = f"is less than one trace+metric pair may cost here at most, {pair:.4f}"
        raise Refused(400, f"max_cost_usd {said}", ("max_cost_usd", said))
    return asked | {"pair_cost_usd": pair}
