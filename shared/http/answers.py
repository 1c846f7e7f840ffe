"""Answers of HTTP neighbours with a byte limit, for clients on aiohttp.

A deadline alone bounds no memory: a neighbour sends gigabytes within one.
"""

from __future__ import annotations

from typing import Any

import aiohttp
import orjson


class AnswerTooLarge(aiohttp.ClientError):
    """The answer's body is over the reader's limit; a failed request to whoever looks no closer."""


async def read_answer(answer: aiohttp.ClientResponse, *, limit: int) -> bytes:
    """The whole body, inflated where it was compressed, of at most `limit` bytes.

    Raises:
        AnswerTooLarge: more came; the caller closes the connection with the response.
        aiohttp.ClientError: the connection ended first.

    """
    parts: list[bytes] = []
    size = 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > limit:
            raise AnswerTooLarge(f"the answer is larger than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


async def read_json(answer: aiohttp.ClientResponse, *, limit: int) -> Any:
    """The body as JSON, whatever its media type.

    Raises:
        ValueError: it is no JSON.
        AnswerTooLarge, aiohttp.ClientError: see `read_answer`.

    """
    return orjson.loads(await read_answer(answer, limit=limit))
