"""Who calls: the API key of a request, what it may do, and whose jobs it may see."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from fastapi import Request
from starlette.datastructures import Headers

from producer.api.problems import Problem
from pyfunq.api_keys import KEY_LENGTH, ApiKey, Scope, digest_of, is_key

_FRESH_SECONDS = 30.0
"""So long a key that was revoked may still be taken."""
_MOST_KNOWN = 10_000
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class KeyTable(Protocol):
    """What is needed of the ledger."""

    async def key(self, digest: bytes) -> ApiKey | None: ...
    async def keys_exist(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. Without any key in the ledger, everybody on this machine is its operator."""

    key: ApiKey | None

    @property
    def tenant_id(self) -> int | None:
        """Whose jobs it submits and sees; None: it sees those of all tenants, and its own are nobody's."""
        return self.key.tenant_id if self.key else None

    @property
    def tenant(self) -> str | None:
        return self.key.tenant if self.key else None

    def require(self, scope: Scope) -> None:
        """Raises Problem 403."""
        if self.key is None or scope in self.key.scopes:
            return
        if scope == Scope.READ and Scope.SUBMIT in self.key.scopes:
            return
        raise Problem(403, f"this API key has not the scope {scope}")

    def sees(self, tenant: str | None) -> bool:
        return self.key is None or self.key.tenant == tenant


class Callers:
    """Tells who calls, by keys that were looked up lately. Belongs to the event loop that asks."""

    def __init__(
        self, keys: KeyTable, *, key_needed: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`key_needed`: nobody may come without one, also as long as there is none."""
        self._keys = keys
        self._key_needed = key_needed
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()
        self._open_until = 0.0

    async def of(self, request: Request, scope: Scope) -> Caller:
        """Raises Problem 400, 401 or 403."""
        sent = _sent_key(request.headers)
        caller = await (self._without_key(request) if sent is None else self._with_key(sent))
        caller.require(scope)
        return caller

    async def _with_key(self, sent: str) -> Caller:
        if not is_key(sent):
            raise _unknown()
        digest, now = digest_of(sent), self._clock()
        known = self._known.get(digest)
        if known is not None and known[0] > now:
            return known[1]
        found = await self._keys.key(digest)
        if found is None:
            self._known.pop(digest, None)
            raise _unknown()
        caller = Caller(found)
        self._known[digest] = (now + _FRESH_SECONDS, caller)
        self._known.move_to_end(digest)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return caller

    async def _without_key(self, request: Request) -> Caller:
        if not await self._is_open():
            raise Problem(401, "an API key is needed: Authorization: Bearer <key>", headers=_challenge())
        # A page that the operator's browser shows could ask here too, by a name that leads to this machine.
        name = _host_of(request.headers.get("host", ""))
        is_near = request.client is None or is_loopback(request.client.host)
        if (
            not is_near
            or name not in _LOCAL_NAMES
            or request.headers.get("sec-fetch-site", "same-origin") == "cross-site"
        ):
            raise Problem(403, "without API keys this serves programs of this machine only; see pyfunq keys create")
        return Caller(None)

    async def _is_open(self) -> bool:
        if self._key_needed:
            return False
        now = self._clock()
        if self._open_until < now:
            if await self._keys.keys_exist():
                return False
            self._open_until = now + 1.0
        return True


@lru_cache(1024)
def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _sent_key(headers: Headers) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    sent = headers.get("x-api-key")
    if scheme:
        if scheme.lower() != "bearer" or sent is not None:
            raise Problem(401, "one API key is needed: Authorization: Bearer <key>", headers=_challenge())
        sent = credentials.strip()
    if sent is not None and len(sent) > 4 * KEY_LENGTH:
        raise Problem(400, "the API key is far too long to be one")
    return sent


def _host_of(header: str) -> str:
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdigit() else header).lower()


def _unknown() -> Problem:
    return Problem(401, "this API key is not valid", headers=_challenge('error="invalid_token"'))


def _challenge(more: str = "") -> dict[str, str]:
    return {"WWW-Authenticate": f'Bearer realm="pyfunq"{", " if more else ""}{more}'}
