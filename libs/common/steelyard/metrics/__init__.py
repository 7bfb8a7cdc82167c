"""The catalogue of metrics, written out: what is not in it is not offered."""

from steelyard.metrics import (
    argument_correctness,
    coherence,
    confidence,
    loop_detection,
    plan_adherence,
    plan_quality,
    step_efficiency,
    task_completion,
    tool_correctness,
)
from steelyard.metrics.judging import Metric
from steelyard.metrics.sessions import SESSION_METRICS, SIGNALS

# What a run of traces may ask for.
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
            "tool_correctness",
            "Did the agent call the tools that its task needed, all of them and no others? A judge compares what the "
            "spans show as called with what they show as available.",
            tool_correctness.VERSION,
            tool_correctness.tool_correctness,
        ),
        Metric(
            "argument_correctness",
            "Were the tools called with the right arguments? A judge says yes or no of each call; the score is the "
            "share of yes. No call: 1.0.",
            argument_correctness.VERSION,
            argument_correctness.argument_correctness,
        ),
        Metric(
            "step_efficiency",
            "Did the agent do no more than its task needed? Redundant calls, needless steps and speculation lower it.",
            step_efficiency.VERSION,
            step_efficiency.step_efficiency,
        ),
        Metric(
            "confidence",
            "Is the run decisive, appropriate and consistent? Hedging, contradictions and repeated calls lower it.",
            confidence.VERSION,
            confidence.confidence,
        ),
        Metric(
            "plan_adherence",
            "Did the agent do what it had set out to do? A judge finds the plan, explicit or implied, and compares the "
            "execution with it. No plan: 1.0.",
            plan_adherence.VERSION,
            plan_adherence.plan_adherence,
        ),
        Metric(
            "plan_quality",
            "Was the plan good for the task: complete, ordered, without waste, detailed enough, aligned? Independent of "
            "the execution. No plan: 1.0.",
            plan_quality.VERSION,
            plan_quality.plan_quality,
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
# What means something only beside the traces before it: computed for a session, and refused to a run of traces.
SESSION_SIGNALS: dict[str, Metric] = {
    "loop_detection": Metric(
        "loop_detection",
        "Does the agent say again what it has just said? Compares the output with those of up to three earlier traces "
        "of its session.",
        loop_detection.VERSION,
        loop_detection.loop_detection,
    )
}


# What a run of sessions asks of each trace before it folds.
SIGNAL_METRICS: tuple[Metric, ...] = tuple({**CATALOGUE, **SESSION_SIGNALS}[name] for name in SIGNALS)


def why_unknown(metric: str) -> str:
    """The sentence for a name that a run of traces cannot ask for."""
    if metric in SESSION_METRICS:
        return f"{metric!r} is a metric of sessions: it is asked of a run of sessions"
    if metric in SESSION_SIGNALS:
        return f"{metric!r} is a session signal: it is computed within a session and cannot be asked of a run of traces"
    return f"unknown metric {metric[:100]!r}; known are {', '.join(CATALOGUE)}"


def why_no_session_metric(metric: str) -> str:
    """The sentence for a name that a run of sessions cannot ask for."""
    known = ", ".join(SESSION_METRICS)
    if metric in CATALOGUE or metric in SESSION_SIGNALS:
        return f"{metric!r} is said of traces, not of sessions; known of sessions are {known}"
    return f"unknown metric {metric[:100]!r}; known are {known}"
