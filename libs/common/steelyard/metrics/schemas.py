"""Does a value fit a tool's JSON schema? The keywords that tool declarations use; what is not understood is no fault."""

from collections.abc import Iterator, Mapping
from typing import Any

_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (Mapping,),
    "null": (type(None),),
}
DEEPEST = 8
_NESTED = (Mapping, list, tuple)
# Objects and lists are compared one by one. More of them are not understood.
MOST_NESTED = 100


def misfit(schema: Mapping[str, Any], value: Any) -> str | None:
    """The first thing that is wrong with it."""
    return next(_misfits(schema, value, "", 0, {}), None)


class _Lists:
    """The lists of a schema, read once however many values it is for: both are as long as a trace likes."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.kinds = list(dict.fromkeys(_kinds(schema.get("type"))))
        required, allowed = schema.get("required"), schema.get("enum")
        names = required if isinstance(required, list) else []
        self.required = list(dict.fromkeys(name for name in names if isinstance(name, str)))
        self._allowed = allowed if isinstance(allowed, list) else None
        self._plain = frozenset(a for a in self._allowed or () if not isinstance(a, _NESTED))
        self._nested = [a for a in self._allowed or () if isinstance(a, _NESTED)]

    def allows(self, value: Any) -> bool:
        if self._allowed is None:
            return True
        if not isinstance(value, _NESTED):
            return value in self._plain
        return len(self._nested) > MOST_NESTED or value in self._nested


def _misfits(schema: Any, value: Any, place: str, depth: int, read: dict[int, _Lists]) -> Iterator[str]:
    if not isinstance(schema, Mapping) or depth > DEEPEST or "$ref" in schema:
        return
    named = place or "the arguments"
    if (lists := read.get(id(schema))) is None:
        lists = read[id(schema)] = _Lists(schema)
    if (kinds := lists.kinds) and not any(_is(kind, value) for kind in kinds):
        yield f"{named} should be {' or '.join(kinds)}"
        return
    if not lists.allows(value):
        yield f"{named} is none of the allowed values"
    if isinstance(value, Mapping):
        yield from _of_object(schema, value, place, depth, read)
    if isinstance(value, list | tuple) and "items" in schema:
        for n, item in enumerate(value[:100]):
            yield from _misfits(schema["items"], item, f"{place}[{n}]", depth + 1, read)


def _of_object(
    schema: Mapping[str, Any], value: Mapping[str, Any], place: str, depth: int, read: dict[int, _Lists]
) -> Iterator[str]:
    properties = schema.get("properties")
    known = properties if isinstance(properties, Mapping) else {}
    for name in read[id(schema)].required:
        if name not in value:
            yield f"{_inside(place, name)} is missing"
    for name, inner in value.items():
        if name in known:
            yield from _misfits(known[name], inner, _inside(place, name), depth + 1, read)
        elif schema.get("additionalProperties") is False:
            yield f"{_inside(place, name)} is no parameter of the tool"


def _kinds(said: Any) -> list[str]:
    """Gemini writes them in capitals; a kind that is unknown allows anything."""
    kinds = [k.lower() for k in (said if isinstance(said, list) else [said]) if isinstance(k, str)]
    return kinds if all(k in _KINDS for k in kinds) else []


def _is(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS[kind])


def _inside(place: str, name: Any) -> str:
    return f"{place}.{name}" if place else str(name)[:100]
