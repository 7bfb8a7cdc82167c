"""Hostile requests, class by class: each class is one way to break a server, tried wherever the API would take it."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from urllib.parse import quote
from uuid import uuid4

from hostile_surface import TIME, Ask, Operation, Surface, at

Class = Callable[[Surface], Iterator[Ask]]
HEAD = [("name", b'"t"'), ("started_at", b'"2026-03-01T10:00:00Z"')]
TEXT, ANY, TIMES, NUMBERS = ("string",), ("any", "object"), ("date-time",), ("number", "integer")


def everywhere(s: Surface, literals: list[bytes], *kinds: str) -> Iterator[Ask]:
    for place in s.fields(*kinds):
        yield from (s.put(place, literal) for literal in literals)


def searched(s: Surface, values: list[str], *kinds: str) -> Iterator[Ask]:
    for o, name in s.parameters(*kinds):
        yield from (s.search(o, name, value) for value in values)


def whole(s: Surface, bodies: list[bytes], *headers: tuple[bytes, bytes]) -> Iterator[Ask]:
    for o in s.writers():
        yield from (s.ask(o, body, *headers) for body in bodies)


def in_paths(s: Surface, values: list[str]) -> Iterator[Ask]:
    for o in s.operations:
        for name in o.named:
            yield from (replace(s.usual(o), path=s.path(o, **{name: value})) for value in values)


def trace_post(s: Surface) -> Operation:
    return next(o for o in s.writers() if (o.method, o.path) == ("POST", "/traces"))


def of_traces(s: Surface, *bodies: bytes) -> Iterator[Ask]:
    yield from (s.ask(trace_post(s), body) for body in bodies)


def trace(**fields: object) -> bytes:
    return json.dumps({"name": "t", "started_at": TIME, **fields}).encode()


def span(**fields: object) -> dict[str, object]:
    return {"name": "s", "started_at": TIME, **fields}


def text(value: str) -> bytes:
    return json.dumps(value).encode()


# What text can do


def nul_bytes(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [rb'"a\u0000b"'])
    yield from everywhere(s, [rb'{"\u0000": "\u0000"}'], *ANY)
    yield from searched(s, ["%00", "a%00b"])
    yield from in_paths(s, ["%00", "a%00"])


def escaped_lone_surrogates(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [rb'"\ud800"', rb'"a\udfffb"'], "string", *ANY)


def lone_surrogates_in_keys(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [rb'{"\udc00": 1}'], *ANY)


def raw_surrogates(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b'"\xed\xa0\x80"'], "string", *ANY)
    yield from searched(s, ["%ED%A0%80"], *TEXT)
    yield from in_paths(s, ["%ED%A0%80"])


def overlong_utf8(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b'"\xc0\xae\xc0\xae"'], *TEXT)
    yield from searched(s, ["%c0%ae"], *TEXT)


def truncated_utf8(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b'"\xe2\x82"', b'"\xff"'], *TEXT)
    yield from searched(s, ["%e2%82", "%ff", "%", "%zz"], *TEXT)


def utf16_bodies(s: Surface) -> Iterator[Ask]:
    for o in s.writers():
        sent = json.dumps(s.good(o))
        yield from (s.ask(o, sent.encode(code)) for code in ("utf-16", "utf-16-le", "utf-32"))


def utf8_byte_order_marks(s: Surface) -> Iterator[Ask]:
    for o in s.writers():
        yield s.ask(o, b"\xef\xbb\xbf" + json.dumps(s.good(o)).encode())


def invisible_text(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [text("\u200b\u200d\ufeff\u2060"), text("\u202ecba\u2066\u2069")], "string", "array", *ANY)
    yield from searched(s, [quote("\u200b"), quote("\u202e")], *TEXT)


def combining_floods(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [text("Z" + "\u0335\u0489" * 120), text("\u0600" * 250)], "string", *ANY)


def normal_forms(s: Surface) -> Iterator[Ask]:
    for form in ("\u00e9", "e\u0301", "\ufb01", "\u0130", "\u1e9e", "\u212b", "\ud55c", "\u1112\u1161\u11ab"):
        yield from of_traces(s, trace(name=form, session_id=form, user_id=form, tags=[form], metadata={form: form}))
        yield from islice(searched(s, [quote(form)], *TEXT), 12)


def noncharacters(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [text("\ufffe\uffff\U0010ffff\U000e0001\x7f\x85\u2028")], *TEXT)


def control_characters(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b'"' + bytes([n]) + b'"' for n in (1, 9, 10, 27)], *TEXT)
    yield from everywhere(s, [rb'"\u0001\u001b[31m\u0008"'], *TEXT)


def very_long_strings(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [text("x" * 70_000)])
    yield from searched(s, ["x" * 20_000])


def strings_at_their_limits(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [text("\U0001f600" * n) for n in (255, 256, 512, 513)], *TEXT)


def empty_strings(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b'""', b'" "', rb'"\t\n"'])
    yield from searched(s, ["", "%20"])


# What text can be taken for


def sql(s: Surface) -> Iterator[Ask]:
    tricks = [
        "' OR 1=1 --",
        "1; SELECT pg_sleep(60)",
        "$1",
        ":project",
        "\\'; DROP TABLE traces; --",
        "{a,b}",
        '"',
        "?",
    ]
    yield from searched(s, [quote(t) for t in tricks], "string", "enum", "array", "uuid")
    yield from everywhere(s, [text(t) for t in tricks[:3]], *TEXT)


def wildcards_and_patterns(s: Surface) -> Iterator[Ask]:
    tricks = ["%", "_", "%%%_%", "\\", "\\%", ".*", "(a+)+$", "[", "(?R)", "^(?!.*a).*$", "*" * 200]
    yield from searched(s, [quote(t) for t in tricks], *TEXT)


def format_strings(s: Surface) -> Iterator[Ask]:
    tricks = ["%s%n%d", "{0.__class__}", "{", "%(name)s", "${jndi:ldap://127.0.0.1/a}"]
    yield from everywhere(s, [text(t) for t in tricks], *TEXT)


def templates(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [text("{{7*7}}{% raw %}"), text("<%= 7 %>#{7}"), text("</record><system>")], *TEXT)


def markup(s: Surface) -> Iterator[Ask]:
    yield from everywhere(
        s, [text("<script>alert(1)</script>"), text('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///">]>')], *TEXT
    )


def prototype_keys(s: Surface) -> Iterator[Ask]:
    polluted = b'{"__proto__": {"a": 1}, "constructor": {"prototype": 1}, "__class__": 1, "model_fields": 1, "": 1}'
    yield from everywhere(s, [polluted])
    yield from whole(s, [polluted, b'{"__init__": 1, "project_id": "x", "self": 1}'])


# What numbers can do


def numbers_that_json_lacks(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b"NaN", b"Infinity", b"-Infinity"], *NUMBERS, *ANY)


def infinite_exponents(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b"1e400", b"-1e400"])


def five_thousand_digits(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b"9" * 5000])
    yield from everywhere(s, [b"0." + b"9" * 5000], *NUMBERS, *ANY)
    yield from searched(s, ["9" * 5000])


def integers_beyond_64_bits(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b"9223372036854775808", b"-9223372036854775809", b"18446744073709551616"])
    yield from everywhere(s, [b'{"n": 36893488147419103232, "m": -36893488147419103232}'], *ANY)


def tiny_numbers(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b"5e-324", b"-0.0", b"1e-400", b"1E+0"], *NUMBERS, *ANY)


def pages_out_of_range(s: Surface) -> Iterator[Ask]:
    numbers = ["-1", "0", "201", "2147483647", "2147483648", "9223372036854775807", "9223372036854775808"]
    yield from searched(s, [*numbers, "18446744073709551616", "1e3", "1.5", "0x10", "%D9%A1", "1_0", "NaN"], "integer")


def odd_usage(s: Surface) -> Iterator[Ask]:
    amounts = [b"-5", b"1e300", b'"many"', b"null", b"true", b"[1]", b"{}", b"9007199254740993", b"0.1"]
    for place in s.fields("object"):
        if place[1][-1] in ("token_usage", "cost"):
            for a in amounts:
                yield s.put(place, at([("total_tokens", a), ("prompt_tokens", a), ("output_tokens", a), ("total", a)]))


def costs_as_text(s: Surface) -> Iterator[Ask]:
    for place in s.fields("object"):
        if place[1][-1] == "cost":
            said = (b'"0.1"', b'"nan"', b'"inf"', b'"1e400"', b'" 1 "', b'"1_0"', b'"\xd9\xa1"')
            yield from (s.put(place, at([("total", v)])) for v in said)


def score_values(s: Surface) -> Iterator[Ask]:
    values = [
        "nan",
        "inf",
        "-inf",
        "1e-400",
        "1e400",
        "1e-5",
        "\u0661",
        "0x1",
        " 0.5 ",
        "1_0",
        "1,0",
        "+1",
        "-0",
        ".5",
        "1.",
    ]
    more = [
        "1.0000000000000001",
        "0." + "9" * 400,
        "true",
        "TRUE",
        "",
        "0\x00",
        "1e" + "9" * 50,
        "00.5",
        "\u00bd",
        "x" * 256,
    ]
    raw = [b"true", b"0.5", b"1", b"2", b"-1", b"null", b"[]", b"{}", b"1e-320", b"[[[1]]]"]
    for o in s.writers():
        assert o.takes is not None
        if (good := s.good(o)) and isinstance(good, dict) and "value" in good:
            for kind in ("NUMERIC", "BOOLEAN", "CATEGORICAL", "ODD"):
                kept = [(k, json.dumps(v).encode()) for k, v in good.items() if k not in ("value", "data_type")]
                for value in [*map(text, values), *map(text, more), *raw]:
                    yield s.ask(o, at([*kept, ("data_type", text(kind)), ("value", value)]))


# What JSON can be


def deep_arrays(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b"[" * 5000 + b"]" * 5000])
    yield from whole(s, [b"[" * 5000, b"[" * 100_000])


def deep_objects(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b'{"a":' * 5000 + b"1" + b"}" * 5000])


def depth_at_the_parsers_limit(s: Surface) -> Iterator[Ask]:
    for levels in (190, 199, 200, 201, 500, 1000, 1020):
        yield from everywhere(s, [b'{"a":' * levels + b"[]" + b"}" * levels], "object")
        yield from everywhere(s, [b"[" * levels + b"]" * levels], "any", "array")


def duplicate_keys(s: Surface) -> Iterator[Ask]:
    for o in s.writers():
        good = s.good(o)
        if isinstance(good, dict):
            twice = [(k, json.dumps(v).encode()) for k, v in good.items()]
            yield s.ask(o, at([*twice, *twice]))
            yield from (s.ask(o, at([(k, b"null"), *twice, (k, b"[]")])) for k in good)


def duplicate_ids(s: Surface) -> Iterator[Ask]:
    one, two = text(str(uuid4())), text(str(uuid4()))
    yield from of_traces(
        s, at([*HEAD, ("trace_id", one), ("trace_id", two)]), at([("trace_id", b"1"), *HEAD, ("trace_id", one)])
    )
    for place in s.fields("array"):
        if place[1][-1] == "trace_ids":
            same = uuid4() if place[0].path.endswith("/delete") else s.known["trace_id"]
            yield s.put(place, json.dumps([str(same)] * 300).encode())


def wrong_top_levels(s: Surface) -> Iterator[Ask]:
    yield from whole(s, [b"[]", b"{}", b"3", b"null", b"true", b'"{}"', b"[[]]", b"[null]", b"[{}]", b"[1]"])


def nearly_json(s: Surface) -> Iterator[Ask]:
    yield from whole(
        s, [b"{/* */}", b"// a\n{}", b"{'a': 1}", b'{"a": 1,}', b"{a: 1}", b'{"a" 1}', b"{", b'{"a": 01}', b"\x1e{}"]
    )
    yield from whole(
        s, [b'{"a": .5}', b'{"a": +1}', b'{"a": 0x1}', b'{"a": True}', b'{"a": undefined}', b'{"a": "\n"}']
    )


def trailing_garbage(s: Surface) -> Iterator[Ask]:
    for o in s.writers():
        sent = json.dumps(s.good(o)).encode()
        yield from (s.ask(o, sent + more) for more in (b"x", b"{}", b"\x00", sent, b"\n\n ", b"]"))


def empty_bodies(s: Surface) -> Iterator[Ask]:
    yield from whole(s, [b"", b" ", b"\n", b"\x00", b"\xef\xbb\xbf"])
    for o in s.writers():
        yield replace(s.ask(o, b""), body=None)


def wrong_types(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b"null", b"true", b"0", b"0.5", b"[]", b"{}", b"[null]", b'[{"a": []}]'])


def booleans_as_text(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b'"true"', b'"yes"', b'"on"', b'"0"'])
    yield from searched(s, ["yes", "TRUE", "on", "2", "null", "None", "undefined"], "boolean")


def numbers_as_text(s: Surface) -> Iterator[Ask]:
    yield from everywhere(
        s, [b'"1"', b'"0.5"', b'"1e400"', b'"nan"', b'" 1"', b'"\xd9\xa1"', b'"' + b"9" * 5000 + b'"'], *NUMBERS
    )


def words_that_are_not_listed(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [b'"ok"', b'"Completed"', b'"COMPLETED "', b'"\\u0000"'], "enum")
    yield from searched(s, ["nope", "COMPLETED%00", "completed", "1", ""], "enum")


def long_lists(s: Surface) -> Iterator[Ask]:
    tags = [b'["' + b'","'.join(b"%d" % n for n in range(count)) + b'"]' for count in (200, 201, 20_000)]
    yield from everywhere(s, [*tags, b"[" + b"[],[]," * 5000 + b"0]", json.dumps(["x"] * 200).encode()], "array")


def many_keys(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [json.dumps({f"k{n}": n for n in range(20_000)}).encode()], "object")
    yield from everywhere(s, [json.dumps({"k" * 100_000: 1}).encode()], "object")


def merging_metadata(s: Surface) -> Iterator[Ask]:
    mine = str(uuid4())
    for n in range(12):
        grown = {f"{n}-{k}": "x" * 200 for k in range(300)}
        yield from of_traces(s, trace(trace_id=mine, metadata=grown, spans=[span(span_id=mine, metadata=grown)]))


# What times can be

EDGES = [
    "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59-14:00", "10000-01-01T00:00:00Z", "2016-12-31T23:59:60Z", "2026-02-30T00:00:00Z",
    "-0001-01-01T00:00:00Z", "2026-13-01T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01", "T10:00Z", "2026-W01-1",
]  # fmt: skip
ZONES = [
    "+23:59",
    "-23:59",
    "+24:00",
    "+99:99",
    "+14:00",
    "-12:00",
    "",
    "+0000",
    "Z+01:00",
    " UTC",
    "[Europe/Berlin]",
    "+05:45:30",
]


def dates_at_the_edge(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [text(t) for t in EDGES], *TIMES)
    yield from searched(s, [quote(t) for t in EDGES], *TIMES)


def the_calendars_first_moment(s: Surface) -> Iterator[Ask]:
    """Alone, like the last one: nothing in its class changes back what it does to the known trace."""
    yield from everywhere(s, [text(EDGES[1])], *TIMES)


def the_calendars_last_moment(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [text(EDGES[3])], *TIMES)


def odd_time_zones(s: Surface) -> Iterator[Ask]:
    yield from everywhere(s, [text("2026-03-29T02:30:00" + z) for z in ZONES], *TIMES)
    yield from searched(s, [quote("2026-03-29T02:30:00" + z) for z in ZONES], *TIMES)


def epochs_as_dates(s: Surface) -> Iterator[Ask]:
    numbers = [
        "0",
        "-1",
        "1700000000",
        "1700000000000",
        "253402300800",
        "-62135596801",
        "1e10",
        "1e30",
        "99999999999999999999",
    ]
    yield from everywhere(s, [n.encode() for n in numbers], *TIMES)
    yield from everywhere(s, [text(n) for n in numbers], *TIMES)
    yield from searched(s, numbers, *TIMES)


def windows(s: Surface) -> Iterator[Ask]:
    pairs = [("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"), (EDGES[3], EDGES[1]), (TIME, TIME)]
    names = (("started_after", "started_before"), ("date_from", "date_to"))
    for o in s.readers():
        for since, until in (n for n in names if n[0] in o.query):
            for grain in ("hour", "day", "week") if "granularity" in o.query else ("",):
                for a, b in pairs:
                    sent = f"{since}={quote(a)}&{until}={quote(b)}&granularity={grain or 'x'}&metric_name=quality"
                    yield s.ask(o, query=sent.encode())


def histograms(s: Surface) -> Iterator[Ask]:
    buckets = ["0", "-1", "1", "3", "7", "100", "101", "9223372036854775808", "1.5", "ten", "", "%00"]
    for o in s.readers():
        if "buckets" in o.query:
            yield from (s.search(o, "buckets", n) for n in buckets)


# What ids and spans can be

SPELLINGS = ["{%s}", "urn:uuid:%s", "%s ", " %s", "%s\n", "(%s)", "0x%s", "%s%%00", "uuid:%s"]


def spellings_of(known: str) -> list[str]:
    return [
        *(form.replace("%s", known) for form in SPELLINGS),
        known.upper(),
        known.replace("-", ""),
        known[:-1],
        known + "0",
    ]


def odd_spellings_of_ids(s: Surface) -> Iterator[Ask]:
    known = spellings_of(s.known["trace_id"])
    yield from everywhere(s, [text(k) for k in known], "uuid")
    yield from searched(s, [quote(k) for k in known], "uuid")
    yield from in_paths(s, [quote(k, safe="") for k in known])


def ids_of_nothing(s: Surface) -> Iterator[Ask]:
    nil, most = "0" * 8 + "-0000-0000-0000-" + "0" * 12, "f" * 8 + "-ffff-ffff-ffff-" + "f" * 12
    yield from everywhere(s, [text(nil), text(most)], "uuid")
    yield from in_paths(s, [nil, most, str(uuid4())])


def too_many_spans(s: Surface) -> Iterator[Ask]:
    for count in (500, 501, 3000):
        yield from of_traces(s, trace(spans=[span() for _ in range(count)]))
    for o in s.writers():
        if o.path.endswith("/spans"):
            yield from (s.ask(o, json.dumps([span() for _ in range(count)]).encode()) for count in (0, 500, 501))


def spans_that_are_their_own_parents(s: Surface) -> Iterator[Ask]:
    for kind in ("AGENT", "TOOL", "LLM", None):
        mine = str(uuid4())
        yield from of_traces(
            s, trace(input="a", output="b", spans=[span(span_id=mine, parent_span_id=mine, kind=kind)])
        )


def circles_of_parents(s: Surface) -> Iterator[Ask]:
    for length in (2, 3, 50, 500):
        ids = [str(uuid4()) for _ in range(length)]
        circle = [span(span_id=i, parent_span_id=ids[n - 1], kind="AGENT") for n, i in enumerate(ids)]
        yield from of_traces(
            s, trace(input="a", output="b", spans=circle), trace(input="a", output="b", spans=circle[1:])
        )


def long_lines_of_parents(s: Surface) -> Iterator[Ask]:
    ids = [str(uuid4()) for _ in range(500)]
    line = [span(span_id=i, parent_span_id=ids[n - 1] if n else None, kind="CHAIN", input=n) for n, i in enumerate(ids)]
    yield from of_traces(s, trace(input="a", output="b", spans=line), trace(input="a", output="b", spans=line[::-1]))


def spans_with_equal_ids(s: Surface) -> Iterator[Ask]:
    for count in (2, 100, 500):
        mine = str(uuid4())
        spans = [span(span_id=mine, name=f"n{n}", output=n) for n in range(count)]
        yield from of_traces(
            s, trace(spans=spans), trace(trace_id=mine, spans=spans), trace(trace_id=mine, spans=spans)
        )


def ends_before_starts(s: Surface) -> Iterator[Ask]:
    for end in (EDGES[1], "2026-02-28T10:00:00Z", TIME, EDGES[3]):
        late = [span(ended_at=end, completion_start_time=end, kind=k) for k in ("LLM", "TOOL")]
        for start in (EDGES[1], TIME, EDGES[3]):
            yield from of_traces(s, trace(started_at=start, ended_at=end, session_id=f"from-{start}", spans=late))


def strange_things_said(s: Surface) -> Iterator[Ask]:
    """Inputs and outputs of shapes that a judge has to read: messages that are none, calls without names, and such."""
    odd: list[object] = [
        [{"role": "user"}], [{"role": None, "content": None}], [{"role": "assistant", "content": [{"type": "text"}]}], [[]],
        {"messages": {"messages": {"messages": []}}}, {"content": {"content": 1}}, {"tool_calls": [None, 1, {}]}, "", [], {},
        0, False, 1e308, "\ud7ff" * 3, [None] * 1000, {"a": {"b": [1, {"c": "x" * 50_000}]}}, "x" * 200_000, "a\n" * 50_000,
        [{"role": "user", "content": "\u0000"}], {"choices": [{"message": {"content": [1]}}]}, {"": ""}, [[[["x"]]]] * 50,
    ]  # fmt: skip
    for value in odd:
        steps = [
            span(kind=k, input=value, output=value, error=str(value)[:500])
            for k in ("AGENT", "TOOL", "LLM", "RETRIEVER")
        ]
        yield from of_traces(s, trace(input=value, output=value, spans=steps), trace(input=value), trace(output=value))


# What surrounds a body


def bodies_over_the_limit(s: Surface) -> Iterator[Ask]:
    for o in islice(s.writers(), 4):
        yield s.ask(o, b'"' + b"x" * 2_100_000 + b'"')
    for o in s.writers():
        yield replace(s.ask(o, b"{}"), headers=(*s.headers, (b"content-length", b"50000000")))
        yield replace(s.ask(o, b"{}"), headers=(*s.headers, (b"content-length", b"9" * 5000)))


def chunks_over_the_limit(s: Surface) -> Iterator[Ask]:
    for o in islice(s.writers(), 8):
        yield replace(s.ask(o, b""), body=(b'"' + b"x" * 99_999,) * 30, chunked=True)


def many_small_chunks(s: Surface) -> Iterator[Ask]:
    for o in s.writers():
        sent = json.dumps(s.good(o)).encode()
        yield replace(s.ask(o, b""), body=tuple(sent[n : n + 1] for n in range(len(sent))), chunked=True)


def bodies_that_break_off(s: Surface) -> Iterator[Ask]:
    for o in s.writers():
        sent = json.dumps(s.good(o)).encode()
        yield replace(s.ask(o, b""), body=(sent[:10],), headers=(*s.headers, (b"content-length", b"%d" % len(sent))))
        yield s.ask(o, sent[: len(sent) // 2])


GZIP = (b"content-encoding", b"gzip")
JSON_HEADER = (b"content-type", b"application/json")


def zipped(s: Surface, body: bytes, *headers: tuple[bytes, bytes]) -> Iterator[Ask]:
    yield s.ask(trace_post(s), body, *(headers or (GZIP,)), JSON_HEADER)


def gzip_bombs(s: Surface) -> Iterator[Ask]:
    for size in (2_500_000, 50_000_000):
        yield from zipped(s, gzip.compress(b" " * size))
    yield from zipped(s, gzip.compress(gzip.compress(b"[" * 50_000_000)))
    yield from zipped(s, gzip.compress(b'{"name": "t", "input": "' + b"x" * 3_000_000 + b'"}'))


def gzip_in_members(s: Surface) -> Iterator[Ask]:
    body = trace()
    yield from zipped(s, gzip.compress(body[:9]) + gzip.compress(body[9:]))
    yield from zipped(s, gzip.compress(b" " * 900_000) * 10)
    yield from zipped(s, gzip.compress(b"") * 50_000)


def damaged_gzip(s: Surface) -> Iterator[Ask]:
    good = gzip.compress(trace(input="x" * 999))
    for cut in (1, 5, 10, 20, len(good) - 8, len(good) - 1):
        yield from zipped(s, good[:cut])
    yield from zipped(s, good + b"garbage")
    yield from zipped(s, good + b"\x00" * 512)
    for n in range(0, len(good), 7):
        yield from zipped(s, good[:n] + bytes([good[n] ^ 0xFF]) + good[n + 1 :])


def gzip_of_other_things(s: Surface) -> Iterator[Ask]:
    for body in (b"", b"x", b"\x00" * 50, b"null", b"\xff\xfe", b'{"input": NaN}'):
        yield from zipped(s, gzip.compress(body))
        yield from zipped(s, body)


def other_encodings(s: Surface) -> Iterator[Ask]:
    names = [
        b"deflate",
        b"br",
        b"zstd",
        b"gzip, gzip",
        b"gzip;q=1",
        b"GZIP",
        b"x-gzip",
        b"",
        b"identity",
        b"\xff",
        b"*",
        b"x" * 9000,
    ]
    for name in names:
        yield from zipped(s, gzip.compress(trace()), (b"content-encoding", name))
        yield from zipped(s, trace(), (b"content-encoding", name), GZIP)


def content_types(s: Surface) -> Iterator[Ask]:
    kinds = [
        b"text/plain", b"multipart/form-data; boundary=x", b"multipart/form-data", b"application/x-www-form-urlencoded", b"",
        b"application/xml", b"application", b"/", b";", b"application/json/json", b"image/png", b"\xff\xfe", b"*/*", b"x" * 9000,
        b"application/problem+json", b"APPLICATION/JSON", b"application/json;" + b"a" * 5000, b"message/rfc822", b"text/json",
    ]  # fmt: skip
    for o in s.writers():
        sent = json.dumps(s.good(o)).encode()
        yield from (s.ask(o, sent, (b"content-type", kind)) for kind in kinds)


def missing_and_doubled_content_types(s: Surface) -> Iterator[Ask]:
    for o in s.writers():
        sent = json.dumps(s.good(o)).encode()
        yield replace(s.ask(o, sent), headers=s.headers)
        yield s.ask(o, sent, JSON_HEADER, (b"content-type", b"text/plain"))
        yield s.ask(o, sent, (b"content-type", b"text/plain"), JSON_HEADER)


def charset_tricks(s: Surface) -> Iterator[Ask]:
    for o in s.writers():
        sent = json.dumps(s.good(o))
        for code in ("utf-16", "latin-1", "utf-7", "cp037"):
            kind = f"application/json; charset={code}".encode()
            yield from (s.ask(o, body, (b"content-type", kind)) for body in (sent.encode(), sent.encode(code)))


# What surrounds a request


def header_injection(s: Surface) -> Iterator[Ask]:
    values = [b"a\r\nSet-Cookie: x=1", b"a\nb", b"\xff\xfe\xfd", b"x" * 60_000, b"\x00", b"", b"\xe2\x80\xae", b"'; --"]
    for name in (
        b"accept",
        b"user-agent",
        b"cookie",
        b"traceparent",
        b"baggage",
        b"x-forwarded-for",
        b"accept-encoding",
        b"host",
    ):
        yield from (s.usual(o, (name, value)) for o in s.lists()[:2] for value in values)


def request_ids(s: Surface) -> Iterator[Ask]:
    ids = [b"", b"\x00", b"a\r\nX-Evil: 1", b"\xff", b"x" * 100_000, b"{}", b"  ", b"\xd8\x00", b"<b>", b"%s"]
    for value in ids:
        yield from (s.usual(o, (b"x-request-id", value)) for o in s.operations[:6])
        yield s.usual(s.lists()[0], (b"x-request-id", value), (b"x-request-id", b"second"))


def idempotency_keys(s: Surface) -> Iterator[Ask]:
    keys = [
        b"",
        b"\x00",
        b"x" * 10_000,
        "\u00fc\u202e".encode(),
        b"\xff\xfe",
        b" ",
        b"'; --",
        b"a\r\nb",
        b"%00",
        b"x" * 255,
        b"a",
    ]
    for o in s.operations:
        if o.takes_key:
            yield from (s.usual(o, (b"idempotency-key", key)) for key in keys)
            yield s.usual(o, (b"idempotency-key", b"a"), (b"idempotency-key", b"b"))


def credentials(s: Surface) -> Iterator[Ask]:
    keys = [b"", b"\x00", b"x" * 100_000, b"\xff", b"sk_sy_", b"' OR 1=1 --", b"sk_sy_\x00", b"\xed\xa0\x80", b" "]
    said = [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer a.b.c",
        b"Basic eDp5",
        b"Bearer " + b"a" * 50_000,
        b"\xff",
        b"Bearer \x00",
        b"bearer e30.e30.",
    ]
    for o in s.operations:
        for key in keys[:: 1 if o.path == "/traces" else 4]:
            yield s.usual(o, (b"x-api-key", key))
        for token in said[:: 1 if o.path == "/traces" else 4]:
            bare = tuple(h for h in s.headers if h[0] != b"x-api-key")
            yield replace(s.usual(o), headers=(*bare, (b"authorization", token)))


def project_names(s: Surface) -> Iterator[Ask]:
    names = [
        b"",
        b" ",
        b"\x00",
        b"x" * 255,
        b"x" * 256,
        b"x" * 70_000,
        b"\xff\xfe",
        "\u202e\u200b".encode(),
        b"../..",
        b"a/b",
    ]
    for name in [
        *names,
        b"'; DROP TABLE projects; --",
        b"%s",
        b"\xed\xa0\x80",
        b"None",
        b"a\x00b",
        "\U0001f600".encode() * 255,
    ]:
        yield from (s.usual(o, (b"x-project-name", name)) for o in s.lists()[:3])


def project_ids(s: Surface) -> Iterator[Ask]:
    bare = tuple(h for h in s.headers if h[0] != b"x-project-name")
    for said in [
        b"",
        b"1",
        b"\x00",
        b"\xff",
        str(uuid4()).encode(),
        b"{%s}" % str(uuid4()).encode(),
        b"x" * 70_000,
        b"' OR 1=1",
    ]:
        yield replace(s.usual(s.lists()[0]), headers=(*bare, (b"x-project-id", said)))
        yield s.usual(s.lists()[0], (b"x-project-id", said))


def methods(s: Surface) -> Iterator[Ask]:
    for o in {o.path: o for o in s.operations}.values():
        for method in ("HEAD", "OPTIONS", "TRACE", "CONNECT", "PUT", "PROPFIND", "get", "G\u00cbT", "X" * 500, ""):
            yield replace(s.ask(o), method=method)


def overridden_methods(s: Surface) -> Iterator[Ask]:
    for name in (b"x-http-method-override", b"x-http-method", b"x-method-override"):
        yield from (s.usual(o, (name, b"DELETE")) for o in s.lists())


def paths_that_climb(s: Surface) -> Iterator[Ask]:
    climbs = [
        "..",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "%c0%ae%c0%ae",
        "..%5c..",
        ".",
        "%252e%252e",
        "a%2f..%2fb",
        "%2f",
        "..;",
    ]
    yield from in_paths(s, climbs)


def encoded_paths(s: Surface) -> Iterator[Ask]:
    yield from in_paths(
        s, ["%00", "%0d%0aX:1", "%ff", "%25", "%3f", "%23", "%20", quote("\u202e"), "x" * 9000, "%e2%82", "a%2fb"]
    )


def unknown_paths(s: Surface) -> Iterator[Ask]:
    paths = [
        "/",
        "//",
        "/nowhere",
        "/TRACES",
        "/traces/",
        "/traces//",
        "/.env",
        "/%00",
        "/v1/traces",
        "/traces/%2e%2e/x",
        "/" * 5000,
    ]
    for path in [
        *paths,
        "/evaluations",
        "/evaluations/",
        "/evaluations/nothing",
        "/sessions/",
        "/sessions//",
        "/openapi.json/x",
    ]:
        yield from (Ask(m, path, headers=s.headers) for m in ("GET", "POST", "DELETE"))


# What a query can be


def repeated_parameters(s: Surface) -> Iterator[Ask]:
    for o, name in s.parameters():
        yield s.search(o, name, f"1&{name}=2&{name}=3")
        yield s.search(o, name, f"{quote(TIME)}&{name}={quote(TIME)}")


def floods_of_parameters(s: Surface) -> Iterator[Ask]:
    for o in s.readers():
        yield s.ask(o, query=b"&".join(b"a%d=1" % n for n in range(2000)))
    for o, name in s.parameters("array"):
        yield s.search(o, name, f"&{name}=".join(["x"] * 1500))


def empty_values(s: Surface) -> Iterator[Ask]:
    for o in s.readers():
        yield s.ask(o, query="&".join(f"{name}=" for name in o.query).encode())
        yield s.ask(o, query="&".join(o.query).encode())
        yield from (s.ask(o, query=q) for q in (b"&", b"=", b"&&==&", b"?", b"%", b"%00=%00", b"\xff=\xff", b";"))


def arrays_in_queries(s: Surface) -> Iterator[Ask]:
    for o, name in s.parameters():
        for form in (f"{name}[]=1", f"{name}[0]=1", f"{name}[a][b]=1", f"{name}=[1,2]", f"{name}=1,2,3", f"{name}.a=1"):
            yield s.ask(o, query=form.encode())


def unknown_parameters(s: Surface) -> Iterator[Ask]:
    for o in s.readers():
        yield s.ask(
            o, query=b"&".join(filter(None, (s.needed(o), b"self=1&request=1&visitor=1&project=1&tx=1&__proto__=1")))
        )


# What runs can be asked


def fuzzed_metrics(s: Surface) -> Iterator[Ask]:
    lists = [
        b"[]",
        b'[""]',
        b'["nope"]',
        b"[null]",
        b'["coherence", "coherence"]',
        b'[["coherence"]]',
        rb'["\u0000"]',
        b'["COHERENCE"]',
    ]
    more = [
        json.dumps(["x" * 100_000]).encode(),
        json.dumps(["coherence"] * 101).encode(),
        b'["coherence ", "\xe2\x80\x8b"]',
    ]
    for place in s.fields("array"):
        if place[1][-1] == "metrics":
            yield from (s.put(place, literal) for literal in (*lists, *more))


def fuzzed_models(s: Surface) -> Iterator[Ask]:
    models = [
        "",
        "/",
        "openai/",
        "/x",
        "heuristic/rules-v1",
        "heuristic/nothing",
        "http://127.0.0.1/",
        "openai/\x00",
        "\u202e",
        "a/b/c/d",
    ]
    for place in s.fields("string"):
        if place[1][-1] == "model":
            yield from (s.put(place, text(m)) for m in (*models, "../../x", "${OPENAI_API_KEY}", "x" * 255, "x" * 256))


def fuzzed_sampling(s: Surface) -> Iterator[Ask]:
    for place in s.fields("number"):
        if place[1][-1] == "sampling_rate":
            yield from (
                s.put(place, n)
                for n in (b"0", b"-0.0", b"5e-324", b"1.0000001", b"-1", b'"0.5"', b"1e-9", b"true", b"2")
            )


def fuzzed_filters(s: Surface) -> Iterator[Ask]:
    values = [
        b'{"unknown": 1}',
        b"[]",
        b'"x"',
        b"null",
        b'{"tags": []}',
        b'{"tags": [null]}',
        b'{"name": ""}',
        b'{"status": ""}',
    ]
    more = [
        b'{"tags": ["' + b'","'.join([b"x"] * 3000) + b'"]}',
        rb'{"session_id": "\u0000"}',
        rb'{"tags": ["\u0000"]}',
        rb'{"\u0000": 1}',
    ]
    edges = [b'{"date_from": %s, "date_to": %s}' % (text(a), text(b)) for a in EDGES[1:5] for b in EDGES[1:5]]
    for o, place in s.fields():
        if place == ("filters",):
            yield from (s.put((o, place), literal) for literal in (*values, *more, *edges))


CLASSES: Mapping[str, Class] = {
    c.__name__.replace("_", " "): c
    for c in (
        nul_bytes, escaped_lone_surrogates, lone_surrogates_in_keys, raw_surrogates, overlong_utf8, truncated_utf8,
        utf16_bodies, utf8_byte_order_marks, invisible_text, combining_floods, normal_forms, noncharacters,
        control_characters, very_long_strings, strings_at_their_limits, empty_strings, sql, wildcards_and_patterns,
        format_strings, templates, markup, prototype_keys, numbers_that_json_lacks, infinite_exponents,
        five_thousand_digits, integers_beyond_64_bits, tiny_numbers, pages_out_of_range, odd_usage, costs_as_text,
        score_values, deep_arrays, deep_objects, depth_at_the_parsers_limit, duplicate_keys, duplicate_ids,
        wrong_top_levels, nearly_json, trailing_garbage, empty_bodies, wrong_types, booleans_as_text, numbers_as_text,
        words_that_are_not_listed, long_lists, many_keys, merging_metadata, dates_at_the_edge, the_calendars_first_moment,
        the_calendars_last_moment, odd_time_zones,
        epochs_as_dates, windows, histograms, odd_spellings_of_ids, ids_of_nothing, too_many_spans,
        spans_that_are_their_own_parents, circles_of_parents, long_lines_of_parents, spans_with_equal_ids,
        ends_before_starts, strange_things_said, bodies_over_the_limit, chunks_over_the_limit, many_small_chunks,
        bodies_that_break_off, gzip_bombs, gzip_in_members, damaged_gzip, gzip_of_other_things, other_encodings,
        content_types, missing_and_doubled_content_types, charset_tricks, header_injection, request_ids,
        idempotency_keys, credentials, project_names, project_ids, methods, overridden_methods, paths_that_climb,
        encoded_paths, unknown_paths, repeated_parameters, floods_of_parameters, empty_values, arrays_in_queries,
        unknown_parameters, fuzzed_metrics, fuzzed_models, fuzzed_sampling, fuzzed_filters,
    )
}  # fmt: skip
