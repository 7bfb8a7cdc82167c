"""Vectors of texts that were asked for lately: a session's outputs are compared with each other, so each is needed often."""

import asyncio
import hashlib
from array import array
from collections.abc import Mapping, Sequence

from steelyard.metrics.judging import Embedded
from steelyard_judge.embeddings import Embedder
from steelyard_judge.usage import Usage

MOST = 4000


class Remembering:
    """Before any embedder. It saves time and, of an API, money; a vector that was forgotten is asked for again, and one
    that is under way is waited for."""

    def __init__(self, embedder: Embedder, most: int = MOST) -> None:
        self._embedder, self._most = embedder, most
        self._known: dict[bytes, Sequence[float]] = {}
        self._asked: dict[bytes, asyncio.Future[None]] = {}
        self._who = Embedded((), "")

    async def identity(self) -> str:
        return await self._embedder.identity()

    async def start(self) -> None:
        await self._embedder.start()

    async def stop(self) -> None:
        await self._embedder.stop()

    async def unwell(self) -> str | None:
        return await self._embedder.unwell()

    async def embed(self, texts: Sequence[str], usage: Usage | None = None) -> Embedded:
        by_key = {hashlib.blake2b(t.encode("utf-8", "replace"), digest_size=16).digest(): t for t in texts}
        keys = {text: key for key, text in by_key.items()}
        found: dict[bytes, Sequence[float]] = {}
        who = self._who
        while len(found) < len(by_key):
            found |= {key: self._known[key] for key in by_key if key in self._known}
            missing = [key for key in by_key if key not in found]
            under_way = [self._asked[key] for key in missing if key in self._asked]
            mine = [key for key in missing if key not in self._asked]
            if mine:
                found |= await self._ask({key: by_key[key] for key in mine}, usage)
            elif under_way:
                await asyncio.wait(under_way)  # what its asker could not get is asked for here
            if who is not self._who:
                # What is compared must come from one embedder: the fallback took over, or the other way round.
                who, found = self._who, {key: v for key, v in found.items() if key in self._known}
        self._remember(found)
        return Embedded(tuple(found[keys[text]] for text in texts), who.embedder, who.calibration)

    async def _ask(self, unknown: Mapping[bytes, str], usage: Usage | None) -> dict[bytes, Sequence[float]]:
        loop = asyncio.get_running_loop()
        self._asked |= {key: loop.create_future() for key in unknown}
        try:
            fresh = await self._embedder.embed(list(unknown.values()), usage)
            if (fresh.embedder, fresh.calibration) != (self._who.embedder, self._who.calibration):
                self._known, self._who = {}, Embedded((), fresh.embedder, fresh.calibration)
            found: dict[bytes, Sequence[float]] = dict(
                zip(unknown, (array("d", vector) for vector in fresh.vectors), strict=True)
            )
            self._remember(found)
            return found
        finally:
            for key in unknown:
                self._asked.pop(key).set_result(None)

    def _remember(self, found: Mapping[bytes, Sequence[float]]) -> None:
        """The latest last; the first ones are forgotten."""
        for key, vector in found.items():
            self._known.pop(key, None)
            self._known[key] = vector
        while len(self._known) > self._most:
            del self._known[next(iter(self._known))]
