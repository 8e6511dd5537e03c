"""This machine's settings: the environment, and where that says nothing, what a running `pyfunq up` offers."""

import os
from typing import Any

from pydantic import ValidationError

from pyfunq.errors import NotConfigured
from pyfunq.settings import Settings

_ADDRESSES = ("database_url", "redis_url", "mlflow_tracking_uri")


def load_settings(**overrides: Any) -> Settings:
    """For programs' entry points. Raises NotConfigured naming the variable that cannot be used."""
    settings = read_settings(**overrides)
    missing = [name for name in _ADDRESSES if getattr(settings, name) is None]
    if not missing:
        return settings
    from pyfunq.local.state import read_endpoints

    offered = read_endpoints(settings.home)
    found = {name: offered[name] for name in missing if name in offered}
    return read_settings(**overrides, **found) if found else settings


def read_settings(**overrides: Any) -> Settings:
    """The environment alone."""
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "?"
        name = field if field.isupper() else f"PYFUNQ_{field.upper()}"
        raise NotConfigured(f"{name}: {first['msg']}") from None


def child_environment(settings: Settings) -> dict[str, str]:
    """This process's environment with what `settings` say that options can, for programs that it starts."""
    said = {
        "PYFUNQ_HOME": str(settings.home),
        "PYFUNQ_DATABASE_URL": settings.database,
        "PYFUNQ_REDIS_URL": settings.redis,
        "MLFLOW_TRACKING_URI": settings.mlflow,
        "PYFUNQ_FALLBACK_LATEST": str(settings.fallback_latest),
    }
    return {**os.environ, **said}
