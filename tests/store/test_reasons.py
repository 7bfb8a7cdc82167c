"""What logs and dead letters say of an error: enough to act on, and no user's words."""

import logging
from uuid import UUID

import pytest
from pydantic import BaseModel, ValidationError
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from addresses import Urls
from steelyard.reasons import reason, stack
from steelyard.store.database import Database
from steelyard.telemetry import start_logging

WORD = "canaryword"


class Strict(BaseModel):
    number: int


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("INSERT INTO organizations (id, name) VALUES (:id, :word), (:id, :word)", "organizations_pkey"),
        ("INSERT INTO organizations (id, name) VALUES (:id, CAST('no number' || CAST(:word AS text) AS int))", "22P02"),
        ("SELECT CAST(CAST(:word AS text) AS uuid), CAST(:id AS uuid)", "22P02"),
        ("SELECT CAST(:word AS int), CAST(:id AS uuid)", "DataError (22000)"),
    ],
)
async def test_a_refused_statement_is_told_without_its_values(urls: Urls, statement: str, says: str) -> None:
    database = Database(urls.owner)
    with pytest.raises(Exception) as refused:
        async with database.begin() as tx:
            await tx.execute(text(statement), {"id": UUID(int=7), "word": WORD})
    await database.stop()
    assert says in reason(refused.value)
    assert WORD not in reason(refused.value) + stack(refused.value)


async def test_what_is_about_the_system_is_told_in_its_own_words(database: Database) -> None:
    with pytest.raises(ProgrammingError) as refused:
        async with database.begin() as tx:
            await tx.execute(text("SELECT nonesuch, CAST(:word AS text)"), {"word": WORD})
    assert reason(refused.value) == 'UndefinedColumnError (42703): column "nonesuch" does not exist'
    assert WORD not in str(refused.value), "parameters are hidden in the error's own text too"


def test_an_exceptions_own_text_is_no_reason() -> None:
    with pytest.raises(ValidationError) as invalid:
        Strict.model_validate({"number": WORD})
    assert reason(invalid.value).startswith("ValidationError at ") and WORD not in reason(invalid.value)
    assert reason(ConnectionRefusedError(111, "refused")) == "ConnectionRefusedError: [Errno 111] refused"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_has_the_place_of_a_bug_and_not_its_text(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        start_logging("INFO", form)
        try:
            try:
                raise KeyError(WORD)
            except KeyError as e:
                raise ExceptionGroup("several", [ValueError(WORD), e]) from e
        except ExceptionGroup:
            logging.getLogger("any").exception("it failed")
    finally:
        root.handlers[:], root.level = before
    logged = capsys.readouterr().err
    assert "builtins.ValueError" in logged and "test_reasons.py" in logged and WORD not in logged
