"""The few words an error may be. Anything else that is raised is a bug and ends in the dead letters."""


class Later(Exception):
    """Not now: a dependency is away or a limit is reached. The message waits and is tried again."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Never(Exception):
    """Not ever: unreadable or refused. Trying again would fail the same way."""
