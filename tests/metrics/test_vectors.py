"""Vectors that are known are not asked for again, and those of two embedders are never mixed."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from eventually import eventually
from steelyard.errors import Later
from steelyard.metrics.judging import Embedded
from steelyard_judge.usage import Usage
from steelyard_judge.vectors import Remembering


@dataclass
class Letters:
    """A vector is a text's length, by whoever it is just now."""

    name: str = "one"
    asked: list[str] = field(default_factory=list)
    failing: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.go.set()

    async def identity(self) -> str:
        return self.name

    async def embed(self, texts: Sequence[str], usage: Usage | None = None) -> Embedded:
        self.asked += texts
        await self.go.wait()
        if self.failing:
            self.failing -= 1
            raise Later("not now")
        return Embedded(tuple((float(len(t)), 1.0 if self.name == "one" else 2.0) for t in texts), self.name)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def unwell(self) -> str | None: ...


def plain(embedded: Embedded) -> list[list[float]]:
    return [list(vector) for vector in embedded.vectors]


async def test_each_text_is_asked_for_once_and_answered_in_the_order_it_was_wanted() -> None:
    letters = Letters()
    known = Remembering(letters)
    assert plain(await known.embed(["aa", "b", "aa"])) == [[2, 1], [1, 1], [2, 1]]
    assert plain(await known.embed(["ccc", "b"])) == [[3, 1], [1, 1]]
    assert letters.asked == ["aa", "b", "ccc"]


async def test_the_longest_unused_ones_are_forgotten() -> None:
    letters = Letters()
    known = Remembering(letters, most=2)
    for text in ("a", "bb", "a", "ccc", "a", "bb"):
        await known.embed([text])
    assert letters.asked == ["a", "bb", "ccc", "bb"]
    assert plain(await known.embed(["1", "22", "333"])) == [[1, 1], [2, 1], [3, 1]], "more than are remembered"


async def test_when_another_embedder_takes_over_nothing_is_mixed() -> None:
    letters = Letters()
    known = Remembering(letters)
    await known.embed(["a", "bb"])
    letters.name = "two"
    mixed = await known.embed(["a", "ccc"])
    assert plain(mixed) == [[1, 2], [3, 2]] and mixed.embedder == "two"
    assert plain(await known.embed(["a"])) == [[1, 2]] and letters.asked[2:] == ["ccc", "a"]


async def test_what_another_one_is_asking_for_is_waited_for_and_asked_for_again_if_he_fails() -> None:
    letters = Letters(failing=1)
    letters.go.clear()
    known = Remembering(letters)
    first, second = (asyncio.create_task(known.embed(texts)) for texts in (["a"], ["a", "bb"]))
    await eventually(lambda: letters.asked == ["a", "bb"], "each text is asked for once")
    letters.go.set()
    assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], Later)
    assert plain(await second) == [[1, 1], [2, 1]] and letters.asked == ["a", "bb", "a"]


async def test_who_is_cancelled_while_asking_leaves_nobody_waiting() -> None:
    letters = Letters()
    letters.go.clear()
    known = Remembering(letters)
    first, second = (asyncio.create_task(known.embed(["a"])) for _ in range(2))
    await eventually(lambda: letters.asked == ["a"], "one asks for both")
    first.cancel()
    letters.go.set()
    assert plain(await second) == [[1, 1]]
