"""What a client was asked for: the settings it has, and whether it goes over HTTP."""

from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from pyfunq.settings import Settings


def settings_of(
    settings: Settings | None, base_url: str | None, api_key: str | None, overrides: Mapping[str, Any]
) -> Settings:
    """The settings of a client that was asked for like this."""
    said = dict(overrides)
    if base_url is not None:
        said["api_url"] = base_url
    if api_key is not None:
        said["api_key"] = SecretStr(api_key)
    if settings is None:
        return Settings(**said)
    return settings.model_copy(update=said) if said else settings


def asks_for_http(settings: Settings | None, base_url: str | None, overrides: Mapping[str, Any]) -> bool:
    """Whether there is an API's address, and no database's beside it unless the former was given here."""
    if base_url is not None:
        return True
    known = settings_of(settings, None, None, overrides)
    return known.api_url is not None and known.database_url is None
