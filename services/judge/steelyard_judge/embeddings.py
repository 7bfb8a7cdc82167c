"""Vectors for texts: from a child process by default, from an API where one is configured."""

import asyncio
import contextlib
import os
import struct
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from steelyard.errors import Later
from steelyard.metrics.judging import Embedded
from steelyard_judge.model import Gateway


class Embedder(Protocol):
    async def embed(self, texts: Sequence[str]) -> Embedded: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def unwell(self) -> str | None: ...


class LocalEmbedder:
    """One child, one question at a time: texts that wait meanwhile are asked for together."""

    def __init__(self, model: str | None = None) -> None:
        self._model = model
        self._child: asyncio.subprocess.Process | None = None
        self._who: dict[str, Any] = {}
        self._turn = asyncio.Lock()
        self._waiting: list[tuple[Sequence[str], asyncio.Future[Embedded]]] = []

    async def start(self) -> None:
        """Started with its first question: most of its second is loading the model."""

    async def stop(self) -> None:
        if self._child is not None and self._child.returncode is None:
            assert self._child.stdin is not None
            self._child.stdin.close()
            try:
                await asyncio.wait_for(self._child.wait(), 3)
            except TimeoutError:
                self._child.kill()
                await self._child.wait()

    async def unwell(self) -> str | None:
        return None

    async def embed(self, texts: Sequence[str]) -> Embedded:
        answer: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()
        self._waiting.append((texts, answer))
        async with self._turn:
            if not answer.done():
                await self._ask(self._waiting[:64])
        return await answer

    async def _ask(self, asked: list[tuple[Sequence[str], "asyncio.Future[Embedded]"]]) -> None:
        del self._waiting[: len(asked)]
        try:
            vectors = await asyncio.wait_for(self._vectors([t for texts, _ in asked for t in texts]), 60)
        except BaseException as e:
            # Half an answer may be in the pipe: the next question gets a new child.
            if self._child is not None and self._child.returncode is None:
                self._child.kill()
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(Later("the embedder ended in the middle of a question"))
                    answer.exception()
            if isinstance(e, asyncio.CancelledError):
                raise
            return
        for texts, answer in asked:
            some, vectors = vectors[: len(texts)], vectors[len(texts) :]
            if not answer.done():
                a, b = self._who["calibration"]
                answer.set_result(Embedded(tuple(some), self._who["embedder"], (a, b)))

    async def _vectors(self, texts: Sequence[str]) -> list[list[float]]:
        child = await self._running()
        assert child.stdin is not None
        body = orjson.dumps([t.encode("utf-8", "replace").decode() for t in texts])
        child.stdin.write(struct.pack(">I", len(body)) + body)
        await child.stdin.drain()
        answer = await self._frame(child)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        vectors: list[list[float]] = answer["vectors"]
        return vectors

    async def _running(self) -> asyncio.subprocess.Process:
        if self._child is None or self._child.returncode is not None:
            environment = dict(os.environ) | ({"EMBEDDING_MODEL": self._model} if self._model else {})
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "steelyard_judge.embedder_process",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment,
            )
            self._who = await self._frame(self._child)
        return self._child

    async def _frame(self, child: asyncio.subprocess.Process) -> dict[str, Any]:
        assert child.stdout is not None
        (size,) = struct.unpack(">I", await child.stdout.readexactly(4))
        frame: dict[str, Any] = orjson.loads(await child.stdout.readexactly(size))
        return frame


class ApiEmbedder:
    """A provider's embeddings; the documented formulas hold as they are, so nothing is calibrated."""

    def __init__(self, gateway: Gateway, model: str) -> None:
        self._gateway, self._model = gateway, model

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def unwell(self) -> str | None:
        return None

    async def embed(self, texts: Sequence[str]) -> Embedded:
        with contextlib.suppress(ValueError):
            return Embedded(await self._gateway.embed(self._model, [t[:24_000] for t in texts]), self._model)
        raise Later(f"{self._model} answered without vectors")
