"""Which exceptions of a model mean that something it asks is away."""

import urllib.error
from email.message import Message

import pytest
import requests
import urllib3

from worker.transient import what_is_away


def answered(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("no", response=response)


class GatewayError(Exception):
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


def caused_by(cause: BaseException) -> Exception:
    try:
        raise RuntimeError("the features are not there") from cause
    except RuntimeError as exc:
        return exc


def while_handling(other: Exception) -> Exception:
    try:
        try:
            raise other
        except type(other):
            raise ValueError("the fallback does not like the row")  # noqa: B904
    except ValueError as exc:
        return exc


@pytest.mark.parametrize(
    ("exc", "away"),
    [
        (answered(429), "HTTPError, HTTP 429"),
        (answered(503), "HTTPError, HTTP 503"),
        (GatewayError(500), "GatewayError, HTTP 500"),
        (urllib.error.HTTPError("http://x", 502, "bad gateway", Message(), None), "HTTPError, HTTP 502"),
        (ConnectionRefusedError(), "ConnectionRefusedError"),
        (TimeoutError(), "TimeoutError"),
        (requests.ConnectionError(), "ConnectionError"),
        (requests.ReadTimeout(), "ReadTimeout"),
        (urllib3.exceptions.NewConnectionError(None, "no"), "NewConnectionError"),  # type: ignore[arg-type]
        (caused_by(answered(429)), "HTTPError, HTTP 429"),
        (caused_by(caused_by(ConnectionResetError())), "ConnectionResetError"),
        (answered(404), None),
        (answered(422), None),
        (GatewayError(400), None),
        (ValueError("429"), None),
        (OSError(5, "disk"), None),
        (MemoryError(), None),
        (caused_by(ValueError()), None),
        (while_handling(ConnectionError()), None),
    ],
)
def test_what_is_away(exc: BaseException, away: str | None) -> None:
    assert what_is_away(exc) == away
