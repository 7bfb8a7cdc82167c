"""How far one partition is done: the contiguous finished work, and what is finished beyond it."""

import base64
import binascii
from collections import deque
from collections.abc import Iterable
from uuid import UUID

# Before a note: its format. Of the first one, which named no incarnation, notes may still be there after an upgrade.
NAMELESS = "1:"
MARK = "2:"


class Progress:
    """Pure bookkeeping. Only offsets that were really delivered are counted: a log may have gaps."""

    def __init__(self, remembered: Iterable[int] = (), position: int | None = None) -> None:
        """`position` is where it goes on; None where the log's first record is waited for."""
        self.position = position
        self._remembered = set(remembered)
        self._taken: deque[int] = deque()
        self._done: set[int] = set()

    def take(self, offset: int) -> bool:
        """True where the record is to be worked on, False where an earlier owner had finished it already."""
        if self.position is not None and offset < self.position:
            return False
        self._taken.append(offset)
        self.position = offset + 1
        if offset in self._remembered:
            self._remembered.discard(offset)
            self.finish(offset)
            return False
        return True

    def finish(self, offset: int) -> None:
        self._done.add(offset)
        while self._taken and self._taken[0] in self._done:
            self._done.discard(self._taken.popleft())

    @property
    def watermark(self) -> int | None:
        """Everything before it is finished; None while nothing was delivered."""
        return self._taken[0] if self._taken else self.position

    @property
    def span(self) -> int:
        return (self.position or 0) - (self.watermark or 0)

    def note(self, incarnation: UUID | None = None) -> str:
        """What is finished at and beyond the watermark, small enough for the metadata of a commit; and of which
        incarnation of the topic it speaks, as its offset does."""
        low = self.watermark or 0
        beyond = self._done | {o for o in self._remembered if o >= low}
        bits = bytearray((max(beyond) - low) // 8 + 1 if beyond else 0)
        for offset in beyond:
            bits[(offset - low) // 8] |= 1 << (offset - low) % 8
        return f"{MARK}{incarnation.hex if incarnation else ''}:{base64.b64encode(bytes(bits)).decode()}"


def remembered(committed: int, note: str | None) -> set[int]:
    """The offsets in a note; one that cannot be read is an empty one: work is repeated, never lost."""
    if not note or not note.startswith((MARK, NAMELESS)):
        return set()
    try:
        bits = base64.b64decode(note.rpartition(":")[2], validate=True)
    except (binascii.Error, ValueError):
        return set()
    return {committed + 8 * i + b for i, byte in enumerate(bits) for b in range(8) if byte >> b & 1}


def incarnation_of(note: str | None) -> UUID | None:
    """Of which incarnation of the topic a commit speaks; None where it does not say."""
    if not note or not note.startswith(MARK):
        return None
    try:
        return UUID(hex=note.split(":")[1])
    except ValueError:
        return None
