"""Draining of an engine that is about to stop: it takes nothing new and ends what it has."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services.inference import drain as drain_module
from services.inference.drain import IDLE_LOOKS, EngineDrain
from services.inference.drain_middleware import DRAIN_MARKER, DrainMiddleware
from services.inference.engine import EngineLoad
from services.inference.errors import EngineUnavailable
from shared.clock import SystemClock
from tests.support.waiting import eventually

IDLE, BUSY, WAITING = (EngineLoad(n, m, frozenset()) for n, m in ((0, 0), (1, 0), (0, 1)))


class DrainedEngine:
    """What an engine says of its requests, look by look; the last holds."""

    def __init__(self, folder: Path, *loads: EngineLoad | None, limit_s: float = 60.0) -> None:
        self.loads = list(loads)
        self.looks = 0
        self.drain = EngineDrain(
            folder / "draining", self._load, SystemClock(), limit_s, asyncio.Event()
        )

    async def _load(self) -> EngineLoad:
        self.looks += 1
        load = self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]
        if load is None:
            raise EngineUnavailable("/metrics: no answer")
        return load


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain_module, "LOOK_S", 0.01)


async def test_the_drain_ends_once_the_engine_has_had_no_request_for_two_looks(
    tmp_path: Path,
) -> None:
    engine = DrainedEngine(tmp_path, BUSY, IDLE, WAITING, None, IDLE)
    await asyncio.wait_for(engine.drain.run(), 60)
    assert engine.looks == 4 + IDLE_LOOKS
    assert engine.drain.marker.exists()
    engine.drain.reset()
    assert not engine.drain.marker.exists()


@pytest.mark.parametrize("load", [BUSY, None], ids=["busy", "silent"])
async def test_the_drain_ends_at_its_limit(tmp_path: Path, load: EngineLoad | None) -> None:
    engine = DrainedEngine(tmp_path, load, limit_s=0.05)
    await asyncio.wait_for(engine.drain.run(), 60)
    assert engine.looks > 0


async def test_an_engine_whose_marker_cannot_be_written_is_stopped_without_a_wait(
    tmp_path: Path,
) -> None:
    engine = DrainedEngine(tmp_path / "missing", BUSY)
    await asyncio.wait_for(engine.drain.run(), 60)
    assert engine.looks == 0


class PostedTo:
    """The middleware before an application, as a server calls it."""

    def __init__(self, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(DRAIN_MARKER, str(marker))
        self.taken: list[str] = []
        self.may_end = asyncio.Event()
        self.middleware = DrainMiddleware(self._app)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.taken.append(scope["method"])
        await self.may_end.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(self, method: str = "POST") -> dict[str, Any]:
        """The head of the answer, once the whole body was read."""
        parts = [
            {"type": "http.request", "body": b"{", "more_body": True},
            {"type": "http.request", "body": b"}", "more_body": False},
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return parts.pop(0)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] != 200:
                assert parts == []
            sent.append(message)

        await self.middleware({"type": "http", "method": method}, receive, send)
        return sent[0]


async def test_while_it_drains_new_requests_are_refused_and_running_ones_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "draining"
    engine = PostedTo(marker, monkeypatch)
    running = asyncio.create_task(engine.ask())
    await eventually(lambda: engine.taken == ["POST"], "it runs")
    marker.touch()
    refused = await engine.ask()
    assert (refused["status"], (b"connection", b"close") in refused["headers"]) == (503, True)
    engine.may_end.set()
    assert (await running)["status"] == 200
    assert (await engine.ask("GET"))["status"] == 200
    assert engine.taken == ["POST", "GET"]
    marker.unlink()
    assert (await engine.ask())["status"] == 200


def test_the_middleware_needs_the_standard_library_alone() -> None:
    """vLLM's environment has none of the services' libraries."""
    source = Path(drain_module.__file__).with_name("drain_middleware.py").read_text()
    imports = [
        line.split()[1] for line in source.splitlines() if line.startswith(("from", "import"))
    ]
    assert set(imports) == {"__future__", "collections.abc", "os", "pathlib", "typing"}
