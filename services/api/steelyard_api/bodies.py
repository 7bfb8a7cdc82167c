"""A body's bytes on their way in: unzipped and counted piece by piece, before any of it becomes a Python object."""

import zlib
from collections.abc import Iterator
from itertools import accumulate

from starlette.exceptions import HTTPException

from steelyard_api.errors import Refused

PIECE = 65_536
MOST_MEMBERS = 16
MOST_VALUES = 200_000  # of one body: what it costs to read them is tens of milliseconds
DEEPEST = 250  # of one body; `shapes.py` has the limit of a field, which is lower
_STRUCTURE = b'"[]{},'
_REST = bytes(sorted(set(range(256)) - set(_STRUCTURE)))
_OUTSIDE_REST = b","
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class TooLarge(HTTPException):
    """An HTTPException, because FastAPI turns whatever else reading a body raises into a 400."""

    def __init__(self, most: int) -> None:
        said = f"The body is larger than {most // 1_000_000} MB (MAX_BODY_MB)"
        super().__init__(413, said, {"Connection": "close"})


class TooMany(HTTPException):
    def __init__(self) -> None:
        super().__init__(413, f"The body has more than {MOST_VALUES} JSON values", {"Connection": "close"})


class Scan:
    """Counts the values of a JSON text and how deep they are, in C, whichever way the text is cut.

    A value follows a comma or an opening bracket, so there are at most as many as of these, and one. Exact is this for
    whatever is JSON; of what is not, the parser reads no further than to its first wrong byte, and up to there it is exact
    too."""

    def __init__(self) -> None:
        self.values, self.depth = 1, 0
        self._quoted = self._escaped = False

    def feed(self, piece: bytes) -> None:
        outside = self._outside(piece)
        brackets = outside.translate(None, _OUTSIDE_REST)
        opened = brackets.count(b"[") + brackets.count(b"{")
        self.values += len(outside) - len(brackets) + opened
        if self.values > MOST_VALUES:
            raise TooMany
        levels = list(accumulate(map(_STEP.__getitem__, brackets), initial=self.depth))
        self.depth = levels[-1]
        if max(levels) > DEEPEST:
            raise Refused(422, "Validation error", ("body", f"is nested deeper than {DEEPEST} levels"))

    def _outside(self, piece: bytes) -> bytes:
        """Brackets and commas that are not inside a string. Escapes go first, in pairs from the left, as they are read."""
        if not piece:
            return piece
        if self._escaped:
            piece = piece[1:]
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"")
            self._escaped = piece.endswith(b"\\")
            piece = piece.replace(b'\\"', b"")
        else:
            self._escaped = False
        parts = piece.translate(None, _REST).split(b'"')
        outside = b"".join(parts[self._quoted :: 2])
        self._quoted ^= len(parts) % 2 == 0
        return outside


class Plain:
    """A body that is not packed."""

    usual = 1  # how many times larger it becomes

    def feed(self, piece: bytes) -> Iterator[bytes]:
        yield piece

    def end(self) -> None: ...


class Gzip:
    """Every member of the file, whole, in pieces of which none is larger than PIECE."""

    usual = 10

    def __init__(self) -> None:
        self._member: zlib._Decompress | None = None
        self._members = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        while piece:
            if self._member is None:
                self._member = self._next()
            try:
                unpacked = self._member.decompress(piece, PIECE)
            except zlib.error as e:
                raise _not_gzip("it does not begin as gzip does, or is damaged") from e
            piece = self._member.unconsumed_tail
            if self._member.eof:
                piece, self._member = self._member.unused_data, None
            yield unpacked

    def end(self) -> None:
        if self._member is not None:
            raise _not_gzip("it ends too early")

    def _next(self) -> "zlib._Decompress":
        self._members += 1
        if self._members > MOST_MEMBERS:
            raise _not_gzip(f"it has more than {MOST_MEMBERS} members")
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)


def pieces(chunk: bytes) -> Iterator[bytes]:
    return (chunk[n : n + PIECE] for n in range(0, len(chunk), PIECE))


def _not_gzip(why: str) -> Refused:
    return Refused(422, "Validation error", ("body", f"is not gzip, as its Content-Encoding says: {why}"))
