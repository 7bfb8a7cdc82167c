"""What a migration must not do while requests are served, seen in the statements that it sends."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

STRONG = "takes a lock that requests wait for"
# By what a statement begins with, and what else is in it: why it is refused where it is about a table with rows.
RULES = (
    (r"CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)", "", "builds an index while writers wait: online.build_index"),
    (r"REINDEX (?!.*CONCURRENTLY)|CLUSTER|VACUUM FULL|TRUNCATE|LOCK TABLE", "", f"{STRONG} for as long as it lasts"),
    (r"ALTER TABLE", r"ADD COLUMN (?!.*DEFAULT).*NOT NULL", "a column that old rows and old writers lack"),
    (r"ALTER TABLE", r"(FOREIGN KEY|REFERENCES|CHECK)(?!.*NOT VALID)", "reads all rows: add it NOT VALID"),
    (
        r"ALTER TABLE",
        r"ADD .*(UNIQUE|PRIMARY KEY)(?!.*USING INDEX)",
        "builds an index: build it first, then USING INDEX",
    ),
    (r"ALTER TABLE", r"SET NOT NULL", "reads all rows: a CHECK that was validated does the same"),
    (r"ALTER TABLE", r"ALTER COLUMN .* TYPE", "may write the table anew"),
    (r"ALTER TABLE", r"VALIDATE CONSTRAINT", "reads all rows: online.own_transactions"),
    (r"ALTER TABLE", r"SET (LOGGED|UNLOGGED|TABLESPACE|ACCESS METHOD)", "writes the table anew"),
    (
        r"(WITH|INSERT|UPDATE|DELETE|SELECT|MERGE)\b",
        "",
        "reads or writes rows: online.fill, or online.own_transactions",
    ),
)
# What may take its time outside of the migration's transaction: it holds no lock that a request waits for.
LONG = ("VALIDATE CONSTRAINT", "WITH", "INSERT", "UPDATE", "DELETE", "SELECT", "MERGE")


@dataclass(frozen=True)
class Sent:
    statement: str
    by_itself: bool  # in a transaction of its own


def refusals(sent: Sequence[Sent], existing: Collection[str]) -> list[str]:
    """One sentence for each statement that stops requests on the tables that were there before."""
    return [f"{why}: {_plain(s.statement)[:150]}" for s in sent for why in _refused(s, existing)]


def _refused(sent: Sent, existing: Collection[str]) -> Iterator[str]:
    statement = _plain(sent.statement)
    if not _named(statement) & set(existing):
        return
    for begins, holds, why in RULES:
        if re.match(begins, statement) and re.search(holds, statement):
            if sent.by_itself and (statement.startswith(LONG) or "VALIDATE CONSTRAINT" in statement):
                continue
            yield why


def _plain(statement: str) -> str:
    """In one line, its words in capitals; the body of a function says nothing about now."""
    words = re.sub(r"\$\$.*\$\$", "", statement, flags=re.DOTALL).replace('"', "")
    return " ".join(words.split()).upper()


def _named(statement: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z_][A-Z_0-9]*", statement)}
