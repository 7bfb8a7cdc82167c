"""How many steps a regular expression takes, counted and not timed: a small backtracking matcher over Python's own parse tree."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from re import _constants as sre  # type: ignore[attr-defined, unused-ignore]
from re import _parser  # type: ignore[attr-defined, unused-ignore]
from typing import Any

Next = Callable[[int], bool]
_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    sre.CATEGORY_DIGIT: str.isdigit,
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
    sre.CATEGORY_NOT_DIGIT: lambda c: not c.isdigit(),
    sre.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    sre.CATEGORY_NOT_WORD: lambda c: not (c.isalnum() or c == "_"),
}
_ONE_CHARACTER = (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY)
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT)


def steps(pattern: re.Pattern[str], text: str) -> int:
    """To find all of its matches, as `sub` and `findall` do. Python's own engine skips some of them, and adds none."""
    counted = _Search(text, bool(pattern.flags & re.IGNORECASE))
    with _deep():
        counted.all(list(_parser.parse(pattern.pattern, pattern.flags)))
    return counted.steps


def found(pattern: re.Pattern[str], text: str) -> list[tuple[int, int]]:
    """Where, for comparison with the real engine."""
    search = _Search(text, bool(pattern.flags & re.IGNORECASE))
    with _deep():
        return search.all(list(_parser.parse(pattern.pattern, pattern.flags)))


@contextmanager
def _deep() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


class _Search:
    def __init__(self, text: str, folded: bool) -> None:
        self._text, self._folded, self.steps = text, folded, 0

    def all(self, tree: Sequence[Any]) -> list[tuple[int, int]]:
        matches, start = list[tuple[int, int]](), 0
        while start <= len(self._text):
            end = self._match(tree, start)
            if end is None:
                start += 1
                continue
            matches.append((start, end))
            start = max(end, start + 1)
        return matches

    def _match(self, tree: Sequence[Any], start: int) -> int | None:
        ends = list[int]()

        def done(at: int) -> bool:
            ends.append(at)
            return True

        return ends[-1] if self._run(tree, 0, start, done) else None

    def _run(self, tree: Sequence[Any], i: int, at: int, go_on: Next) -> bool:
        self.steps += 1
        if i == len(tree):
            return go_on(at)
        op, arg = tree[i]

        def after(there: int) -> bool:
            return self._run(tree, i + 1, there, go_on)

        if op in _ONE_CHARACTER:
            return at < len(self._text) and self._fits(op, arg, self._text[at]) and after(at + 1)
        if op in _REPEATS:
            least, most, inner = arg
            return self._repeat(op, least, most, inner, at, after)
        if op is sre.SUBPATTERN:
            return self._run(list(arg[-1]), 0, at, after)
        if op is sre.ATOMIC_GROUP:
            end = self._match(list(arg), at)
            return end is not None and after(end)
        if op is sre.BRANCH:
            return any(self._run(list(branch), 0, at, after) for branch in arg[1])
        if op is sre.AT:
            return self._is_at(arg, at) and after(at)
        if op in (sre.ASSERT, sre.ASSERT_NOT):
            direction, inner = arg
            return self._looks(direction, inner, at) == (op is sre.ASSERT) and after(at)
        raise NotImplementedError(f"{op} in a pattern: teach it to this matcher")

    def _repeat(self, op: Any, least: int, most: Any, inner: Any, at: int, after: Next) -> bool:
        tree = list(inner)
        if len(tree) == 1 and tree[0][0] in _ONE_CHARACTER and op is not sre.MIN_REPEAT:
            return self._run_of(op, least, most, tree[0], at, after)

        def turn(count: int, here: int) -> bool:
            def again(there: int) -> bool:
                return (there > here or count < least) and turn(count + 1, there)

            more = count < most
            if op is sre.MIN_REPEAT:
                return (count >= least and after(here)) or (more and self._run(tree, 0, here, again))
            return (more and self._run(tree, 0, here, again)) or (count >= least and after(here))

        return turn(0, at)

    def _run_of(self, op: Any, least: int, most: Any, item: Any, at: int, after: Next) -> bool:
        end, (kind, arg) = at, item
        while end < len(self._text) and end - at < most and self._fits(kind, arg, self._text[end]):
            end += 1
            self.steps += 1
        ends = [end] if op is sre.POSSESSIVE_REPEAT else range(end, at + least - 1, -1)
        return any(after(e) for e in ends if e >= at + least)

    def _fits(self, op: Any, arg: Any, c: str) -> bool:
        if op is sre.ANY:
            return c != "\n"
        if op is sre.LITERAL:
            return self._same(arg, c)
        if op is sre.NOT_LITERAL:
            return not self._same(arg, c)
        negated = arg[0][0] is sre.NEGATE
        return negated != any(self._in(kind, value, c) for kind, value in arg[negated:])

    def _in(self, kind: Any, value: Any, c: str) -> bool:
        if kind is sre.LITERAL:
            return self._same(value, c)
        if kind is sre.CATEGORY:
            return _CATEGORIES[value](c)
        spellings = {c, c.lower(), c.upper()} if self._folded else {c}
        return any(value[0] <= ord(s) <= value[1] for s in spellings if len(s) == 1)

    def _same(self, code: int, c: str) -> bool:
        return chr(code) == c or (self._folded and chr(code).lower() == c.lower())

    def _is_at(self, where: Any, at: int) -> bool:
        if where in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING):
            return at == 0
        if where is sre.AT_END_STRING:
            return at == len(self._text)
        if where is sre.AT_END:
            return at == len(self._text) or (at == len(self._text) - 1 and self._text[at] == "\n")
        word = _CATEGORIES[sre.CATEGORY_WORD]
        before, here = at > 0 and word(self._text[at - 1]), at < len(self._text) and word(self._text[at])
        return (before != here) == (where is sre.AT_BOUNDARY)

    def _looks(self, direction: int, inner: Any, at: int) -> bool:
        width = inner.getwidth()[0] if direction < 0 else 0
        return at >= width and self._match(list(inner), at - width) is not None
