"""The catalogue of metrics, written out: what is not in it is not offered."""

from steelyard.metrics import coherence, confidence, task_completion
from steelyard.metrics.judging import Metric

CATALOGUE: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "task_completion",
            "Did the agent do what its user wanted? A judge extracts the task and the factual outcome and compares them.",
            task_completion.VERSION,
            task_completion.task_completion,
        ),
        Metric(
            "confidence",
            "Is the run decisive, appropriate and consistent? Hedging, contradictions and repeated calls lower it.",
            confidence.VERSION,
            confidence.confidence,
        ),
        Metric(
            "coherence",
            "Is the answer about what was asked? Compares embeddings of input and output: it judges topic, not truth; "
            "a short right answer can look incoherent.",
            coherence.VERSION,
            coherence.coherence,
        ),
    )
}
