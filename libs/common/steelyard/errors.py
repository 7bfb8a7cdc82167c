"""The few words an error may be. Anything else that is raised is a bug and ends in the dead letters."""


class Later(Exception):
    """Not now: a dependency is away or a limit is reached. The message waits and is tried again.

    `counts` is False where waiting is nobody's failed attempt: a rate limit, a judge that is to be upgraded.
    """

    def __init__(self, reason: str, after: float | None = None, counts: bool = True) -> None:
        super().__init__(reason)
        self.after, self.counts = after, counts


class Never(Exception):
    """Not ever: unreadable or refused. Trying again would fail the same way."""
