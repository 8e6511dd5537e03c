"""What callers call a model: a registered model's name, a part of a URI, or a URI; as one model URI."""

from collections.abc import Sequence
from functools import lru_cache

from pyfunq.errors import InvalidModelURI, ModelNotAllowed
from pyfunq.model_uri import ModelURI, check_allowed, parse_model_uri


def uri_of(model: str, version: str | None = None) -> str:
    """`iris`, `iris/3`, `iris/Production`, `iris@champion` or a URI; a bare name is its latest version.

    Not checked; `version` goes with a bare name.
    """
    if ":" in model:
        return model
    if version is not None:
        return f"models:/{model}/{version}"
    return f"models:/{model}" if "/" in model or "@" in model else f"models:/{model}/latest"


@lru_cache(4096)
def parsed(model: str) -> ModelURI:
    """Raises InvalidModelURI, also for paths and URLs: that these are never loaded is nobody's secret."""
    try:
        return parse_model_uri(model)
    except ModelNotAllowed as exc:
        raise InvalidModelURI(exc.message) from None


@lru_cache(4096)
def allowed(model: str, patterns: tuple[str, ...]) -> ModelURI:
    """Raises InvalidModelURI, and ModelNotAllowed for what the operator's patterns do not take."""
    uri = parsed(model)
    check_allowed(uri, patterns)
    return uri


def is_among(uri: str, patterns: Sequence[str]) -> bool:
    """Whether patterns of an API key take a model URI; none: all."""
    if not patterns:
        return True
    try:
        check_allowed(parsed(uri), patterns)
    except (ModelNotAllowed, InvalidModelURI):
        return False
    return True
