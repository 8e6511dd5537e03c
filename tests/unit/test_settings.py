"""Settings: what the environment gives, what it must not, and that the documentation knows them all."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from pyfunq.environment import read_settings
from pyfunq.errors import NotConfigured
from pyfunq.settings import Settings

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def variable(field: str) -> str:
    return "MLFLOW_TRACKING_URI" if field == "mlflow_tracking_uri" else f"PYFUNQ_{field.upper()}"


def documented() -> dict[str, str]:
    rows = (line.split("|") for line in DOCS.read_text().splitlines() if line.startswith("| `"))
    return {row[1].strip(" `"): row[2].strip(" `") for row in rows}


def test_the_documentation_has_every_setting_and_its_default() -> None:
    table = documented()
    assert set(table) == {variable(field) for field in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            assert float(table[variable(name)]) == field.default, name


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFUNQ_ALLOWED_MODELS", "models:/iris*, runs:/*")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("PYFUNQ_DATABASE_URL", "postgresql://u:p@h/d")
    settings = read_settings()
    assert settings.allowed_models == ("models:/iris*", "runs:/*")
    assert (settings.mlflow, settings.database) == ("http://mlflow:5000", "postgresql://u:p@h/d")


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_settings(
        database_url="postgresql://u:hidden@h/d", redis_url="redis://:hidden@h", flower_password="hidden"
    )
    assert "hidden" not in repr(settings) + str(settings.model_dump())


def test_what_is_missing_or_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotConfigured, match="PYFUNQ_REDIS_URL is not set"):
        _ = read_settings().redis
    monkeypatch.setenv("PYFUNQ_CHUNK_ROWS", "0")
    with pytest.raises(NotConfigured, match="PYFUNQ_CHUNK_ROWS"):
        read_settings()


def test_a_copy_with_another_address_uses_it() -> None:
    settings = read_settings(database_url="postgresql://one/d")
    assert settings.database == "postgresql://one/d"
    assert settings.model_copy(update={"mlflow_tracking_uri": "http://two"}).mlflow == "http://two"
    with pytest.raises(ValidationError):
        settings.chunk_rows = 3  # type: ignore[misc]
