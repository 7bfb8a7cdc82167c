"""Messages that a released version has sent, byte for byte: every later version must read them.

A release that changes an event adds a file; no file is ever changed.
"""

from pathlib import Path

import pytest

from steelyard.events import KINDS, decode

FILES = sorted(Path(__file__).parent.glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_released_message_is_still_read(file: Path) -> None:
    event = decode(file.read_bytes())
    assert type(event).__name__ == file.stem.split("-")[0]
    assert event.key()
    assert decode(event.encode()) == event


def test_every_event_has_its_released_messages() -> None:
    assert {f.stem for f in FILES} >= {f"{kind.__name__}-v{kind.version}" for kind in KINDS.values()}
