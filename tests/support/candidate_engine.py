"""An engine whose answers for the candidate (`…v1.1`) may fail, come late or stall."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from dataclasses import dataclass, field

from aiohttp import web

from tests.support.rollout_harness import HOST

CANDIDATE = "v1.1"


@dataclass
class CandidateEngine:
    """An OpenAI-compatible engine on a port of the test's; answers of stable are never bad."""

    port: int
    failing: float = 0.0
    """Share of the candidate's requests that answer 500."""
    stall_s: float = 0.0
    """Pause between two tokens of the candidate's streams; whole answers know none."""
    delay_s: float = 0.0
    """Before every answer, of whichever version."""
    priorities: list[int] = field(default_factory=list)
    """Of the requests for the candidate."""
    answered: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Requests by version."""
    _runner: web.AppRunner | None = None
    _random: random.Random = field(default_factory=lambda: random.Random(4))

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def open(self) -> None:
        """Bind."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_get("/{path:.*}", _well)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self.port).start()

    async def close(self) -> None:
        """Unbind."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        model = asked["model"]
        self.answered[model] += 1
        await asyncio.sleep(self.delay_s)
        stall_s = 0.0
        if model.endswith(CANDIDATE):
            self.priorities.append(asked.get("priority", 0))
            stall_s = self.stall_s
            if self._random.random() < self.failing:
                return web.json_response({"error": {"message": "injected"}}, status=500)
        if asked.get("stream"):
            return await _stream(request, model, stall_s)
        message = {"role": "assistant", "content": "Here you are."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": model}
        usage = {"prompt_tokens": 5, "completion_tokens": 4}
        return web.json_response({**body, "choices": [choice], "usage": usage})


async def _stream(request: web.Request, model: str, stall_s: float) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for number, token in enumerate(("Here", " you", " are.")):
        await asyncio.sleep(stall_s if number == 1 else 0)
        await response.write(_event(model, {"content": token}, None))
    await response.write(_event(model, {}, "stop") + b"data: [DONE]\n\n")
    return response


def _event(model: str, delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    body = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model}
    return b"data: " + json.dumps({**body, "choices": [choice]}).encode() + b"\n\n"


async def _well(_: web.Request) -> web.Response:
    return web.json_response({"data": []})
