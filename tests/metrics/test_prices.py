"""What models cost: the table that everybody reads is what the pinned litellm has."""

import pytest

from steelyard.prices import price_of
from steelyard_local.prices import FILE, listed, text


def test_the_table_is_what_the_pinned_library_lists() -> None:
    assert FILE.read_text() == text(listed()), "run make prices"


@pytest.mark.parametrize(
    "model",
    [
        "gpt-5.4-mini",
        "openai/gpt-5.4-mini",
        "claude-haiku-4-5",
        "gemini/gemini-3-flash-preview",
        "vertex_ai/gemini-2.5-pro",
    ],
)
def test_a_model_is_priced_with_and_without_its_vendors_prefix(model: str) -> None:
    price = price_of(model)
    assert price is not None and 0 < price.cached <= price.read < price.written


def test_what_is_read_again_from_the_cache_is_cheaper() -> None:
    price = price_of("openai/gpt-5.4-mini")
    assert price is not None
    assert price.of(1000, 100) == pytest.approx(1000 * 0.75e-6 + 100 * 4.5e-6)
    assert price.of(1000, 100, 400) == pytest.approx(600 * 0.75e-6 + 400 * 0.075e-6 + 100 * 4.5e-6)


def test_what_nobody_lists_is_unknown_and_rules_are_free() -> None:
    assert price_of("openai/gpt-from-tomorrow") is None and price_of("nobody/knows") is None
    assert price_of("openai/gpt-5.4-mini", "http://127.0.0.1:1/v1") is None
    rules = price_of("heuristic/rules-v1")
    assert rules is not None and rules.of(10**6, 10**6) == 0
