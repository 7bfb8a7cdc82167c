"""What a run will take and may cost, decided before anyone is asked."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from steelyard.metrics import CATALOGUE
from steelyard.metrics.effort import effort, most_tokens
from steelyard.prices import price_of
from steelyard.providers import RULES
from steelyard.runs import sample_size
from steelyard.settings import Settings
from steelyard.store import answers, traces
from steelyard.store.database import Tx
from steelyard_api.errors import Refused
from steelyard_api.shapes import BatchRunIn, EstimateOut, RunIn

SAMPLED = 200  # of the newest traces, for an average
ALL_LOOKED_AT = 2_000  # traces whose sizes are looked at, all of them, for the most that a pair can cost
SECONDS_A_CALL = 3.0
SECONDS_BY_RULES = 0.002


async def estimated(
    tx: Tx, project: UUID, run: RunIn, metrics: Sequence[str], judge: str, settings: Settings
) -> EstimateOut:
    found, _ = await traces.matching(tx, project, run.filters)
    targets = sample_size(found, run.sampling_rate)
    average, _ = await traces.sizes(tx, project, run.filters, (), SAMPLED)
    ruled = judge == RULES
    one = effort([] if ruled else [CATALOGUE[m] for m in metrics], average)
    price = price_of(judge, settings.judge_base_url)
    cost = price.of(one.input_tokens * targets, one.output_tokens * targets) if price else None
    pace = (await answers.pace(tx, project, judge)) or SECONDS_A_CALL
    seconds = targets * len(metrics) * SECONDS_BY_RULES if ruled else targets * one.calls * pace / settings.judge_slots
    return EstimateOut(
        total_targets=targets,
        pairs=targets * len(metrics),
        judge_model=judge,
        calls=one.calls * targets,
        input_tokens=one.input_tokens * targets,
        output_tokens=one.output_tokens * targets,
        cost_usd=None if cost is None else round(cost, 6),
        seconds=round(seconds, 1),
    )


async def wishes(
    tx: Tx, project: UUID, run: RunIn | BatchRunIn, metrics: Sequence[str], judge: str, settings: Settings
) -> dict[str, Any]:
    """What a run asks for beside its traces and metrics. A limit that cannot be kept, or that nothing fits into, is
    refused now and not found out later."""
    asked = {"max_cost_usd": run.max_cost_usd, "reuse": run.reuse, "grouped": run.grouped}
    if run.max_cost_usd is None:
        return asked
    price = price_of(judge, settings.judge_base_url)
    if price is None and not run.allow_unknown_price:
        said = f"cannot be kept: nobody lists a price for {judge!r}; allow_unknown_price starts the run all the same"
        raise Refused(400, f"max_cost_usd {said}", ("max_cost_usd", said))
    if price is None or judge == RULES:
        return asked
    filters, ids = (run.filters, ()) if isinstance(run, RunIn) else (None, tuple(run.trace_ids))
    _, most_bytes = await traces.sizes(tx, project, filters, ids, ALL_LOOKED_AT)
    pair = max(price.of(*most_tokens(CATALOGUE[m], most_bytes, settings.judge_max_tokens)) for m in metrics)
    if pair > run.max_cost_usd:
        said = f"is less than one trace+metric pair may cost here at most, {pair:.4f}"
        raise Refused(400, f"max_cost_usd {said}", ("max_cost_usd", said))
    return asked | {"pair_cost_usd": pair}
