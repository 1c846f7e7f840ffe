"""Users who ask a router, so many a second, and what they saw."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Self

import httpx

TIMEOUT_S = 90.0


@dataclass
class TimedAnswer:
    """One answer as a client saw it; times are Unix seconds."""

    sent_at: float
    at: float
    version: str
    arm: str
    status: int


class RoutedUsers:
    """997 users in turn, from `async with` on; whatever the answers take."""

    def __init__(
        self, url: str, model: str, *, rate: float = 30.0, streaming: bool = False
    ) -> None:
        self.answers: list[TimedAnswer] = []
        self._http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S)
        self._model = model
        self._rate = rate
        self._streaming = streaming
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._driving = asyncio.create_task(self._drive())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._driving.cancel()
        await asyncio.gather(self._driving, *self._running, return_exceptions=True)
        await self._http.aclose()

    async def _drive(self) -> None:
        user = 0
        while True:
            user += 1
            task = asyncio.create_task(self._ask(f"user-{user % 997}"))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            await asyncio.sleep(1 / self._rate)

    async def _ask(self, user: str) -> None:
        body = {
            "model": self._model,
            "user": user,
            "stream": self._streaming,
            "messages": [{"role": "user", "content": f"Where is my parcel? {user}"}],
        }
        sent_at = time.time()
        answer = await self._http.post("/v1/chat/completions", json=body)
        headers = answer.headers
        self.answers.append(
            TimedAnswer(
                sent_at,
                time.time(),
                headers.get("x-ratchet-version", ""),
                headers.get("x-ratchet-arm", ""),
                answer.status_code,
            )
        )
