"""The README's table of settings is the settings."""

import re

from pydantic import SecretStr

from steelyard.settings import Settings
from steelyard_local.map import README

ROW = re.compile(r"^\| `([A-Z_]+)` \|", re.MULTILINE)


def test_every_setting_is_in_the_readme_with_its_default_and_its_meaning() -> None:
    page = README.read_text()
    for name, field in Settings.model_fields.items():
        default = field.default
        secret = "a laptop's" if isinstance(default, SecretStr) else None
        shown = secret or ("–" if default in (None, "") else f"`{default}`")
        assert f"| `{name.upper()}` | {shown} | {field.description} |" in page, name


def test_the_readme_names_no_setting_that_is_gone() -> None:
    _, _, table = README.read_text().partition("## Configuration")
    assert ROW.findall(table) == [name.upper() for name in Settings.model_fields]


def test_the_readme_shows_no_default_of_a_secret() -> None:
    page = README.read_text()
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, SecretStr):
            assert field.default.get_secret_value() not in page, name
