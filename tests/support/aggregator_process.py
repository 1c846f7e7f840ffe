"""The aggregator as a child process of a test, and what its /metrics say."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from deploy.local.ports import free_ports
from shared.contracts.events.base import Event
from shared.contracts.events.interactions import InteractionRecorded
from shared.kafka.envelope import encode
from shared.kafka.log import NewRecord
from shared.kafka.producer import KafkaLog
from tests.support.aggregator import START, key_of
from tests.support.waiting import eventually

SESSION_S = 10
EXIT_FAILED = 70
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

_BEGAN = datetime.now(UTC) - timedelta(minutes=1)
Series = dict[tuple[tuple[str, str], ...], float]


class AggregatorProcess:
    """One worker. `module` may be a test runner that wires the same worker differently."""

    def __init__(
        self,
        bootstrap: str,
        directory: Path,
        *,
        module: Sequence[str] = ("-m", "services.aggregator"),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.port = free_ports(["aggregator"])["aggregator"]
        self._command = [sys.executable, *module]
        self._environment = {
            **os.environ,
            "RATCHET_KAFKA_BOOTSTRAP": bootstrap,
            "RATCHET_AGGREGATOR_PORT": str(self.port),
            "RATCHET_AGGREGATOR_SESSION_TIMEOUT_S": str(SESSION_S),
            "RATCHET_DATA_DIR": str(directory),
            **(environment or {}),
        }
        directory.mkdir(parents=True, exist_ok=True)
        self.log_path = directory / f"aggregator-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, or start it again."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log
            )
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, as the kernel or an operator would."""
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM, and its exit status; SIGKILL when it does not follow."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(10)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; status 0 while nothing listens."""
        return _get(self.port, path)

    async def ready(self, timeout_s: float = 40.0) -> None:
        """Wait until it owns what it is going to own; where it gave up, start it as its keeper would."""

        async def answered() -> bool:
            if self.process.poll() == EXIT_FAILED:
                self.start()
            return (await asyncio.to_thread(self.get, "/readyz"))[0] == 200

        await eventually(answered, f"aggregator ready, see {self.log_path}", timeout_s)

    async def metrics(self) -> dict[str, Series]:
        """Samples by name and sorted labels."""
        return await series_of(self.port)


async def series_of(port: int) -> dict[str, Series]:
    """Samples of the worker at a port, by name and sorted labels; none while nothing listens."""
    _, text = await asyncio.to_thread(_get, port, "/metrics")
    found: dict[str, Series] = defaultdict(dict)
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match:
            labels = tuple(sorted(_LABEL.findall(match[2] or "")))
            found[match[1]][labels] = float(match[3])
    return found


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def total(series: Series, **labels: str) -> float:
    """Sum of the samples that carry these labels."""
    wanted = set(labels.items())
    return sum(value for key, value in series.items() if wanted <= set(key))


def record(topic: str, event: Event, *, event_id: str = "test") -> NewRecord:
    """An event as its producer would write it, moved from the tests' time to the present."""
    name = "started_at" if isinstance(event, InteractionRecorded) else "submitted_at"
    moment = getattr(event, name) - START + _BEGAN
    event = event.model_copy(update={name: moment})
    headers = encode(event, source="/ratchet/test", event_id=event_id, time=moment)
    return NewRecord(topic, key_of(event), event.to_json(), headers)


async def send(
    log: KafkaLog, topic: str, *events: Event, chunk: int = 1000, timeout_s: float = 30.0
) -> None:
    """Append events, acknowledged."""
    records = [record(topic, event) for event in events]
    for start in range(0, len(records), chunk):
        await log.append_many(records[start : start + chunk], timeout_s=timeout_s)
