"""Session metrics against a second reading of their definition, and at each of its edges."""

import gc
import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from random import Random
from types import FunctionType, ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.metrics import CATALOGUE, SESSION_SIGNALS, SIGNAL_METRICS, why_no_session_metric, why_unknown
from steelyard.metrics.judging import Score
from steelyard.metrics.sessions import (
    MOST_TOLD,
    SESSION_METRICS,
    WEIGHTS,
    Signals,
    weights_of,
)

Session = list[dict[str, float]]
EACH = ("confidence", "loop_detection", "tool_correctness", "coherence")
RISK = {
    "confidence": "confidence_risk",
    "loop_detection": "loop_risk",
    "tool_correctness": "tool_risk",
    "coherence": "coherence_risk",
}
BOTH = tuple(SESSION_METRICS)
SIGNAL = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1)
TRACE = st.dictionaries(st.sampled_from(EACH), SIGNAL)
SESSIONS = st.lists(TRACE, max_size=25)
WEIGHT = st.sampled_from([0.0, 1.0, 1e6]) | st.floats(0, 10) | st.floats(0, 1e6)
GIVEN = st.none() | st.dictionaries(st.sampled_from(EACH), WEIGHT)


def named(session: Sequence[Mapping[str, float]]) -> list[Signals]:
    return [Signals(f"t{n}", values) for n, values in enumerate(session)]


def folded(metric: str, traces: Sequence[Signals], weights: Mapping[str, float], page: int = 1000) -> Score:
    fold = SESSION_METRICS[metric].fold(weights, len(traces))
    for first in range(0, len(traces), page):
        fold.add(traces[first : first + page])
    return fold.score()


def agent_reliability(traces: Sequence[Signals], weights: Mapping[str, float]) -> Score:
    return folded("agent_reliability", traces, weights)


def agent_consistency(traces: Sequence[Signals], weights: Mapping[str, float]) -> Score:
    return folded("agent_consistency", traces, weights)


def merged(given: Mapping[str, float] | None) -> dict[str, float]:
    usual = {"confidence": 1.0, "loop_detection": 1.0, "tool_correctness": 0.8, "coherence": 1.0}
    for name in given or {}:
        usual[name] = (given or {})[name]
    return usual


def naive_step_risks(session: Session, weights: Mapping[str, float]) -> dict[str, float]:
    risks = dict[str, float]()
    for n, trace in enumerate(session):
        worst = None
        for name in EACH:
            if name in trace:
                risk = weights[name] * (1 - trace[name])
                worst = risk if worst is None or risk > worst else worst
        if worst is not None:
            risks[f"t{n}"] = worst
    return risks


def naive_raw_risk(risks: Sequence[float]) -> float:
    k = 1
    while 100 * k < 15 * len(risks):
        k += 1
    top = sorted(risks)[-k:]
    return 0.9 * (sum(top) / k) + 0.1 * max(risks)


def naive_uncertainty(session: Session, weights: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    found = dict[str, tuple[float, float]]()
    for n, trace in enumerate(session):
        if "confidence" in trace:
            penalty = 0.0
            for name in ("loop_detection", "tool_correctness", "coherence"):
                if name in trace:
                    penalty += weights[name] * (1 - trace[name])
            found[f"t{n}"] = penalty, (1 + penalty) * weights["confidence"] * (1 - trace["confidence"])
    return found


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def each_of(score: Score, what: str) -> dict[str, float]:
    return {t: told[what] for t, told in score.metadata["per_trace_signals"].items() if what in told}


def between_0_and_1(value: float) -> float:
    return 0.0 if value < 0 else 1.0 if value > 1 else value


@given(SESSIONS, GIVEN)
def test_reliability_is_what_its_definition_says(session: Session, given_weights: dict[str, float] | None) -> None:
    weights = merged(given_weights)
    said = agent_reliability(named(session), weights_of(given_weights))
    risks = naive_step_risks(session, weights)
    told = said.metadata
    assert told["traces_evaluated"] == len(risks) and told["total_traces_in_session"] == len(session)
    if not risks:
        assert said.value == 1.0
        return
    raw = naive_raw_risk(list(risks.values()))
    assert said.value == near(between_0_and_1(1 - raw)) and told["raw_risk"] == near(raw)
    assert each_of(said, "step_risk") == {trace: near(risk) for trace, risk in risks.items()}
    assert sorted(told["flagged_traces"]) == sorted(trace for trace, risk in risks.items() if risk > 0.5)
    assert risks[told["worst_trace"]] == near(max(risks.values()))
    assert told["aggregation"]["max_risk"] == near(max(risks.values()))


@given(SESSIONS, GIVEN)
def test_consistency_is_what_its_definition_says(session: Session, given_weights: dict[str, float] | None) -> None:
    said = agent_consistency(named(session), weights_of(given_weights))
    unsure = naive_uncertainty(session, merged(given_weights))
    told = said.metadata
    assert told["traces_evaluated"] == len(unsure) and told["total_traces_in_session"] == len(session)
    if not unsure:
        assert said.value == 1.0
        return
    squares = [u * u for _, u in unsure.values()]
    rms = math.sqrt(sum(squares) / len(squares))
    assert said.value == near(between_0_and_1(1 - rms))
    assert told["raw_instability"] == told["aggregation"]["rms_value"] == near(rms)
    assert each_of(said, "situational_penalty") == {trace: near(p) for trace, (p, _) in unsure.items()}
    assert each_of(said, "weighted_uncertainty") == {trace: near(u) for trace, (_, u) in unsure.items()}
    assert unsure[told["worst_trace"]][1] == near(max(u for _, u in unsure.values()))


@pytest.mark.parametrize("metric", BOTH)
@given(session=SESSIONS, weights=GIVEN, chance=st.randoms(use_true_random=False))
def test_the_order_of_traces_says_nothing(
    metric: str, session: Session, weights: dict[str, float] | None, chance: Random
) -> None:
    whole, traces = weights_of(weights), named(session)
    shuffled = [*traces]
    chance.shuffle(shuffled)
    one, other = folded(metric, traces, whole), folded(metric, shuffled, whole)
    assert other.value == near(one.value) and 0 <= one.value <= 1 and one.reason
    assert other.metadata["per_trace_signals"] == one.metadata["per_trace_signals"]


@pytest.mark.parametrize("metric", BOTH)
@given(session=SESSIONS, weights=GIVEN, page=st.integers(1, 25))
def test_how_a_session_is_cut_into_pages_says_nothing(
    metric: str, session: Session, weights: dict[str, float] | None, page: int
) -> None:
    traces, whole = named(session), weights_of(weights)
    assert folded(metric, traces, whole, page) == folded(metric, traces, whole)


@pytest.mark.parametrize("metric", BOTH)
def test_of_a_session_of_any_size_little_is_kept_in_memory(metric: str) -> None:
    """Of each trace at most a number, of the worst all that is told."""
    fold, trace = SESSION_METRICS[metric].fold(weights_of(None), 20_000), dict.fromkeys(EACH, 0.5)
    for first in range(0, 20_000, 1000):
        fold.add([Signals(f"t{n}", trace) for n in range(first, first + 1000)])
    kept = gc_count(fold)
    assert kept < 30 * MOST_TOLD, kept
    assert fold.score().metadata["traces_evaluated"] == 20_000


def gc_count(of: object) -> int:
    """Containers that live because of it."""
    seen, waiting = set[int](), [of]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType):
            seen.add(id(one))
            waiting += [r for r in gc.get_referents(one) if gc.is_tracked(r)]
    return len(seen)


@pytest.mark.parametrize("metric", BOTH)
@given(session=SESSIONS, weights=GIVEN)
def test_what_is_told_of_each_trace_is_what_was_known(
    metric: str, session: Session, weights: dict[str, float] | None
) -> None:
    said = folded(metric, named(session), weights_of(weights)).metadata
    assert said["signal_weights"] == merged(weights)
    told = said["per_trace_signals"]
    assert set(told) == {f"t{n}" for n, trace in enumerate(session) if trace}
    for n, trace in enumerate(session):
        for name in EACH:
            if trace:
                known = {RISK[name]: near(1 - trace[name])} if name in trace else {}
                assert {k: v for k, v in told[f"t{n}"].items() if k == RISK[name]} == known


@pytest.mark.parametrize("metric", BOTH)
@pytest.mark.parametrize(
    ("session", "said"), [([], "no traces"), ([{}, {}], "No trace"), ([{"luck": 0.0}], "No trace")]
)
def test_without_a_signal_nothing_speaks_against_a_session(metric: str, session: Session, said: str) -> None:
    score = folded(metric, named(session), weights_of(None))
    assert score.value == 1.0 and said in score.reason
    assert score.metadata["traces_evaluated"] == 0 and score.metadata["per_trace_signals"] == {}
    assert set(score.metadata) >= FIELDS | ONLY[metric], (
        "a reader finds every field, also where there is nothing to say"
    )


def test_without_confidence_nothing_is_known_of_consistency() -> None:
    session: Session = [{"coherence": 0.0, "loop_detection": 0.0}, {"tool_correctness": 0.1}]
    score = agent_consistency(named(session), weights_of(None))
    assert score.value == 1.0 and "confidence" in score.reason and score.metadata["traces_evaluated"] == 0
    assert set(score.metadata["per_trace_signals"]) == {"t0", "t1"}
    assert agent_reliability(named(session), weights_of(None)).value == 0.0


def test_a_missing_signal_is_not_a_zero() -> None:
    assert agent_reliability([Signals("t", {"coherence": 0.9})], weights_of(None)).value == near(0.9)
    whole = agent_consistency([Signals("t", {"confidence": 0.5})], weights_of(None))
    assert whole.value == near(0.5) and each_of(whole, "situational_penalty") == {"t": 0.0}


def test_one_trace_is_computed_as_any_other() -> None:
    values = {"confidence": 0.5, "loop_detection": 0.75, "tool_correctness": 0.5, "coherence": 1.0}
    reliability = agent_reliability([Signals("t", values)], weights_of(None))
    assert reliability.value == near(0.5)
    # (1 + 0.25 + 0.8 x 0.5) x 0.5
    assert agent_consistency([Signals("t", values)], weights_of(None)).value == near(1 - 0.825)


@pytest.mark.parametrize(
    ("traces", "k"),
    [(1, 1), (6, 1), (7, 2), (13, 2), (14, 3), (19, 3), (20, 3), (21, 4), (40, 6), (100, 15), (101, 16)],
)
def test_the_riskiest_of_a_session_are_fifteen_percent_rounded_up(traces: int, k: int) -> None:
    """100 x 0.15 is 15 and no floating-point hair above it."""
    session: Session = [{"confidence": 0.0}] * (k - 1) + [{"confidence": 0.4}] + [{"confidence": 1.0}] * (traces - k)
    told = agent_reliability(named(session), weights_of(None)).metadata
    assert told["aggregation"]["mean_top_k_risk"] == near((k - 1 + 0.6) / k)


@given(st.integers(1, 3000))
def test_rounding_up_is_exact_for_sessions_of_any_size(n: int) -> None:
    """0.15 is no number of a computer's: a hair above it would take one trace more."""
    exact = max(1, math.ceil(Fraction(15, 100) * n))
    told = agent_reliability([Signals(str(t), {"confidence": 1.0}) for t in range(n)], weights_of(None)).metadata
    assert told["aggregation"]["k"] == exact


def test_a_risk_of_exactly_a_half_is_not_flagged() -> None:
    session: Session = [
        {"confidence": 0.5},
        {"tool_correctness": 0.375},  # 0.8 x 0.625
        {"confidence": 0.4999999},
        {"coherence": 0.0},
        {"tool_correctness": 0.0},
    ]
    score = agent_reliability(named(session), weights_of(None))
    assert score.metadata["flagged_traces"] == ["t3", "t4", "t2"], "the riskiest first"
    assert score.metadata["flagged_count"] == 3 and "3 of 5" in score.reason


def test_weights_scale_risks_and_zero_silences_a_signal() -> None:
    session = [Signals("t", {"confidence": 0.9, "coherence": 0.0})]
    assert agent_reliability(session, weights_of({"coherence": 0})).value == near(0.9)
    assert agent_reliability(session, weights_of({"coherence": 0.3})).value == near(0.7)
    assert agent_reliability(session, weights_of({"coherence": 1e6})).value == 0.0
    silenced = agent_reliability(session, weights_of(dict.fromkeys(EACH, 0.0)))
    assert silenced.value == 1.0 and silenced.metadata["traces_evaluated"] == 1
    assert agent_consistency(session, weights_of({"confidence": 0})).value == 1.0
    assert agent_consistency(session, weights_of({"coherence": 1e6})).value == 0.0


def test_who_names_one_weight_keeps_the_others() -> None:
    assert weights_of({"coherence": 3}) == dict(WEIGHTS) | {"coherence": 3.0}
    assert weights_of({}) == weights_of(None) == {
        "confidence": 1.0, "loop_detection": 1.0, "tool_correctness": 0.8, "coherence": 1.0,
    }  # fmt: skip


FIELDS = {"total_traces_in_session", "traces_evaluated", "signal_weights", "per_trace_signals", "aggregation"}
ONLY = {"agent_reliability": {"raw_risk", "flagged_traces"}, "agent_consistency": {"raw_instability"}}
AGGREGATION = {
    "agent_reliability": {"method", "top_k_percentile", "ensemble_weight", "mean_top_k_risk", "max_risk"},
    "agent_consistency": {"method", "rms_value"},
}
EACH_TRACE = {"agent_reliability": {"step_risk"}, "agent_consistency": {"situational_penalty", "weighted_uncertainty"}}


@pytest.mark.parametrize("metric", BOTH)
def test_a_score_explains_itself_in_the_contracts_fields(metric: str) -> None:
    whole = {"confidence": 0.5, "loop_detection": 0.75, "tool_correctness": 0.5, "coherence": 1.0}
    score = folded(metric, [Signals("t", whole)], weights_of(None))
    told = score.metadata
    assert set(told) >= FIELDS | ONLY[metric] and set(told["aggregation"]) >= AGGREGATION[metric]
    assert set(told["per_trace_signals"]["t"]) == {*RISK.values(), *EACH_TRACE[metric]}
    method = {"agent_reliability": "max_compose_top_k", "agent_consistency": "weighted_rms"}[metric]
    assert told["aggregation"]["method"] == method
    if metric == "agent_reliability":
        constants = {"top_k_percentile": 0.15, "ensemble_weight": 0.1, "mean_top_k_risk": 0.5, "max_risk": 0.5}
        assert {k: told["aggregation"][k] for k in constants} == constants
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("metric", BOTH)
def test_of_a_very_long_session_the_worst_traces_are_told(metric: str) -> None:
    session: Session = [{"confidence": n / 2000} for n in range(2000)]
    told = folded(metric, named(session), weights_of(None)).metadata
    assert set(told["per_trace_signals"]) == {f"t{n}" for n in range(MOST_TOLD)} and told["traces_evaluated"] == 2000
    assert f"{MOST_TOLD} of 2000" in told["per_trace_signals_cut"]
    if metric == "agent_reliability":
        assert len(told["flagged_traces"]) == MOST_TOLD and told["flagged_count"] == 1000
    assert len(json.dumps(told)) < 100_000


def test_the_catalogues_know_each_others_names() -> None:
    assert set(SESSION_METRICS) == set(ONLY)
    assert [m.name for m in SIGNAL_METRICS] == list(EACH) and set(EACH) <= {*CATALOGUE, *SESSION_SIGNALS}
    assert "run of sessions" in why_unknown("agent_reliability")
    assert "of traces" in why_no_session_metric("coherence") and "of traces" in why_no_session_metric("loop_detection")
    assert why_no_session_metric("x").endswith("known are agent_reliability, agent_consistency")
