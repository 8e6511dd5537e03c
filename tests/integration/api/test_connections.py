"""What comes over a socket that no client sends: smuggled requests, endless heads, bytes that trickle."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.integration.api.conftest import Serve
from tests.integration.api.sockets import ask, connected, head
from tests.integration.conftest import SETOSA, split

JOB = json.dumps({"model": "models:/iris/1", **split(SETOSA)}).encode()
AS_JSON = "Content-Type: application/json"
LIVE = head("GET", "/health/live")
SMUGGLED = b"GET /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 4", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 4"],
        ["Content-Length: 4", "Content-Length: 44"],
        ["Content-Length: +4"],
        ["Content-Length: -1"],
        ["Content-Length: 4, 4"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding : chunked"],
        [" folded: x"],
        ["Bad\0Name: x"],
    ],
)
async def test_one_request_that_two_servers_would_read_as_two(api_url: str, lines: list[str]) -> None:
    """Refused with 400, and what follows on the connection is not read."""
    async with connected(api_url) as raw:
        await raw.send(head("POST", "/v1/jobs", AS_JSON, *lines) + b"0\r\n\r\n" + SMUGGLED)
        assert (await raw.answer()).problem["code"] == "malformed_request"
        assert await raw.is_closed()


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 100])
async def test_what_is_no_http(api_url: str, garbage: bytes) -> None:
    assert (await ask(api_url, garbage)).status == 400


async def test_headers_that_are_too_large_or_too_many(api_url: str) -> None:
    large = head("GET", "/health/live", f"X-Large: {'x' * 70_000}")
    assert (await ask(api_url, large)).problem["code"] == "headers_too_large"
    many = head("GET", "/health/live", *(f"X-{n}: x" for n in range(200)))
    assert (await ask(api_url, many)).status == 431
    assert (await ask(api_url, head("GET", "/health/live", f"X-Large: {'x' * 30_000}"))).status == 200
    long = head("GET", "/health/live?" + "x" * 10_000)
    assert (await ask(api_url, long)).problem["code"] == "url_too_long"


async def test_a_header_without_end(api_url: str) -> None:
    async with connected(api_url) as raw:
        await raw.send(b"GET /health/live HTTP/1.1\r\nX-Endless: ")
        answer = asyncio.ensure_future(raw.answer())
        with suppress(ConnectionError):
            while not answer.done():
                await raw.send(b"x" * 10_000)
                await asyncio.sleep(0)
        assert (await answer).status == 431
        assert await raw.is_closed()


async def test_heads_and_bodies_that_trickle(serve: Serve) -> None:
    """408, whether nothing more comes or a byte now and then."""
    async with serve(api_slow_seconds=0.5) as http:
        url = str(http.base_url)
        begun = head("POST", "/v1/jobs", AS_JSON, f"Content-Length: {len(JOB)}")

        async def trickle(first: bytes, byte: bytes) -> None:
            async with connected(url) as raw:
                await raw.send(first)
                answer = asyncio.ensure_future(raw.answer())
                while not answer.done():
                    if byte:
                        await raw.send(byte)
                    await asyncio.wait([answer], timeout=0.05)
                assert (await answer).problem["code"] == "too_slow"
                assert await raw.is_closed()

        await asyncio.gather(
            trickle(begun + JOB[:10], b""),
            trickle(begun, b" "),
            trickle(b"GET /health/live HTTP/1.1\r\nX: ", b"x"),
            trickle(b"GET /hea", b""),
        )
        async with connected(url) as silent:
            assert await silent.is_closed(), "it said nothing at all"


async def test_a_body_in_pieces_is_taken_while_it_comes_fast_enough(serve: Serve, iris_model: str) -> None:
    async with serve(api_slow_seconds=0.2) as http, connected(str(http.base_url)) as raw:
        padded = JOB.ljust(6_000)
        await raw.send(head("POST", "/v1/jobs", AS_JSON, f"Content-Length: {len(padded)}"))
        for begin in range(0, len(padded), 500):
            await raw.send(padded[begin : begin + 500])
            await asyncio.sleep(0.05)  # longer than a span altogether
        assert (await raw.answer()).status == 202
        await raw.send(LIVE)
        assert (await raw.answer()).status == 200


async def test_an_answer_before_the_body_is_there_leaves_the_connection_usable(api_url: str) -> None:
    async with connected(api_url) as raw:
        await raw.send(head("POST", "/v1/nowhere", AS_JSON, f"Content-Length: {len(JOB)}"))
        assert (await raw.answer()).problem["status"] == 404
        await raw.send(JOB)
        await raw.send(LIVE)
        assert (await raw.answer()).status == 200


async def test_requests_that_come_at_once_are_answered_in_order(api_url: str) -> None:
    async with connected(api_url) as raw:
        await raw.send(LIVE * 3 + head("GET", "/v1/nowhere"))
        assert [(await raw.answer()).status for _ in range(4)] == [200, 200, 200, 404]


async def test_more_connections_than_may_be(serve: Serve, eventually: Callable[..., Any]) -> None:
    async with serve(api_max_requests=2) as http:
        url = str(http.base_url)
        held = [await asyncio.open_connection(http.base_url.host, http.base_url.port) for _ in range(4)]
        async with connected(url) as raw:
            answer = await raw.answer()
            assert answer.problem["status"] == 503
            assert answer.headers["retry-after"] == "1"
        for _, writer in held:
            writer.close()

        async def has_room() -> bool:
            return (await ask(url, LIVE)).status == 200

        await eventually("their room is given back", has_room, 10)
