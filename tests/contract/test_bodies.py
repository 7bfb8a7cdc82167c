"""What a body costs is known before it becomes Python objects: its bytes, its values and its depth, however it arrives."""

import gzip
import json
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard_api.bodies import DEEPEST, MOST_VALUES, PIECE, Gzip, Scan, TooMany, pieces
from steelyard_api.errors import Refused

WORDS = st.text(st.sampled_from('"\\[]{},:/\n\x00aé€𝄞')) | st.text()
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(WORDS, inner), max_leaves=30)


def scanned(parts: Sequence[bytes]) -> Scan:
    scan = Scan()
    for part in parts:
        scan.feed(part)
    return scan


def values_of(value: Any) -> int:
    """An empty list counts as if it had something in it."""
    if not isinstance(value, dict | list):
        return 1
    inner = list(value.values() if isinstance(value, dict) else value)
    return 1 + (sum(values_of(v) for v in inner) or 1)


def depth_of(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


def deepest(parts: Sequence[bytes]) -> int:
    scan, seen = Scan(), 0
    for part in parts:
        for byte in part:
            scan.feed(bytes((byte,)))
            seen = max(seen, scan.depth)
    return seen


@given(VALUES, st.booleans(), st.lists(st.integers(0, 400), max_size=6))
def test_values_and_depth_are_counted_right_wherever_the_bytes_are_cut(
    value: Any, ascii_only: bool, cuts: list[int]
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=1 if cuts else None).encode("utf-8", "surrogatepass")
    edges = [0, *sorted(c for c in cuts if c < len(body)), len(body)]
    parts = [body[a:b] for a, b in pairwise(edges)]
    scan = scanned(parts)
    # The keys of an object are no values; a repeated key cannot come out of a dict.
    assert (scan.values, scan.depth) == (values_of(value), 0)
    assert deepest(parts) == depth_of(value)


@pytest.mark.parametrize("text", [b'"', b"\\\\", b'\\"', b"\\\\\\\\\\", b'"\\', b'{"a":"\\'])
def test_no_text_that_is_not_json_stops_the_scan(text: bytes) -> None:
    for cut in range(len(text) + 1):
        scanned([text[:cut], text[cut:]])


def test_words_full_of_brackets_are_words() -> None:
    """What agents put into strings: code, and JSON in JSON."""
    inner = json.dumps([{"a": [1, 2, "]]]]"]}] * 50_000)
    assert scanned(list(pieces(json.dumps({"output": inner, "also": "[" * 5_000}).encode()))).values == 3


def test_a_value_too_many_is_refused_before_the_rest_is_looked_at() -> None:
    scan = scanned([b"[" + b"1," * (MOST_VALUES - 3) + b"1"])
    assert scan.values == MOST_VALUES - 1
    scan.feed(b",2")
    with pytest.raises(TooMany):
        scan.feed(b",3")


def test_a_nest_too_deep_is_refused_at_that_level() -> None:
    scan = scanned([b'{"a":' * DEEPEST])
    with pytest.raises(Refused) as refused:
        scan.feed(b"[")
    assert refused.value.status == 422


@pytest.mark.parametrize("size", [1, 7, PIECE])
def test_gzip_is_unpacked_in_pieces_whichever_way_it_arrives(size: int) -> None:
    body = b"".join(b"%d, " % n for n in range(60_000)) + b" " * 500_000
    packed = gzip.compress(body[:1000]) + gzip.compress(b"") + gzip.compress(body[1000:])
    gz, unpacked = Gzip(), list[bytes]()
    for n in range(0, len(packed), size):
        unpacked += gz.feed(packed[n : n + size])
    gz.end()
    assert b"".join(unpacked) == body and max(map(len, unpacked)) <= PIECE


def test_a_bomb_costs_what_was_looked_at() -> None:
    """19.5 MB of lists in 28 kB: refused after the first pieces, without the memory of the others."""
    bomb = gzip.compress(b"[" + b"[[]]," * 3_900_000 + b"[]]")
    assert len(bomb) < 30_000
    tracemalloc.start()
    try:
        gz, scan, looked_at = Gzip(), Scan(), 0
        with pytest.raises(TooMany):
            for piece in gz.feed(bomb):
                looked_at += len(piece)
                scan.feed(piece)
        assert looked_at <= 2 * PIECE + 5 * MOST_VALUES and tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_the_scan_is_no_stricter_than_the_parser_needs() -> None:
    """As deep as the parser reads, and further, the scan has the word."""
    deep = b"[" * DEEPEST + b"]" * DEEPEST
    assert scanned([deep]).depth == 0 and orjson.loads(deep)
