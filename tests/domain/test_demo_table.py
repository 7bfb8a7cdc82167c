"""What the terminal shows of a run, and the traces that `make demo` sends."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from steelyard.traces import Trace
from steelyard_local.demo import about_judge, judge_of, rows_of, sessions_of
from steelyard_local.demo_traces import TAG, demo_traces
from steelyard_local.screen import Mark, Paint, Row, SessionRow, bar, eta, sessions_table, table, unscored, whys

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
METRICS = ["task_completion", "coherence"]


def a_row(session: str, name: str, *values: float | None, at: str = "2026-11-21T10:00:00") -> Row:
    marks = {m: Mark(v, f"{name} had its reasons") for m, v in zip(METRICS, values, strict=True)}
    return Row(session, name, at, marks)


def test_a_table_is_sorted_by_session_and_then_by_time() -> None:
    later, sooner = a_row("s-1", "later", 1.0, 1.0, at="2026-11-21T11:00:00"), a_row("s-1", "sooner", 1.0, 1.0)
    lines = table([a_row("s-2", "other", 1.0, 1.0), later, sooner], METRICS).splitlines()[3:]
    assert [line.split()[:2] for line in lines] == [["s-1", "sooner"], ["later", "1.00"], ["s-2", "other"]]


def test_a_bad_score_is_marked_and_a_missing_one_is_not_a_zero() -> None:
    line = table([a_row("s", "agent", 0.12, None)], METRICS).splitlines()[-1]
    assert "✗ 0.12" in line and line.endswith("–") and "0.00" not in line


def test_a_narrow_terminal_cuts_names_and_never_scores() -> None:
    row = a_row("a-session-with-a-long-name", "an-agent-with-an-even-longer-name", 0.12, 0.99)
    lines = table([row], METRICS, width=60).splitlines()
    assert all(len(line) <= 60 for line in lines) and "…" in lines[-1]
    assert "✗ 0.12" in lines[-1] and "0.99" in lines[-1]


def test_colours_change_nothing_but_the_colour() -> None:
    row = a_row("s", "agent", 0.12, 0.9)
    painted = table([row], METRICS, paint=Paint(True))
    for code in ("31;1", "32", "2", "1", "0"):
        painted = painted.replace(f"\x1b[{code}m", "")
    assert painted == table([row], METRICS)


def test_the_worst_trace_is_explained_first_and_good_ones_are_not() -> None:
    said = whys([a_row("s", "fine", 0.9, 0.8), a_row("s", "poor", 0.3, 0.9), a_row("s", "worst", 0.4, 0.1)])
    assert "fine" not in said
    assert said.index("worst had its reasons") < said.index("poor had its reasons")


def test_only_a_few_are_explained_and_the_rest_are_counted() -> None:
    assert "and 3 more" in whys([a_row("s", f"agent-{n}", 0.1, 0.9) for n in range(9)], most=6)


def test_a_reason_cannot_steer_the_terminal() -> None:
    row = Row("s", "agent", "", {"coherence": Mark(0.1, "look \x1b[2J\x07 here")})
    assert "\x1b" not in whys([row]) and "\x07" not in whys([row])


def test_a_pair_without_a_score_says_why() -> None:
    assert "agent had its reasons" in unscored([a_row("s", "agent", 0.9, None)])
    assert unscored([a_row("s", "agent", 0.9, 0.9)]) == ""


def test_the_bar_counts_and_guesses_the_rest_by_the_pace_so_far() -> None:
    assert bar(0, 18, 2.0).endswith("0/18 traces  ETA …")
    assert bar(6, 18, 4.0).endswith("6/18 traces  ETA 8 s")
    assert bar(18, 18, 6.0, failed=2).endswith("18/18 traces, 2 not scored  in 6.0 s")
    assert eta(1, 100, 10.0) == "ETA 16 min 30 s"


def test_the_bar_fits_the_line_it_redraws() -> None:
    for width in (20, 40, 60, 200):
        assert len(bar(7, 18, 3.0, 1, width)) <= width


def test_a_failed_pair_has_no_value_whatever_the_judge_wrote() -> None:
    trace = {"trace_id": "t", "session_id": "s", "name": "agent", "started_at": "2026"}
    failed = {"trace_id": "t", "name": "coherence", "value": None, "status": "FAILED", "reason": "too large"}
    passed = failed | {"name": "confidence", "value": "0.6", "status": "SUCCESS", "metadata": {"threshold": 0.7}}
    (row,) = rows_of([trace], [failed, passed])
    assert row.marks["coherence"] == Mark(None, "too large")
    assert row.marks["confidence"].bad


def test_the_judge_is_named_with_the_reason_for_it() -> None:
    keyed = {"ANTHROPIC_API_KEY": "k"}
    assert "no key is set" in about_judge(judge_of({}), {})
    assert about_judge(judge_of(keyed), keyed) == "anthropic/claude-haiku-4-5, because ANTHROPIC_API_KEY is set"
    asked = {"JUDGE_MODEL": "openai/stub", "JUDGE_BASE_URL": "http://127.0.0.1:1/v1"}
    assert about_judge(judge_of(asked), asked) == "openai/stub, as JUDGE_MODEL says"


def test_the_demo_traces_are_whole_recent_and_new_each_time() -> None:
    told = demo_traces(NOW)
    traces = [Trace.model_validate(t | {"project_id": uuid4()}) for t in told]
    assert len(traces) >= 14 and len({t.session_id for t in traces}) >= 4
    assert all(timedelta(0) < NOW - t.started_at < timedelta(hours=2) and TAG in t.tags for t in traces)
    assert not {t.trace_id for t in traces} & {Trace.model_validate(t | {"project_id": uuid4()}).trace_id
                                              for t in demo_traces(NOW)}  # fmt: skip


def test_every_span_of_a_demo_trace_lies_inside_its_parent() -> None:
    for told in demo_traces(NOW):
        spans = {span["span_id"]: span for span in told["spans"]}
        roots = [span for span in spans.values() if span["parent_span_id"] is None]
        assert len(roots) == 1 and len(spans) == len(told["spans"])
        for span in spans.values():
            outer = spans.get(span["parent_span_id"], told)
            assert outer["started_at"] <= span["started_at"] <= span["ended_at"] <= outer["ended_at"]


EIGHT = [
    "task_completion", "tool_correctness", "argument_correctness", "step_efficiency", "confidence", "plan_adherence",
    "plan_quality", "coherence",
]  # fmt: skip


def test_eight_metrics_have_room_beside_names_on_an_ordinary_terminal() -> None:
    marks = {m: Mark(0.75) for m in EIGHT}
    for width in (100, 120, 140):
        lines = table([Row("trip-lisbon", "travel-agent", "", marks)], EIGHT, width=width).splitlines()
        assert all(len(line) <= width for line in lines)
        assert lines[-1].count("0.75") == 8 and lines[0].split()[0] == "task"
    assert "correctness" in table([Row("s", "a", "", marks)], EIGHT, width=140)


def test_sessions_are_told_worst_first_with_the_trace_that_drags_each_one_down() -> None:
    def score(session: str, name: str, value: str | None, **told: object) -> dict[str, object]:
        return {"session_id": session, "name": name, "value": value, "reason": "r", "metadata": told}

    signals = {"t-1": {"confidence_risk": 0.1, "tool_risk": 0.8, "step_risk": 0.64}}
    found = [
        score("good", "agent_reliability", "0.9", worst_trace="t-2", total_traces_in_session=3),
        score(
            "poor", "agent_reliability", "0.36", worst_trace="t-1", per_trace_signals=signals, total_traces_in_session=4
        ),
        score("poor", "agent_consistency", "0.7", worst_trace="t-2"),
        score("lost", "agent_reliability", None, total_traces_in_session=1),
    ]
    lines = sessions_table(
        sessions_of(found, {"t-1": "bookings", "t-2": "x"}), ["agent_reliability", "agent_consistency"]
    )
    assert [line.split()[0] for line in lines.splitlines()[3:]] == ["lost", "poor", "good"]
    poor = lines.splitlines()[4]
    assert poor.split()[:2] == ["poor", "4"] and "bookings: tool_correctness 0.20" in poor and "✗ 0.36" in poor
    assert "\x1b" not in sessions_table([SessionRow("\x1b[2J", 1, {})], [])
