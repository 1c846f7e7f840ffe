"""What the demo sees of the stack: training runs from the log, rollouts and adapters by HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiokafka import AIOKafkaConsumer

from demo.errors import StepFailed
from shared.http.client import request_within

RUNS = "ratchet.training.runs.v1"
POLL_S = 0.5
HTTP_TIMEOUT_S = 10.0
FINISHED_RUN = ("succeeded", "rejected", "failed")


@dataclass
class StackSnapshot:
    """The newest of everything. Rollouts are newest first, runs by job id in order of coming."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    adapters: dict[str, dict[str, Any]] = field(default_factory=dict)

    def rollout_of(self, version: str) -> dict[str, Any] | None:
        """The newest rollout of a candidate."""
        return next((each for each in self.rollouts if each["candidate"] == version), None)

    def run_of(self, version: str) -> dict[str, Any] | None:
        """The last word on the run that makes a version."""
        return next((run for run in self.runs.values() if run["version"] == version), None)

    @property
    def stable(self) -> str:
        """The version that is stable now; empty before the first."""
        return next((n for n, v in self.versions.items() if v["state"] == "stable"), "")

    @property
    def current(self) -> dict[str, Any] | None:
        """The rollout under way, if any."""
        if self.rollouts and self.rollouts[0]["phase"] in ("Progressing", "Paused"):
            return self.rollouts[0]
        return next((r for r in self.rollouts if r["phase"] in ("Progressing", "Paused")), None)


class StackWatch:
    """Looks every half second until stopped; what cannot be reached keeps its last state."""

    def __init__(self, *, bootstrap: str, rollout_url: str, agent_url: str, model: str) -> None:
        self.sight = StackSnapshot()
        self._bootstrap = bootstrap
        self._rollout_url = rollout_url
        self._agent_url = agent_url
        self._model = model
        self._looked = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Looks until `stop`."""
        consumer = AIOKafkaConsumer(
            RUNS,
            bootstrap_servers=self._bootstrap,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        try:
            async with aiohttp.ClientSession() as session:
                while not stop.is_set():
                    await self._read_runs(consumer)
                    await self._ask(session)
                    self._looked.set()
                    self._looked = asyncio.Event()
        finally:
            await consumer.stop()

    async def until(
        self,
        what: str,
        condition: Callable[[StackSnapshot], Any],
        timeout_s: float,
        *,
        hint: str = "",
    ) -> Any:
        """Waits until the condition is truthy and returns what it gave.

        Raises:
            StepFailed: it did not come true in time, or the condition raised it.

        """
        try:
            async with asyncio.timeout(timeout_s):
                while not (value := condition(self.sight)):
                    await self._looked.wait()
                return value
        except TimeoutError:
            raise StepFailed(f"{what}: not within {timeout_s:.0f} s. {hint}".strip()) from None

    async def _read_runs(self, consumer: AIOKafkaConsumer) -> None:
        for records in (await consumer.getmany(timeout_ms=int(POLL_S * 1000))).values():
            for record in records:
                run: dict[str, Any] = json.loads(record.value or b"{}")
                known = self.sight.runs.get(run["job_id"], run)
                run["version"] = run["version"] or known["version"]
                self.sight.runs[run["job_id"]] = run
        # getmany returns at once where records wait; the rest of the look needs no such haste.
        await asyncio.sleep(POLL_S / 2)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        sight = self.sight
        if found := await _get(session, f"{self._rollout_url}/v1/rollouts?model={self._model}"):
            sight.rollouts = found["rollouts"]
        if found := await _get(session, f"{self._rollout_url}/v1/versions?model={self._model}"):
            sight.versions = {each["version"]: each for each in found["versions"]}
        if found := await _get(session, f"{self._agent_url}/v1/adapters"):
            sight.adapters = {each["version"]: each for each in found["adapters"]}


async def _get(session: aiohttp.ClientSession, url: str) -> dict[str, Any] | None:
    try:
        async with request_within(HTTP_TIMEOUT_S, session, "GET", url) as answer:
            return await answer.json() if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
