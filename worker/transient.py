"""Which of the exceptions that a model raises say that something it asks is away or overloaded for the moment."""

from collections.abc import Iterator

# By name, so that none of these libraries need be installed: classes that say "no connection" or "no answer in time".
_CLASSES = frozenset(
    {
        ("requests.exceptions", "ConnectionError"),
        ("requests.exceptions", "Timeout"),
        ("httpx", "TransportError"),
        ("aiohttp.client_exceptions", "ClientConnectionError"),
        ("urllib3.exceptions", "HTTPError"),
        ("botocore.exceptions", "ConnectionError"),
        ("botocore.exceptions", "HTTPClientError"),
        ("openai", "APIConnectionError"),
        ("grpc._channel", "_InactiveRpcError"),
    }
)
_LONGEST_CHAIN = 10


def what_is_away(exc: BaseException) -> str | None:
    """Type and, where there is one, HTTP status of the transient error behind an exception; None if there is none."""
    for cause in _chain(exc):
        status = _status(cause)
        if status is not None:
            return f"{type(cause).__name__}, HTTP {status}" if status in (408, 425, 429) or status >= 500 else None
        if isinstance(cause, ConnectionError | TimeoutError) or _CLASSES & set(_names(cause)):
            return type(cause).__name__
    return None


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from; what was merely being handled does not count."""
    cause: BaseException | None = exc
    for _ in range(_LONGEST_CHAIN):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def _status(exc: BaseException) -> int | None:
    """As requests, httpx, aiohttp, urllib, openai, boto and MLflow's gateway client keep it."""
    response = getattr(exc, "response", None)
    for holder, name in ((exc, "status_code"), (response, "status_code"), (exc, "status"), (exc, "code")):
        value = getattr(holder, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and 100 <= value < 600:
            return value
    return None


def _names(exc: BaseException) -> Iterator[tuple[str, str]]:
    for kind in type(exc).__mro__:
        module = kind.__module__
        yield module, kind.__name__
        yield module.partition(".")[0], kind.__name__
