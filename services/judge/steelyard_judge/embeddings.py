"""Vectors for texts: from a child process by default, from an API where one is configured."""

import asyncio
import contextlib
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson

from steelyard.errors import Later
from steelyard.metrics.judging import Embedded
from steelyard.tasks import ended
from steelyard_judge.model import Gateway
from steelyard_judge.usage import Usage

LOCAL = (None, "local/use-multilingual-v3", "local/ngram-hash-v1")
MOST_AT_ONCE = 64
CHILD_SECONDS = 60


class Embedder(Protocol):
    async def embed(self, texts: Sequence[str], usage: Usage | None = None) -> Embedded: ...

    async def identity(self) -> str:
        """What decides a vector beside its text: those of two identities are not compared."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def unwell(self) -> str | None: ...


class LocalEmbedder:
    """One child, one question at a time: texts that wait meanwhile are asked for together."""

    def __init__(self, model: str | None = None, environ: Mapping[str, str] = os.environ) -> None:
        """`environ` is what its child is given, and where it finds its encoder by."""
        if model not in LOCAL:
            raise ValueError(f"EMBEDDING_MODEL={model}: local embedders are {', '.join(filter(None, LOCAL))}")
        self._model, self._environ = model, environ
        self._child: asyncio.subprocess.Process | None = None
        self._who: dict[str, Any] = {}
        self._waiting: list[tuple[Sequence[str], asyncio.Future[Embedded]]] = []
        # A task of its own asks: a conversation that is cancelled takes no answer from the others.
        self._asking: asyncio.Task[None] | None = None

    async def identity(self) -> str:
        """Known from its first vectors: which encoder there is, is found out by loading it."""
        if not self._who:
            await self.embed(["a"])
        return f"{self._who['embedder']} {self._who['calibration']}"

    async def start(self) -> None:
        """Started with its first question: most of its second is loading the model."""

    async def stop(self) -> None:
        if self._asking is not None:
            await ended([self._asking])
        for _, answer in self._waiting:  # nobody is left to ask for them
            if not answer.done():
                answer.set_exception(Later("the embedder stops"))
        self._waiting = []
        if self._child is not None and self._child.returncode is None:
            assert self._child.stdin is not None
            self._child.stdin.close()
            try:
                async with asyncio.timeout(3):
                    await self._child.wait()
            except TimeoutError:
                self._child.kill()
                await self._child.wait()

    async def unwell(self) -> str | None:
        return None

    async def embed(self, texts: Sequence[str], usage: Usage | None = None) -> Embedded:
        answer: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()
        self._waiting.append((texts, answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_all())
        return await answer

    async def _ask_all(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
            asked = [(texts, answer) for texts, answer in asked if not answer.done()]
            try:
                vectors = await self._answered([t for texts, _ in asked for t in texts])
            except BaseException as e:
                await self._kill()  # half an answer may be in the pipe: the next question gets a new child
                for _, answer in asked:
                    if not answer.done():
                        answer.set_exception(Later(f"the embedder gave no vectors ({type(e).__name__})"))
                if isinstance(e, asyncio.CancelledError):
                    raise
                continue
            a, b = self._who["calibration"]
            for texts, answer in asked:
                some, vectors = vectors[: len(texts)], vectors[len(texts) :]
                if not answer.done():
                    answer.set_result(Embedded(tuple(some), self._who["embedder"], (a, b)))

    async def _answered(self, texts: Sequence[str]) -> list[list[float]]:
        """A child that died is replaced, once: a text that kills two of them would kill a third."""
        try:
            async with asyncio.timeout(CHILD_SECONDS):
                return await self._vectors(texts)
        except (asyncio.IncompleteReadError, ConnectionError):
            await self._kill()
            async with asyncio.timeout(CHILD_SECONDS):
                return await self._vectors(texts)

    async def _kill(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
            await self._child.wait()

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
            environment = dict(self._environ) | ({"EMBEDDING_MODEL": self._model} if self._model else {})
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

    async def identity(self) -> str:
        return f"{self._model} {self._gateway.settings.judge_base_url}"

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def unwell(self) -> str | None:
        return None

    async def embed(self, texts: Sequence[str], usage: Usage | None = None) -> Embedded:
        """What it costs is added to `usage`."""
        short = [t[:24_000] for t in texts]
        with contextlib.suppress(ValueError):
            return Embedded(await self._gateway.embed(self._model, short, usage or Usage()), self._model)
        raise Later(f"{self._model} answered without vectors")
