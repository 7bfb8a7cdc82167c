"""The README's table of settings is the settings."""

from pydantic import SecretStr

from steelyard.settings import Settings
from steelyard_local.map import README


def test_every_setting_is_in_the_readme_with_its_default_and_its_meaning() -> None:
    page = README.read_text()
    for name, field in Settings.model_fields.items():
        default = field.default
        secret = "a laptop's" if isinstance(default, SecretStr) else None
        shown = secret or ("–" if default in (None, "") else f"`{default}`")
        assert f"| `{name.upper()}` | {shown} | {field.description} |" in page, name
