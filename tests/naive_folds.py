"""Both session metrics once more, as plainly as their definition reads: what the stored scores are compared with."""

import math
from collections.abc import Mapping, Sequence

WEIGHTS = {"confidence": 1.0, "loop_detection": 1.0, "tool_correctness": 0.8, "coherence": 1.0}
Values = Mapping[str, float]


def reliability(traces: Sequence[Values], weights: Mapping[str, float]) -> float | None:
    risks = []
    for values in traces:
        each = [weights[signal] * (1 - value) for signal, value in values.items()]
        if each:
            risks.append(max(each))
    if not risks:
        return None
    risks.sort(reverse=True)
    k = max(1, math.ceil(len(risks) * 0.15))
    raw = 0.9 * (sum(risks[:k]) / k) + 0.1 * risks[0]
    return min(1.0, max(0.0, 1 - raw))


def consistency(traces: Sequence[Values], weights: Mapping[str, float]) -> float | None:
    squares = []
    for values in traces:
        if "confidence" not in values:
            continue
        penalty = sum(
            weights[s] * (1 - values[s]) for s in ("loop_detection", "tool_correctness", "coherence") if s in values
        )
        unsure = (1 + penalty) * weights["confidence"] * (1 - values["confidence"])
        squares.append(unsure**2)
    if not squares:
        return None
    return min(1.0, max(0.0, 1 - math.sqrt(sum(squares) / len(squares))))


NAIVE = {"agent_reliability": reliability, "agent_consistency": consistency}
