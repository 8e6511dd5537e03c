"""Whether a model is registered: the ledger is asked, then MLflow's REST API, each answer for a while."""

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import httpx

from pyfunq.errors import ModelNotFound
from pyfunq.http_transport import trusted
from pyfunq.model_uri import ModelURI

log = logging.getLogger(__name__)

_KNOWN_SECONDS = 60.0
_UNKNOWN_SECONDS = 2.0
"""So long a model that was just registered may be refused, or MLflow may be back unnoticed."""
_MOST_KNOWN = 10_000
_ASKED_AT_ONCE = 8
_TIMEOUT = httpx.Timeout(2.0, connect=1.0)


class Registered:
    """Answers are kept by name. Belongs to the event loop that first asks."""

    def __init__(
        self,
        tracking_uri: str | None,
        in_ledger: Callable[[str], Awaitable[object | None]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`in_ledger` gives what a model URI stands for, None where nobody knows. Reads MLflow's own variables."""
        self._in_ledger = in_ledger
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, bool | None]] = OrderedDict()
        self._asking: dict[str, asyncio.Task[bool | None]] = {}
        self._at_once = asyncio.Semaphore(_ASKED_AT_ONCE)
        self._http = _http_client(tracking_uri)

    async def check(self, uri: ModelURI) -> None:
        """Raises ModelNotFound where MLflow says that it has no such model; where it is silent, the worker will see."""
        if uri.name is not None and await self.knows(uri.name, uri) is False:
            raise ModelNotFound(f"there is no registered model {uri.name!r}")

    async def knows(self, name: str, uri: ModelURI | None = None) -> bool | None:
        """Whether a model of this name is registered; None where MLflow does not say."""
        known = self._known.get(name)
        if known is not None and known[0] > self._clock():
            return known[1]
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = asyncio.create_task(self._ask(name, uri))
            asking.add_done_callback(lambda task: self._end(name, task))
        return await asyncio.shield(asking)

    async def close(self) -> None:
        for asking in list(self._asking.values()):
            asking.cancel()
            await asyncio.wait([asking])
        if self._http is not None:
            await self._http.aclose()

    def _end(self, name: str, task: asyncio.Task[bool | None]) -> None:
        del self._asking[name]
        if not task.cancelled():
            task.exception()  # who waited was told

    async def _ask(self, name: str, uri: ModelURI | None) -> bool | None:
        in_ledger = uri is not None and await self._in_ledger(str(uri)) is not None
        answer = True if in_ledger else await self._ask_mlflow(name)
        self._known[name] = (self._clock() + (_KNOWN_SECONDS if answer else _UNKNOWN_SECONDS), answer)
        self._known.move_to_end(name)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return answer

    async def _ask_mlflow(self, name: str) -> bool | None:
        if self._http is None:
            return None
        try:
            async with self._at_once:
                answer = await self._http.get("/api/2.0/mlflow/registered-models/get", params={"name": name})
            said = answer.json() if answer.headers.get("content-type", "").startswith("application/json") else None
        except (httpx.HTTPError, ValueError) as exc:
            log.debug("MLflow does not say whether a model is registered (%s)", type(exc).__name__)
            return None
        if answer.status_code == 200:
            return True
        # A proxy's 404 says nothing about the model.
        is_gone = isinstance(said, dict) and said.get("error_code") == "RESOURCE_DOES_NOT_EXIST"
        return False if answer.status_code == 404 and is_gone else None


def _http_client(tracking_uri: str | None) -> httpx.AsyncClient | None:
    """None where the tracking URI is not a server's."""
    if tracking_uri is None or urlsplit(tracking_uri).scheme not in ("http", "https"):
        return None
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{part}") for part in ("USERNAME", "PASSWORD"))
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    more: dict[str, Any] = {"verify": trusted()}
    if user and password:
        more["auth"] = (user, password)
    elif token:
        more["headers"] = {"Authorization": f"Bearer {token}"}
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        more["verify"] = False
    elif bundle := os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"):
        more["verify"] = _trusting(bundle)
    return httpx.AsyncClient(base_url=tracking_uri, timeout=_TIMEOUT, follow_redirects=False, **more)


def _trusting(bundle: str) -> Any:
    import ssl

    return ssl.create_default_context(cafile=bundle)
