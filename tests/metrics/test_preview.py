"""What the API shows of a metric's prompts: the real ones, of a sample, so they cannot go stale."""

import pytest

from steelyard.metrics import CATALOGUE
from steelyard.metrics.judging import Judging, Metric, NotScored, Question, Reply
from steelyard.metrics.preview import previews


class Unruled(Reply):
    """A reply that no rules know how to give."""


@pytest.mark.parametrize(
    ("metric", "stages"),
    [
        ("task_completion", ["extract", "compare"]),
        ("tool_correctness", ["tools"]),
        ("argument_correctness", ["arguments"]),
        ("step_efficiency", ["extract", "steps"]),
        ("confidence", ["grade"]),
        ("plan_adherence", ["extract", "adherence"]),
        ("plan_quality", ["extract", "quality"]),
        ("coherence", []),
    ],
)
def test_every_stage_is_shown_in_the_order_it_is_asked(metric: str, stages: list[str]) -> None:
    assert [stage for stage, _ in previews(CATALOGUE[metric])] == stages


@pytest.mark.parametrize("metric", [name for name in CATALOGUE if name != "coherence"])
def test_a_preview_is_system_record_and_rubric_of_a_sample(metric: str) -> None:
    for _, prompt in previews(CATALOGUE[metric]):
        assert prompt.startswith("You grade recorded runs of AI agents.")
        assert "[0] input: what the user asked\n[0] output: what the agent answered\n[1] LLM" in prompt
        assert '"nonce"' in prompt.splitlines()[-1]


def test_the_second_stage_shows_what_the_first_one_found() -> None:
    _, (_, compare) = previews(CATALOGUE["task_completion"])
    assert "Task, as extracted: what the user asked" in compare


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("tool_correctness", '[2] calls a tool({"an":"argument"})'),
        ("argument_correctness", "1 in all"),
        ("plan_quality", "Plan, as extracted:\n1. what the agent does first\n2. what it does then"),
    ],
)
def test_the_last_stage_shows_what_it_is_about(metric: str, shown: str) -> None:
    assert shown in previews(CATALOGUE[metric])[-1][1]


def test_the_same_metric_is_shown_the_same_way_twice() -> None:
    assert all(previews(m) == previews(m) for m in CATALOGUE.values())


def test_a_metric_without_rules_is_still_shown_up_to_the_answer_it_needs() -> None:
    def judging(case: object) -> Judging:
        reply = yield Question("guess", "system", "prompt", Unruled, case)  # type: ignore[arg-type]
        return NotScored(f"nothing to say about {reply}")

    assert previews(Metric("m", "d", "1", judging)) == [("guess", "system\n\nprompt")]
