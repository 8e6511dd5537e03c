"""Requests to addresses that callers named: looked up once, checked, then connected to; no redirects, no proxies."""

import asyncio
import ipaddress
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import certifi
import httpcore

from pyfunq.webhook_urls import Address, Target, WebhookRules

_WHOLE_SECONDS = 10.0
_CONNECT_SECONDS = 4.0
_MOST_ADDRESSES = 4
_MOST_ANSWER_BYTES = 64 * 1024
_LOOKUPS = 16

Resolve = Callable[[str, int], Awaitable[list[Address]]]
"""The addresses of a name; raises OSError."""


class Answer(NamedTuple):
    """What came of a request; `error` is a word for what went wrong, None where the answer is 2xx."""

    status_code: int | None
    error: str | None
    seconds: float


class AddressRefused(Exception):
    """The name leads to an address that must not be asked."""


class NameUnknown(Exception):
    """The name leads nowhere."""


class Unreachable(Exception):
    """Nobody takes connections there."""


_FAILURES = (
    *(AddressRefused, NameUnknown, Unreachable, TimeoutError, OSError),
    *(httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError),
)


class Sender:
    """Belongs to the event loop that uses it. Each request has a connection of its own."""

    def __init__(self, rules: WebhookRules, resolve: Resolve | None = None) -> None:
        """`resolve`: instead of the system's."""
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="pyfunq-webhook-name")
        backend = _CheckedBackend(rules, resolve or self._system_addresses)
        trust = ssl.create_default_context()
        trust.load_verify_locations(certifi.where())
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trust,
            max_connections=None,
            max_keepalive_connections=0,
            retries=0,
            network_backend=backend,
        )

    async def close(self) -> None:
        await self._pool.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def post(self, target: Target, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Takes 10 s at most, whatever the other side does; of its answer's body 64 KiB are read, and not kept."""
        url = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        sent = {"Host": target.authority, **headers}
        status, error = None, "timed_out"
        began = time.monotonic()
        try:
            async with (
                asyncio.timeout(_WHOLE_SECONDS),
                self._pool.stream("POST", url, headers=list(sent.items()), content=body) as response,
            ):
                status = response.status
                await _read_some(response)
        except _FAILURES as exc:
            error = _word_for(exc)
        seconds = time.monotonic() - began
        # Once the status is there, what becomes of the body does not matter.
        return Answer(status, error if status is None else _word_for_status(status), seconds)

    async def _system_addresses(self, name: str, port: int) -> list[Address]:
        # In threads of its own: names that take long to look up must not hold up whatever else the loop looks up.
        found = await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, name, port)
        return list(dict.fromkeys(ipaddress.ip_address(sockaddr[0]) for *_, sockaddr in found))


def _look_up(name: str, port: int) -> list[Any]:
    return socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)


async def _read_some(response: httpcore.Response) -> None:
    """So that most servers can write their answers to the end."""
    size = 0
    async for part in response.aiter_stream():
        size += len(part)
        if size >= _MOST_ANSWER_BYTES:
            return


def _word_for_status(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    return "redirect" if 300 <= status < 400 else "status"


def _word_for(exc: Exception) -> str:
    match exc:
        case AddressRefused():
            return "address_refused"
        case NameUnknown():
            return "name_unknown"
        case TimeoutError() | httpcore.TimeoutException():
            return "timed_out"
        case Unreachable():
            return "connection_failed"
        case httpcore.ConnectError():  # with the connection made
            return "tls_failed"
        case httpcore.ProtocolError():
            return "not_http"
        case _:
            return "connection_lost"


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to what was checked: a name that means another address by then changes nothing."""

    def __init__(self, rules: WebhookRules, resolve: Resolve) -> None:
        self._rules = rules
        self._resolve = resolve
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._addresses(host, port)
        # One that must not be asked among them says enough of the name.
        if not all(map(self._rules.permits, addresses)):
            raise AddressRefused
        failed: Exception = NameUnknown()
        for address in addresses[:_MOST_ADDRESSES]:
            try:
                return await self._backend.connect_tcp(str(address), port, _CONNECT_SECONDS, None, socket_options)
            except httpcore.ConnectError:
                failed = Unreachable()
            except httpcore.ConnectTimeout as exc:
                failed = exc
        raise failed

    async def _addresses(self, host: str, port: int) -> list[Address]:
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        try:
            return await self._resolve(host, port)
        except (OSError, UnicodeError, ValueError):
            raise NameUnknown from None
