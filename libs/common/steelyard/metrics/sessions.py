"""Session metrics: plain functions of the signals of a session's traces. They have nothing to ask with.

A signal that is missing is skipped and never taken as 0: what nobody could score says nothing about the agent.
Traces come in pages, and what is kept of them is bounded: the worst, the sums, and a number for each of the riskiest.
"""

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Fold(ABC):
    """A session's traces go in once, in their order and in pages of any size; then there is a score. `size` is how many
    traces there are at most."""

    # Who has it is counted, and told as this.
    without: str

    def __init__(self, weights: Mapping[str, float], size: int) -> None:
        self._weights, self._total = weights, 0
        self._counted, self._worst = 0, _Worst(MOST_TOLD)
        self._others: list[Signals] = []
        self._others_count = 0

    def add(self, traces: Sequence[Signals]) -> None:
        for trace in traces:
            self._total += 1
            if (known := trace.risks()) and not self._count(trace, known):
                self._others_count += 1
                if len(self._others) < MOST_TOLD:
                    self._others.append(trace)

    @abstractmethod
    def _count(self, trace: Signals, risks: Mapping[str, float]) -> bool:
        """False for a trace that has no part in the score."""

    @abstractmethod
    def score(self) -> Score: ...

    def _told(self, worst: "Sequence[_Bad]", aggregation: Mapping[str, Any]) -> dict[str, Any]:
        """The contract's fields. The traces that counted come first, the worst of them first: of very many, those are told."""
        shown = [(bad.trace, bad.told) for bad in worst] + [(trace, {}) for trace in self._others]
        known = self._counted + self._others_count
        told: dict[str, Any] = {
            "total_traces_in_session": self._total,
            "traces_evaluated": self._counted,
            "signal_weights": dict(self._weights),
            "per_trace_signals": {
                trace.trace_id: {RISKS[name]: risk for name, risk in trace.risks().items()} | told
                for trace, told in shown[:MOST_TOLD]
            },
            "aggregation": dict(aggregation),
        }
        if known > MOST_TOLD:
            told["per_trace_signals_cut"] = f"the worst {MOST_TOLD} of {known} traces are told"
        return told

    def _nothing(self) -> str:
        return f"No trace of the session has {self.without}." if self._total else "The session has no traces."


class _Bad(NamedTuple):
    """A trace that counted, by how bad it is; of equals the earlier one is the worse."""

    badness: float
    place: int
    trace: Signals
    told: dict[str, float]


class _Worst:
    """The worst `most` of all that were added: a heap, the least bad on top."""

    def __init__(self, most: int) -> None:
        self._most, self._heap = most, list[_Bad]()

    def add(self, bad: _Bad) -> None:
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, bad)
        elif bad > self._heap[0]:
            heapq.heapreplace(self._heap, bad)

    def sorted(self) -> list[_Bad]:
        return sorted(self._heap, reverse=True)


@dataclass(frozen=True)
class SessionMetric:
    """`needs` are the signals of which a trace must have one to count at all."""

    name: str
    description: str
    fold: Callable[[Mapping[str, float], int], Fold]
    needs: tuple[str, ...]
    category: str = "session"
    threshold: float = 0.5
    version: str = "1"


def weights_of(given: Mapping[str, float] | None) -> dict[str, float]:
    """What was given over the defaults: who names one weight keeps the others."""
    return {name: float((given or {}).get(name, default)) for name, default in WEIGHTS.items()}


class AgentReliability(Fold):
    """Worst case: what the riskiest traces of the session risk, by their riskiest signal."""

    without = "a signal"

    def __init__(self, weights: Mapping[str, float], size: int) -> None:
        super().__init__(weights, size)
        self._flagged, self._most = 0, _riskiest_part(size)
        self._riskiest: list[float] = []  # a heap of as many as can decide the score, the least risky on top

    def _count(self, trace: Signals, risks: Mapping[str, float]) -> bool:
        risk = max(self._weights[name] * risk for name, risk in risks.items())
        self._counted += 1
        self._flagged += risk > FLAGGED
        self._worst.add(_Bad(risk, -self._counted, trace, {"step_risk": risk}))
        if len(self._riskiest) < self._most:
            heapq.heappush(self._riskiest, risk)
        else:
            heapq.heappushpop(self._riskiest, risk)
        return True

    def score(self) -> Score:
        worst = self._worst.sorted()
        if not worst:
            nothing = self._told([], RELIABILITY) | {"raw_risk": 0.0, "flagged_traces": [], "flagged_count": 0}
            return Score(1.0, self._nothing(), nothing)
        k = _riskiest_part(self._counted)
        mean_top, highest = math.fsum(heapq.nlargest(k, self._riskiest)) / k, worst[0]
        raw = (1 - ENSEMBLE) * mean_top + ENSEMBLE * highest.badness
        aggregation = RELIABILITY | {"mean_top_k_risk": mean_top, "max_risk": highest.badness, "k": k}
        told = self._told(worst, aggregation) | {"raw_risk": raw, "worst_trace": highest.trace.trace_id}
        told |= {"flagged_traces": [bad.trace.trace_id for bad in worst if bad.badness > FLAGGED]}
        told |= {"flagged_count": self._flagged}
        reason = (
            f"{self._flagged} of {self._counted} traces are risky (above {FLAGGED}); the riskiest has "
            f"{highest.badness:.2f}, by its {_riskiest(highest.trace, self._weights)}."
        )
        return Score(_clamp(1 - raw), reason, told)


class AgentConsistency(Fold):
    """Stability: how unsure the traces are, and the more so where their other signals are bad too."""

    without = "a confidence signal"

    def __init__(self, weights: Mapping[str, float], size: int) -> None:
        super().__init__(weights, size)
        self._squares = _ExactSum()

    def _count(self, trace: Signals, risks: Mapping[str, float]) -> bool:
        if "confidence" not in risks:
            return False
        penalty = math.fsum(self._weights[n] * r for n, r in risks.items() if n != "confidence")
        unsure = (1 + penalty) * self._weights["confidence"] * risks["confidence"]
        self._counted += 1
        self._squares.add(unsure * unsure)
        told = {"situational_penalty": penalty, "weighted_uncertainty": unsure}
        self._worst.add(_Bad(unsure, -self._counted, trace, told))
        return True

    def score(self) -> Score:
        worst = self._worst.sorted()
        if not worst:
            return Score(1.0, self._nothing(), self._told([], CONSISTENCY) | {"raw_instability": 0.0})
        rms = math.sqrt(self._squares.total() / self._counted)
        told = self._told(worst, CONSISTENCY | {"rms_value": rms})
        told |= {"raw_instability": rms, "worst_trace": worst[0].trace.trace_id}
        reason = (
            f"The weighted uncertainty of {self._counted} traces is {rms:.2f} (root of its mean square); the most unsure "
            f"has {worst[0].badness:.2f}."
        )
        return Score(_clamp(1 - rms), reason, told)


class _ExactSum:
    """Whatever the pages were, the sum is the same: as `math.fsum`, by parts that do not overlap (Shewchuk)."""

    def __init__(self) -> None:
        self._parts: list[float] = []

    def add(self, x: float) -> None:
        kept = 0
        for y in self._parts:
            if abs(x) < abs(y):
                x, y = y, x
            high = x + y
            if low := y - (high - x):
                self._parts[kept] = low
                kept += 1
            x = high
        self._parts[kept:] = [x]

    def total(self) -> float:
        return math.fsum(self._parts)


RELIABILITY: dict[str, Any] = {
    "method": "max_compose_top_k",
    "top_k_percentile": TOP,
    "ensemble_weight": ENSEMBLE,
    "mean_top_k_risk": 0.0,
    "max_risk": 0.0,
}
CONSISTENCY: dict[str, Any] = {"method": "weighted_rms", "rms_value": 0.0}


def _riskiest_part(traces: int) -> int:
    return max(1, math.ceil(traces * TOP))


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
            AgentReliability,
            SIGNALS,
        ),
        SessionMetric(
            "agent_consistency",
            "How steady is the session? Uncertainty of its traces, the heavier the worse their other signals are.",
            AgentConsistency,
            ("confidence",),
        ),
    )
}
