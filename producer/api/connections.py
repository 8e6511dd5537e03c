"""What a connection may do before any route sees it: bounds on heads and addresses, and on how slowly it may send."""

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from producer.api.problems import Problem
from producer.api.rates import abandon, release

_LINGER_SECONDS = 5.0
"""So long a body that nobody reads any more is thrown away, so that its sender sees the answer."""

_LAST_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one connection, but for `connections`."""

    connections: int
    slow_seconds: float
    """A request's head must be there within this time; of its body, 1 KB for each second of every such span."""
    head_bytes: int = 64 * 1024
    head_lines: int = 100
    url_bytes: int = 8 * 1024
    slowest_bytes_per_second: int = 1_000


class Connection(HttpToolsProtocol):
    """uvicorn's, with `limits` that its config has. It costs a request that comes in one piece next to nothing."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._limits: Limits = config.limits
        self.access_log = False  # addresses can hold what no log should
        self._timer: asyncio.TimerHandle | None = None
        self._in_message = self._in_body = self._ended = False
        self._head_bytes = self._span_bytes = 0
        self._was_paused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._end(Problem(503, "too many connections", headers={"Retry-After": "1"}, retryable=True))
        else:
            self._begin_span()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._stop_timer()
        super().connection_lost(exc)
        if self.cycle is not None and not self.cycle.response_complete:
            abandon(self.cycle.scope)

    def shutdown(self) -> None:
        """Called by uvicorn when it stops."""
        super().shutdown()
        if self.cycle is not None and not self.cycle.response_complete:
            release(self.cycle.scope)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        began = not self._in_message
        super().data_received(data)
        if self._ended:
            return
        if not self._in_message:
            self._expect_more()
            return
        self._span_bytes += len(data)
        if not self._in_body:
            # What comes with the begin of a head may end the request before it: its size is not known.
            self._head_bytes = 0 if began else self._head_bytes + len(data)
            if self._head_bytes > self._limits.head_bytes:
                self._end(_head_too_large())
                return
        if self._timer is None:
            self._begin_span()

    def on_message_begin(self) -> None:
        self._in_message, self._in_body = True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._ended:
            return
        limits = self._limits
        if len(self.url) > limits.url_bytes:
            self._end(Problem(414, f"the address is longer than {limits.url_bytes:,} bytes"))
        elif len(self.headers) > limits.head_lines or sum(map(_length, self.headers)) > limits.head_bytes:
            self._end(_head_too_large())
        else:
            self._in_body = True
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._ended:
            return
        super().on_body(body)
        self._was_paused = self._was_paused or self.flow.read_paused

    def on_message_complete(self) -> None:
        if self._ended:
            return
        self._in_message = self._in_body = False
        self._stop_timer()
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:
            self._expect_more()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_message and not self.pipeline:
            self._stop_timer()
            self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what is no HTTP; the message may quote nothing of it."""
        self._end(Problem(400, "this is no valid HTTP request"))

    def _expect_more(self) -> None:
        """What comes after an answer, the rest of a body or an empty line, ends uvicorn's own wait for a request."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._timer is None and self.timeout_keep_alive_task is None:
            self._begin_span()

    def _begin_span(self) -> None:
        self._span_bytes, self._was_paused = 0, self.flow.read_paused
        self._timer = self.loop.call_later(self._limits.slow_seconds, self._span_over)

    def _span_over(self) -> None:
        limits = self._limits
        enough = self._span_bytes >= limits.slowest_bytes_per_second * limits.slow_seconds
        if self._in_body and (enough or self._was_paused or self.flow.read_paused):
            self._begin_span()  # it is fast enough, or was kept waiting by whoever reads
        elif self._in_message:
            self._end(Problem(408, "the request came too slowly", retryable=True))
        else:
            self._end(None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, problem: Problem | None) -> None:
        """Answers, if nothing else is being answered, and closes."""
        self._ended = True
        self._stop_timer()
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if problem is not None and not self.pipeline and (not answering or (self._in_body and _is_silent(cycle))):
            self.transport.write(_raw(problem))
            if self.transport.can_write_eof():
                # What was sent and not read yet would make a close take the answer back.
                self.transport.write_eof()
                self._timer = self.loop.call_later(_LAST_SECONDS, self.transport.close)
        if answering:
            cycle.disconnected = True
            cycle.message_event.set()
        if self._timer is None:
            self.transport.close()


def _is_silent(cycle: Any) -> bool:
    return not cycle.response_started


def _length(header: tuple[bytes, bytes]) -> int:
    return len(header[0]) + len(header[1]) + 4


def _head_too_large() -> Problem:
    return Problem(431, "the request's headers are too large")


def _raw(problem: Problem) -> bytes:
    problem.headers["Connection"] = "close"
    response = problem.response()
    lines = (b"%b: %b\r\n" % header for header in response.raw_headers)
    return b"".join([STATUS_LINE[problem.status], *lines, b"\r\n", bytes(response.body)])
