"""Users without retries: any answer but a whole one counts as failed. Every second has it streamed."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from tests.support.waiting import eventually

USERS = 6
CALL_S = 120.0


@dataclass
class Replies:
    """What users got: answers to their end, by version, and whatever else came."""

    whole_by: Counter[str] = field(default_factory=Counter[str])
    failed: list[str] = field(default_factory=list)

    @property
    def whole(self) -> int:
        """Answers to their end."""
        return self.whole_by.total()

    def add(self, answer: httpx.Response) -> None:
        """Count a reply, streamed or not."""
        ended = re.search(r'"finish_reason":"(stop|length)"', answer.text)
        if answer.status_code == 200 and ended and '"error"' not in answer.text:
            self.whole_by[answer.headers["x-ratchet-version"]] += 1
        else:
            self.failed.append(f"{answer.status_code} {answer.text[-300:]}")


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[Replies]:
    """Users that ask one question after the other while the block runs; all have ended after it."""
    answers, stop = Replies(), asyncio.Event()
    users = [asyncio.create_task(_ask_until(stop, url, user, answers)) for user in range(USERS)]
    try:
        yield answers
        stop.set()
        await asyncio.gather(*users)
    finally:
        for user in users:
            user.cancel()


async def _ask_until(stop: asyncio.Event, url: str, user: int, answers: Replies) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=CALL_S) as http:
        while not stop.is_set():
            body = {
                "model": "assistant",
                "user": f"u{user}",
                "messages": [{"role": "user", "content": "Where is my parcel?"}],
                "max_tokens": 64,
                "stream": user % 2 == 1,
            }
            answers.add(await http.post("/v1/chat/completions", json=body))


async def served_by(url: str, version: str, timeout_s: float) -> None:
    """Wait until the version answers."""

    async def serves() -> bool:
        async with httpx.AsyncClient(base_url=url, timeout=CALL_S) as http:
            question = [{"role": "user", "content": "Hello"}]
            body = {"model": "assistant", "messages": question, "max_tokens": 4}
            answer = await http.post("/v1/chat/completions", json=body)
            return answer.headers.get("x-ratchet-version") == version

    await eventually(serves, f"{version} answers", timeout_s)
