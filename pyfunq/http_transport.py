"""Requests to a PyFunQ API: over kept connections, tried again where that is safe, with typed errors."""

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from pyfunq import __version__
from pyfunq.errors import AcceptanceUnknown, ApiUnavailable, NotConfigured, PyFunQError
from pyfunq.http_wire import error_of, parsed

Body = bytes | Callable[[], AsyncIterator[bytes]]
"""Whole, or how to begin with it (again)."""

_ATTEMPTS = 8
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 8.0
_LONGEST_HINT_SECONDS = 60.0
_CONNECT_SECONDS, _READ_SECONDS = 5.0, 60.0
_CONNECTIONS, _KEPT_CONNECTIONS, _KEPT_SECONDS = 100, 100, 60.0
_MAY_PASS = frozenset({429, 502, 503, 504})
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@cache
def trusted() -> ssl.SSLContext:
    """The certificates that httpx trusts by default, which take 45 ms to read: once a process, not once a client."""
    return httpx.create_ssl_context()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request."""

    method: str
    path: str
    params: Mapping[str, str] | None = None
    headers: Mapping[str, str] | None = None
    body: Body = b""
    repeatable: bool = True
    """Whether asking twice does what asking once does."""
    accepts: bool = False
    """Whether its success is that jobs were accepted: after a broken connection nobody can say."""
    wait_seconds: float = 0.0
    """For so long the answer may be held back."""
    deadline: float | None = None
    """By `time.monotonic`: no other try begins after it."""


class Transport:
    """Belongs to the event loop that entered it."""

    def __init__(self, url: str, key: str | None) -> None:
        """Raises NotConfigured for what is no URL, or no key."""
        self._url = _checked_url(url)
        self._headers = {"User-Agent": f"pyfunq/{__version__}", "Accept": "application/json"}
        if key is not None:
            if not key.isascii() or not key.isprintable() or not key:
                raise NotConfigured("PYFUNQ_API_KEY holds characters that no API key has")
            self._headers["Authorization"] = f"Bearer {key}"

    async def __aenter__(self) -> Self:
        limits = httpx.Limits(
            max_connections=_CONNECTIONS,
            max_keepalive_connections=_KEPT_CONNECTIONS,
            keepalive_expiry=_KEPT_SECONDS,
        )
        self._http = httpx.AsyncClient(base_url=self._url, headers=self._headers, limits=limits, verify=trusted())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, ask: Ask) -> httpx.Response:
        """A success. Raises what the API's problem says, ApiUnavailable, AcceptanceUnknown or WrongApi."""
        unknown = False
        attempts = _ATTEMPTS if ask.repeatable else 1
        for attempt in range(1, attempts + 1):
            hint = 0.0
            try:
                response = await self._send(ask)
            except httpx.HTTPError as exc:
                unknown = unknown or not isinstance(exc, _NEVER_SENT)
                failure: PyFunQError = ApiUnavailable(f"the API at {self._url} does not answer ({type(exc).__name__})")
            else:
                if response.is_success:
                    return response
                failure = error_of(response.status_code, response.headers, response.content, self._url)
                if not _may_pass(response):
                    raise failure
                unknown = unknown or response.status_code in (502, 504)
                hint = _hint(response.headers.get("retry-after", ""))
            pause = max(hint, _pause(attempt))
            late = ask.deadline is not None and time.monotonic() + pause > ask.deadline
            if attempt == attempts or late:
                break
            await asyncio.sleep(pause)
        if ask.accepts and unknown:
            raise AcceptanceUnknown(
                "the API went away before it answered: what was submitted may have been accepted, all or none; with "
                "an idempotency_key of your own it can simply be submitted again"
            ) from failure
        raise failure

    async def _send(self, ask: Ask) -> httpx.Response:
        read = _READ_SECONDS + ask.wait_seconds
        return await self._http.request(
            ask.method,
            ask.path,
            params=ask.params,
            headers=ask.headers,
            content=ask.body if isinstance(ask.body, bytes) else ask.body(),
            timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS, read=read, pool=None),
        )


def _may_pass(response: httpx.Response) -> bool:
    """With a time to come back, a conflict is the same request, on its way already."""
    return response.status_code in _MAY_PASS or (response.status_code == 409 and "retry-after" in response.headers)


def _pause(attempt: int) -> float:
    """Doubling, half of it by chance: so that many clients do not come back at once."""
    longest: float = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311


def _hint(retry_after: str) -> float:
    """In seconds; a date, which no PyFunQ API gives, is not understood. A little later, each by chance."""
    seconds = min(float(retry_after), _LONGEST_HINT_SECONDS) if retry_after.isdigit() else 0.0
    return seconds * random.uniform(1.0, 1.2)  # noqa: S311


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise NotConfigured("an API's URL is http://host:port or https://host (PYFUNQ_API_URL)")
    if parts.username is not None or parts.query or parts.fragment:
        raise NotConfigured("an API's URL holds no user name, query or fragment; the key is PYFUNQ_API_KEY")
    return url.rstrip("/")


def json_of(response: httpx.Response) -> Any:
    """Raises WrongApi."""
    return parsed(response.content, str(response.url.copy_with(query=None)))
