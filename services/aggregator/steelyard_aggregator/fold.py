"""What a session's signals, once none is owed any more, make of it: a score, or why there is none. Pure."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from steelyard.errors import Later
from steelyard.metrics.sessions import SESSION_METRICS, SessionMetric, Signals, weights_of

_SCORES = UUID("1d0f1c4e-6a76-4c58-8f0a-b5d2f0a3c9e7")


@dataclass(frozen=True)
class Signal:
    """A pair of a run of sessions, settled: a value, or the reason why there is none."""

    trace_id: UUID
    name: str
    value: float | None
    reason: str | None
    trace_version: int | None


@dataclass(frozen=True)
class Ended:
    """A session of a run of which nothing is owed any more. Its signals are in the order of its traces."""

    run_id: UUID
    project_id: UUID
    session_id: str
    size: int
    metrics: Sequence[str]
    weights: Mapping[str, float] | None
    snapshot_at: datetime
    signals: Sequence[Signal]


def folded(ended: Ended) -> Iterator[dict[str, Any]]:
    """A row for each metric."""
    traces = list(_traces(ended.signals))
    weights = weights_of(ended.weights)
    for name in ended.metrics:
        metric = SESSION_METRICS.get(name)
        if metric is None:
            raise Later(f"this aggregator does not know the session metric {name} yet", after=5)
        why = _why_not(metric, traces, ended.signals)
        score = metric.fold(traces, weights)
        told = {**score.metadata, **_coverage(ended, metric)}
        told["success"] = why is None and score.value >= metric.threshold
        yield {
            "id": score_id(ended.run_id, ended.session_id, name),
            "project_id": ended.project_id,
            "session_id": ended.session_id,
            "eval_run_id": ended.run_id,
            "name": name,
            "value": None if why else repr(score.value),
            "status": "FAILED" if why else "SUCCESS",
            "reason": why or _said(score.reason, ended.signals),
            "metadata": told,
            "session_version": told["session_version"],
            "traces_seen": ended.size,
            "snapshot_at": ended.snapshot_at.isoformat(),
        }


def score_id(run_id: UUID, session_id: str, metric: str) -> UUID:
    """Derived, so that a redelivery cannot invent a second score."""
    return uuid5(_SCORES, f"{run_id}/{metric}/{session_id}")


def version_of(signals: Sequence[Signal]) -> str:
    """The same for the same traces in the same versions: whether two scores saw the same session is plain to see."""
    seen = {(str(s.trace_id), s.trace_version) for s in signals if s.trace_version is not None}
    return hashlib.blake2b(repr(sorted(seen)).encode(), digest_size=8).hexdigest()


def _traces(signals: Sequence[Signal]) -> Iterator[Signals]:
    by_trace: dict[UUID, dict[str, float]] = {}
    for signal in signals:
        known = by_trace.setdefault(signal.trace_id, {})
        if signal.value is not None:
            known[signal.name] = signal.value
    return (Signals(str(trace), values) for trace, values in by_trace.items())


def _why_not(metric: SessionMetric, traces: Sequence[Signals], signals: Sequence[Signal]) -> str | None:
    """No number is made up: what rests on nothing is not scored."""
    if any(need in trace.values for trace in traces for need in metric.needs):
        return None
    reasons = Counter(s.reason or "no reason" for s in signals if s.value is None and s.name in metric.needs)
    (most, _), *_ = reasons.most_common(1) or [("there are none", 0)]
    what = "signal" if len(metric.needs) > 1 else f"{metric.needs[0]} signal"
    return f"no {what} of the session's {len(traces)} traces could be scored: {most}"[:2000]


def _coverage(ended: Ended, metric: SessionMetric) -> dict[str, Any]:
    missing = Counter(s.name for s in ended.signals if s.value is None)
    reasons = Counter(s.reason or "no reason" for s in ended.signals if s.value is None)
    told: dict[str, Any] = {
        "threshold": metric.threshold,
        "metric_version": metric.version,
        "total_traces_in_session": ended.size,
        "snapshot_at": ended.snapshot_at.isoformat(),
        "session_version": version_of(ended.signals),
        "signals_expected": len(ended.signals),
        "signals_present": len(ended.signals) - missing.total(),
    }
    if missing:
        told["signals_missing"] = dict(sorted(missing.items()))
        told["missing_because"] = dict(reasons.most_common(5))
    return told


def _said(reason: str, signals: Sequence[Signal]) -> str:
    present = sum(s.value is not None for s in signals)
    return reason if present == len(signals) else f"{reason} It rests on {present} of {len(signals)} signals."
