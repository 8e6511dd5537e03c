"""Request bodies: counted while they stream in, inflated within bounds, parsed strictly."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from producer.api.problems import Problem
from pyfunq.inputs import parse_json_input

JSON = "application/json"
_GZIP_WBITS = 16 + zlib.MAX_WBITS
_INFLATED_AT_ONCE = 1024 * 1024
_PARSED_AT_ONCE = 64 * 1024
"""Larger bodies are parsed in a thread."""


def content_type(request: Request) -> str:
    """Without its parameters, in lower case; empty where there is none."""
    return str(request.headers.get("content-type", "")).partition(";")[0].strip().lower()


async def json_body(
    request: Request, at_most: int, *, nan_as_null: bool = False, may_be_untyped: bool = False
) -> dict[str, Any]:
    """The JSON object that the body is. Raises Problem, MalformedInput and InvalidInput."""
    kind = content_type(request) or (JSON if may_be_untyped else "")
    if kind != JSON and not kind.endswith("+json"):
        raise Problem(415, f"the body must be {JSON}", headers={"Accept": JSON})
    body = await whole(request, at_most)
    parse = partial(parse_json_input, body, max_bytes=at_most, nan_as_null=nan_as_null)
    return parse() if len(body) <= _PARSED_AT_ONCE else await asyncio.to_thread(parse)


async def whole(request: Request, at_most: int) -> bytes:
    """The body, inflated. Raises Problem 413 as soon as it is longer than `at_most` bytes."""
    return b"".join([part async for part in parts(request, at_most)])


async def parts(request: Request, at_most: int) -> AsyncIterator[bytes]:
    """The body as it comes, inflated; neither what is sent nor what it inflates to may exceed `at_most` bytes."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced[:20]) > at_most:
        raise _too_large(at_most)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise Problem(415, "the body's content encoding must be gzip or none", headers={"Accept-Encoding": "gzip"})
    source = _received(request, at_most)
    async for part in _inflated(source, at_most) if encoding == "gzip" else source:
        yield part


async def _received(request: Request, at_most: int) -> AsyncIterator[bytes]:
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > at_most:
                raise _too_large(at_most)
            if part:
                yield part
    except ClientDisconnect:
        raise Problem(400, "the connection ended before the body did") from None


async def _inflated(source: AsyncIterator[bytes], at_most: int) -> AsyncIterator[bytes]:
    inflater, size = zlib.decompressobj(_GZIP_WBITS), 0
    async for part in source:
        waiting = part
        while waiting:
            try:
                inflated = inflater.decompress(waiting, _INFLATED_AT_ONCE)
            except zlib.error:
                raise Problem(400, "the body is not gzip, as its content encoding says") from None
            size += len(inflated)
            if size > at_most:
                raise _too_large(at_most)
            if inflated:
                yield inflated
            waiting = inflater.unconsumed_tail
            if inflater.eof:
                if waiting or inflater.unused_data:
                    raise Problem(400, "the body goes on after its gzip stream")
                break
    if not inflater.eof:
        raise Problem(400, "the body's gzip stream ends too early")


def _too_large(at_most: int) -> Problem:
    return Problem(413, f"the body is larger than {at_most:,} bytes")
