"""Arguments against the JSON schema that a trace declares: what is plainly wrong is named, what is unclear is let be."""

from typing import Any

import pytest

from steelyard.metrics.schemas import misfit

BOOK: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "nights": {"type": "integer"},
        "class": {"enum": ["a", "b"]},
        "guests": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        "note": {"type": ["string", "null"]},
    },
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "fits",
    [
        {"city": "Ghent"},
        {"city": "Ghent", "nights": 2, "class": "a", "guests": [{"name": "Ann"}], "note": None},
        {"city": "Ghent", "nights": 2.0},
    ],
)
def test_what_fits_is_let_be(fits: Any) -> None:
    assert misfit(BOOK, fits) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "city is missing"),
        ({"city": 9}, "city should be string"),
        ({"city": "Ghent", "nights": "two"}, "nights should be integer"),
        ({"city": "Ghent", "nights": True}, "nights should be integer"),
        ({"city": "Ghent", "nights": 2.5}, "nights should be integer"),
        ({"city": "Ghent", "class": "c"}, "class is none of the allowed values"),
        ({"city": "Ghent", "guests": [{"name": "Ann"}, {}]}, "guests[1].name is missing"),
        ({"city": "Ghent", "note": 3}, "note should be string or null"),
        ({"city": "Ghent", "smoker": True}, "smoker is no parameter of the tool"),
        ("Ghent", "the arguments should be object"),
        (None, "the arguments should be object"),
    ],
)
def test_what_does_not_is_named(given: Any, said: str) -> None:
    assert misfit(BOOK, given) == said


@pytest.mark.parametrize(
    "schema", [{}, {"$ref": "#/x"}, {"type": "datetime"}, {"type": 7}, {"required": "city"}, {"properties": []}]
)
def test_a_schema_that_is_not_understood_finds_no_fault(schema: Any) -> None:
    assert misfit(schema, {"city": 9}) is None


def test_the_kinds_of_gemini_are_in_capitals() -> None:
    assert misfit({"type": "OBJECT", "properties": {"n": {"type": "INTEGER"}}}, {"n": "x"}) == "n should be integer"


def test_a_schema_within_itself_ends() -> None:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    value: list[Any] = []
    for _ in range(50):
        value = [value]
    assert misfit(schema, value) is None
