"""What producers know of model URIs, signatures and queues, as the ledger has it; asked for once in a while."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from pyfunq.entries import Resolution
from pyfunq.signature import Signature

_FRESH_SECONDS = 2.0


class Signatures:
    """While one caller asks anew, the others go on with what was known; only what nobody knows is waited for."""

    def __init__(self, resolution: Callable[[str], Awaitable[Resolution | None]]) -> None:
        self._resolution = resolution
        self._known: dict[str, tuple[float, str | None, Signature | None]] = {}
        self._queues: dict[str, str | None] = {}
        self._asking: dict[str, asyncio.Task[Signature | None]] = {}

    async def get(self, model_uri: str) -> Signature | None:
        """The signature of what the URI stands for, as it was a moment ago; None where the ledger does not know it."""
        known = self._known.get(model_uri)
        if known is not None and (known[0] > time.monotonic() or model_uri in self._asking):
            return known[2]
        asking = self._asking.get(model_uri)
        if asking is None:
            asking = self._asking[model_uri] = asyncio.create_task(self._ask(model_uri))
            asking.add_done_callback(lambda task: self._end(model_uri, task))
        return await asyncio.shield(asking)

    def queue(self, model_uri: str) -> str | None:
        """The queue of its own that the model had when its signature was last asked for."""
        return self._queues.get(model_uri)

    def text(self, model_uri: str) -> str | None:
        """The signature's JSON, as MLflow keeps it, when it was last asked for."""
        known = self._known.get(model_uri)
        return None if known is None else known[1]

    async def close(self) -> None:
        for asking in list(self._asking.values()):
            asking.cancel()
            await asyncio.wait([asking])

    def _end(self, model_uri: str, task: asyncio.Task[Signature | None]) -> None:
        del self._asking[model_uri]
        if not task.cancelled():
            task.exception()  # who waited was told; where nobody did, it is not asyncio's to report

    async def _ask(self, model_uri: str) -> Signature | None:
        resolution = await self._resolution(model_uri)
        text = resolution.version.signature if resolution is not None else None
        _, known_text, signature = self._known.get(model_uri, (0.0, None, None))
        if text != known_text:  # the same signature stays the same object
            signature = Signature.from_json(text) if text else None
        self._queues[model_uri] = resolution.tags.queue if resolution is not None else None
        self._known[model_uri] = (time.monotonic() + _FRESH_SECONDS, text, signature)
        return signature
