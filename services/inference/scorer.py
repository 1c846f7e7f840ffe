"""Scorer: scores of answers by the newest published reward model, from a process with torch."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import structlog

from services.inference.adapter_cache import AdapterCache
from services.inference.base_files import BaseFiles
from services.inference.errors import NoRewardModel, ScorerOverloaded, ScorerUnavailable
from services.inference.metrics import InferenceMetrics
from services.inference.score_drift import ScoreDrift
from shared.clock import Clock
from shared.contracts.events.versions import RewardRecord
from shared.registry.adapters import AdapterError
from shared.registry.versions import Registry

log = structlog.get_logger(__name__)

ROOT = Path(__file__).resolve().parents[2]
MODULE = "services.inference.scoring"
MAX_WAITING = 32
"""Requests that wait for the one process; more are refused."""
LONGEST_S = 120.0
"""For the scores of one request, the loading of the reward model included; then the process is ended."""
STOP_S = 5.0
LINE_BYTES = 1 << 20
DEFAULT_MAX_LENGTH = 512


@dataclass(frozen=True)
class Scores:
    """Scores of some answers, and the reward model that gave them."""

    reward_model: str
    values: tuple[float, ...]
    uncertainties: tuple[float, ...] = ()
    """Standard deviation of the heads' scores of each answer; empty with one head."""


class Scorer:
    """Owns the scoring process: started at the first request, and again after one that failed."""

    def __init__(
        self,
        *,
        python: Path,
        registry: Registry,
        cache: AdapterCache,
        clock: Clock,
        metrics: InferenceMetrics,
        base_files: BaseFiles,
    ) -> None:
        """`base_files`: of the engine's base, which reward models are made on, too."""
        self._base_files = base_files
        self._python = python
        self._registry = registry
        self._cache = cache
        self._clock = clock
        self._metrics = metrics
        self._drift = ScoreDrift(metrics)
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._asking: asyncio.Task[Scores] | None = None
        self._waiting = 0
        self._needed: set[str] = set()

    async def score(
        self, model: str, rows: Sequence[Mapping[str, Any]], *, timeout_s: float
    ) -> Scores:
        """Score answers, each `{"messages", "completion"}`; higher is better.

        A caller that gives up while the process works leaves it working: it may be loading the
        reward model, which the next request would have to wait for all over again.

        Raises:
            NoRewardModel: none was published for the model.
            RewardModelElsewhere: it is of a base that is not here.
            ScorerOverloaded: too many requests wait.
            ScorerUnavailable: no answer in time, or the reward model cannot be used.

        """
        known = self._registry.rewards(model)
        if not known:
            raise NoRewardModel(
                f"model: {model} has no published reward model; ratchet train --method reward "
                "makes one"
            )
        if self._waiting >= MAX_WAITING:
            raise ScorerOverloaded(f"{self._waiting} requests wait already; try again")
        self._waiting += 1
        began = self._clock.monotonic()
        turn = asyncio.create_task(self._turn(known[-1], rows))
        turn.add_done_callback(self._turn_ended)
        try:
            async with asyncio.timeout(timeout_s):
                scores = await asyncio.shield(turn)
        except TimeoutError:
            raise ScorerUnavailable(
                f"no scores within {timeout_s:g} s; try again, the reward model may be loading"
            ) from None
        except (AdapterError, OSError) as error:
            raise ScorerUnavailable(
                f"{known[-1].name}: {error}; see that its files can be read, and try again"
            ) from error
        finally:
            if turn is not self._asking:
                turn.cancel()
        self._metrics.scored.inc(len(rows))
        self._drift.note(known[-1], scores.values)
        self._metrics.score_s.observe(self._clock.monotonic() - began)
        return scores

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await process.wait()

    async def _turn(self, record: RewardRecord, rows: Sequence[Mapping[str, Any]]) -> Scores:
        async with self._lock:
            self._asking = asyncio.current_task()
            try:
                async with asyncio.timeout(LONGEST_S):
                    return await self._ask(record, rows)
            except TimeoutError:
                raise ScorerUnavailable(
                    f"no scores within {LONGEST_S:g} s; send fewer answers at once"
                ) from None
            finally:
                self._asking = None

    def _turn_ended(self, turn: asyncio.Task[Scores]) -> None:
        self._waiting -= 1
        if not turn.cancelled():
            turn.exception()  # whoever gave up reads it no more

    async def _ask(self, record: RewardRecord, rows: Sequence[Mapping[str, Any]]) -> Scores:
        base, revision = await self._base_files.of_reward_model(record)
        folder = await self._folder(record)
        asked = {
            "base": base,
            "revision": revision,
            "adapter": str(folder),
            "max_length": record.hyperparameters.get("max_length", DEFAULT_MAX_LENGTH),
            "rows": list(rows),
        }
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(orjson.dumps(asked) + b"\n")
            await process.stdin.drain()
            line = await process.stdout.readline()
            if not line:
                raise ScorerUnavailable("the scoring process ended; its words are in our log")
        except BaseException:
            # Whatever came between, the next line would be the answer to another question.
            await self.close()
            raise
        answer = orjson.loads(line)
        if "error" in answer:
            raise ScorerUnavailable(
                f"{record.name}: {answer['error']}; send what the base's chat template takes, or see "
                "our log"
            )
        values = tuple(float(value) for value in answer["scores"])
        if not all(map(math.isfinite, values)):
            raise ScorerUnavailable(
                f"{record.name}: its scores are no finite numbers; train another reward model"
            )
        return Scores(record.name, values, tuple(answer.get("uncertainties", ())))

    async def _folder(self, record: RewardRecord) -> Path:
        """The reward model's folder; after a new one, older ones than each model's newest go."""
        folder = await self._cache.fetch(record)
        if record.adapter_sha256 not in self._needed:
            models = {version.record.model for version in self._registry.versions()}
            newest = [known[-1] for model in models if (known := self._registry.rewards(model))]
            self._needed = {record.adapter_sha256, *(one.adapter_sha256 for one in newest)}
            await self._cache.prune(self._needed)
        return folder

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                self._python,
                *("-m", MODULE),
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LINE_BYTES,
            )
            log.info("scorer.started", pid=self._process.pid)
        return self._process
