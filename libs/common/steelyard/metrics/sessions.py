"""Session metrics: plain functions of the signals of a session's traces. They have nothing to ask with.

A signal that is missing is skipped and never taken as 0: what nobody could score says nothing about the agent.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steelyard.metrics.judging import Score

WEIGHTS: Mapping[str, float] = {"confidence": 1.0, "loop_detection": 1.0, "tool_correctness": 0.8, "coherence": 1.0}
SIGNALS = tuple(WEIGHTS)
RISKS = {
    "confidence": "confidence_risk",
    "loop_detection": "loop_risk",
    "tool_correctness": "tool_risk",
    "coherence": "coherence_risk",
}
HEAVIEST = 1_000_000.0
TOP, ENSEMBLE, FLAGGED = 0.15, 0.1, 0.5
# A session of five thousand traces would make a score of a megabyte: the traces that decide it are told.
MOST_TOLD = 500


@dataclass(frozen=True)
class Signals:
    """What is known of one trace: its signals by name, each in [0, 1], without those that are missing."""

    trace_id: str
    values: Mapping[str, float]

    def risks(self) -> dict[str, float]:
        return {name: 1.0 - self.values[name] for name in SIGNALS if name in self.values}


Fold = Callable[[Sequence[Signals], Mapping[str, float]], Score]


@dataclass(frozen=True)
class SessionMetric:
    """`needs` are the signals of which a trace must have one to count at all."""

    name: str
    description: str
    fold: Fold
    needs: tuple[str, ...]
    category: str = "session"
    threshold: float = 0.5
    version: str = "1"


def weights_of(given: Mapping[str, float] | None) -> dict[str, float]:
    """What was given over the defaults: who names one weight keeps the others."""
    return {name: float((given or {}).get(name, default)) for name, default in WEIGHTS.items()}


def agent_reliability(traces: Sequence[Signals], weights: Mapping[str, float]) -> Score:
    """Worst case: what the riskiest traces of the session risk, by their riskiest signal."""
    risks = [(t, max(weights[name] * risk for name, risk in known.items())) for t in traces if (known := t.risks())]
    if not risks:
        told = _told(traces, weights, [], {}, RELIABILITY) | {"raw_risk": 0.0, "flagged_traces": [], "flagged_count": 0}
        return Score(1.0, _nothing(traces, "a signal"), told)
    highest = sorted((risk for _, risk in risks), reverse=True)
    k = max(1, math.ceil(len(risks) * TOP))
    mean_top = math.fsum(highest[:k]) / k
    raw = (1 - ENSEMBLE) * mean_top + ENSEMBLE * highest[0]
    step = {t.trace_id: risk for t, risk in risks}
    flagged = [t.trace_id for t, risk in sorted(risks, key=lambda r: -r[1]) if risk > FLAGGED]
    worst = max(risks, key=lambda r: r[1])[0]
    aggregation = RELIABILITY | {"mean_top_k_risk": mean_top, "max_risk": highest[0], "k": k}
    order = sorted(step, key=lambda trace: -step[trace])
    told = _told(traces, weights, order, {"step_risk": step}, aggregation)
    told |= {"raw_risk": raw, "flagged_traces": flagged[:MOST_TOLD], "flagged_count": len(flagged)}
    told |= {"traces_evaluated": len(risks), "worst_trace": worst.trace_id}
    reason = (
        f"{len(flagged)} of {len(risks)} traces are risky (above {FLAGGED}); the riskiest has {highest[0]:.2f}, by its "
        f"{_riskiest(worst, weights)}."
    )
    return Score(_clamp(1 - raw), reason, told)


def agent_consistency(traces: Sequence[Signals], weights: Mapping[str, float]) -> Score:
    """Stability: how unsure the traces are, and the more so where their other signals are bad too."""
    counted = [t for t in traces if "confidence" in t.values]
    if not counted:
        told = _told(traces, weights, [], {}, CONSISTENCY) | {"raw_instability": 0.0}
        return Score(1.0, _nothing(traces, "a confidence signal"), told)
    penalties = {
        t.trace_id: math.fsum(weights[n] * r for n, r in t.risks().items() if n != "confidence") for t in counted
    }
    unsure = {
        t.trace_id: (1 + penalties[t.trace_id]) * weights["confidence"] * t.risks()["confidence"] for t in counted
    }
    rms = math.sqrt(math.fsum(u * u for u in unsure.values()) / len(counted))
    worst = max(unsure, key=lambda trace: unsure[trace])
    order = sorted(unsure, key=lambda trace: -unsure[trace])
    each = {"situational_penalty": penalties, "weighted_uncertainty": unsure}
    told = _told(traces, weights, order, each, CONSISTENCY | {"rms_value": rms})
    told |= {"raw_instability": rms, "traces_evaluated": len(counted), "worst_trace": worst}
    reason = (
        f"The weighted uncertainty of {len(counted)} traces is {rms:.2f} (root of its mean square); the most unsure has "
        f"{unsure[worst]:.2f}."
    )
    return Score(_clamp(1 - rms), reason, told)


RELIABILITY: dict[str, Any] = {
    "method": "max_compose_top_k",
    "top_k_percentile": TOP,
    "ensemble_weight": ENSEMBLE,
    "mean_top_k_risk": 0.0,
    "max_risk": 0.0,
}
CONSISTENCY: dict[str, Any] = {"method": "weighted_rms", "rms_value": 0.0}


def _told(
    traces: Sequence[Signals],
    weights: Mapping[str, float],
    order: Sequence[str],
    each: Mapping[str, Mapping[str, float]],
    aggregation: Mapping[str, Any],
) -> dict[str, Any]:
    """The contract's fields. `order` is the traces that counted, the worst first: of very many, those are told."""
    by_id = {t.trace_id: t for t in traces}
    counted = set(order)
    others = [t.trace_id for t in traces if t.trace_id not in counted and t.risks()]
    known = [by_id[trace] for trace in (*order, *others)]
    shown = known[:MOST_TOLD]
    told: dict[str, Any] = {
        "total_traces_in_session": len(traces),
        "traces_evaluated": 0,
        "signal_weights": dict(weights),
        "per_trace_signals": {
            t.trace_id: {RISKS[name]: risk for name, risk in t.risks().items()}
            | {name: values[t.trace_id] for name, values in each.items() if t.trace_id in values}
            for t in shown
        },
        "aggregation": dict(aggregation),
    }
    if len(known) > len(shown):
        told["per_trace_signals_cut"] = f"the worst {len(shown)} of {len(known)} traces are told"
    return told


def _nothing(traces: Sequence[Signals], what: str) -> str:
    return f"No trace of the session has {what}." if traces else "The session has no traces."


def _riskiest(trace: Signals, weights: Mapping[str, float]) -> str:
    risks = trace.risks()
    return max(risks, key=lambda name: weights[name] * risks[name])


def _clamp(value: float) -> float:
    return min(1.0, max(0.0, value))


SESSION_METRICS: dict[str, SessionMetric] = {
    m.name: m
    for m in (
        SessionMetric(
            "agent_reliability",
            "How bad is the worst of the session? The riskiest 15 % of its traces, each by its riskiest signal.",
            agent_reliability,
            SIGNALS,
        ),
        SessionMetric(
            "agent_consistency",
            "How steady is the session? Uncertainty of its traces, the heavier the worse their other signals are.",
            agent_consistency,
            ("confidence",),
        ),
    )
}
