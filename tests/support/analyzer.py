"""A twin of Presidio's analyzer: `POST /analyze` with a list of texts, and words that it finds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from shared.http.detector import Detector, DetectorPolicy

WORDS = {"Anna Miller": "PERSON", "Miller": "PERSON", "Lisbon": "LOCATION"}


class AnalyzerTwin:
    """Finds WORDS in texts; it can be slow, fail, and answer what no analyzer does."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.status = 200
        self.latency_s = 0.0
        self.answer: Any = None
        """In place of the findings."""
        self.answering = asyncio.Event()
        self.answering.set()

    @property
    def texts(self) -> list[str]:
        """All texts that it was asked about."""
        return [text for body in self.asked for text in body["text"]]

    async def analyze(self, request: web.Request) -> web.Response:
        """Answer one request."""
        body = await request.json()
        self.asked.append(body)
        await self.answering.wait()
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        found = [_found(text) for text in body["text"]]
        return web.json_response(found if self.answer is None else self.answer, status=self.status)


def _found(text: str) -> list[dict[str, Any]]:
    return [
        {"entity_type": entity, "start": one.start(), "end": one.end(), "score": 0.85}
        for word, entity in WORDS.items()
        for one in re.finditer(re.escape(word), text)
    ]


@asynccontextmanager
async def analyzer_twin() -> AsyncIterator[AnalyzerTwin]:
    """A running twin."""
    twin = AnalyzerTwin()
    app = web.Application()
    app.router.add_post("/analyze", twin.analyze)
    async with TestServer(app) as server:
        twin.url = str(server.make_url("")).rstrip("/")
        yield twin
        twin.answering.set()


@asynccontextmanager
async def detector_at(
    url: str, registry: CollectorRegistry | None = None, **policy: Any
) -> AsyncIterator[Detector]:
    """A detector that asks an analyzer."""
    detector = Detector(DetectorPolicy(url, **policy), dict, registry or CollectorRegistry())
    try:
        yield detector
    finally:
        await detector.close()
