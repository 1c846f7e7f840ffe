"""Memory, disk and restart of an aggregator worker with a history held.

    python -m benchmarks.aggregator_history [--interactions 300000] [--share 0.08]

One worker joins the log of `benchmarks.aggregator` in slices. After each slice it is killed
(SIGKILL) and started again on the same directory: printed are the events per CPU second since the
slice before, the resident memory, the bytes of state on disk, the seconds from the start of the
process until `/readyz` answers, and whether the counts after the restart are those of the log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.aggregator import counted, cpu_s, events, fill
from deploy.local.ports import free_ports
from deploy.local.stack import Stack

FLAT = 1.10
BUFFERS_MIB = 64
"""The worker's two write buffers, which fill and empty."""
READY_GOAL_S = 15.0
"""After SIGKILL, ten seconds of which the group waits for the session of the killed worker."""
SLICES = 5
PORTION = 50_000
"""Interactions made at a time, which are in memory until they are written. Each portion has prompts of its
own, so that a longer history has more of them."""
WAIT_S = 900.0
POLL_S = 0.1
SCRAPE_S = 0.5
"""Between two looks at the counters; a scrape costs the worker processor time."""


@dataclass(frozen=True)
class HistoryFigures:
    """What one slice of the history cost; bytes are MiB, times are seconds."""

    held: int
    events_per_cpu_s: int
    rss_mib: int
    state_mib: int
    ready_s: float
    exact: bool


class HistoryWorker:
    """One aggregator process on one directory, killed and started again between slices."""

    def __init__(self, bootstrap: str, directory: Path) -> None:
        self._directory = directory
        self._log = directory.parent / "aggregator.log"
        self._port = free_ports(["aggregator"])["aggregator"]
        self._environment = {
            **os.environ,
            "RATCHET_KAFKA_BOOTSTRAP": bootstrap,
            "RATCHET_AGGREGATOR_PORT": str(self._port),
            "RATCHET_DATA_DIR": str(directory),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it; seconds until it is ready."""
        begun = time.monotonic()
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.aggregator"],
                env=self._environment,
                stderr=log,
                stdout=log,
            )
        while not self._ready():
            if self._ended() or time.monotonic() - begun > WAIT_S:
                raise SystemExit("the aggregator does not become ready: " + self._last_words())
            time.sleep(POLL_S)
        return time.monotonic() - begun

    def work_off(self, total: int) -> None:
        """Wait until it has counted so many events; a worker that ended itself is started again."""
        deadline = time.monotonic() + WAIT_S
        while counted(self._port) < total:
            if time.monotonic() > deadline:
                raise SystemExit(f"the aggregator counted {counted(self._port)} of {total}")
            if self._ended():
                self.start()
            time.sleep(SCRAPE_S)

    def counted(self) -> int:
        """Interactions and feedback in confirmed checkpoints."""
        while not (seen := counted(self._port)) and not self._ended():
            time.sleep(SCRAPE_S)  # a busy machine lets a scrape time out
        return seen

    def cpu_s(self) -> float:
        """Processor time of this worker's processes so far."""
        assert self._process is not None
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime + cpu_s(self._process.pid)

    def rss_mib(self) -> int:
        """Resident memory."""
        assert self._process is not None
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 1024**2

    def state_mib(self) -> int:
        """Bytes in its directory."""
        files = [path for path in self._directory.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files) // 1024**2

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        return self._log.read_text().splitlines()[-1]

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=5):
                return True
        except OSError:
            return False


def is_flat(found: Sequence[HistoryFigures]) -> bool:
    """Whether memory after the last slice is that after the second, but for the write buffers."""
    return found[-1].rss_mib <= found[1].rss_mib * FLAT + BUFFERS_MIB


def add(bootstrap: str, interactions: int, share: float, seed: int) -> int:
    """Write so many interactions with their feedback, a portion at a time; how many events."""
    written = 0
    for first in range(0, interactions, PORTION):
        portion = min(PORTION, interactions - first)
        records, count = events(portion, share, seed=seed * interactions + first)
        asyncio.run(fill(bootstrap, records))
        written += count
    return written


def measure(interactions: int, share: float) -> list[HistoryFigures]:
    """Figures after each slice, against one real broker."""
    found: list[HistoryFigures] = []
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as name:
        directory = Path(name)
        stack = Stack(directory / "stack", services=[], ports="free")
        stack.up()
        worker: HistoryWorker | None = None
        try:
            stack.start("topics")
            bootstrap = stack.address("kafka")
            worker = HistoryWorker(bootstrap, directory / "aggregator")
            worker.start()
            held = total = 0
            for number in range(SLICES):
                before = worker.cpu_s()
                count = add(bootstrap, interactions // SLICES, share, seed=number)
                held, total = held + interactions // SLICES, total + count
                worker.work_off(total)
                speed = round(count / (worker.cpu_s() - before))
                rss, state = worker.rss_mib(), worker.state_mib()
                worker.kill()
                ready_s = worker.start()
                worker.work_off(total)
                time.sleep(2.0)  # two batches: a double count would show now
                exact = worker.counted() == total
                found.append(HistoryFigures(held, speed, rss, state, round(ready_s, 1), exact))
                print(json.dumps(asdict(found[-1])), file=sys.stderr)
        finally:
            if worker is not None:
                worker.kill()
            stack.down()
    return found


def main() -> int:
    """Print the table; exit status 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--interactions", type=int, default=300_000)
    parser.add_argument("--share", type=float, default=0.08, help="interactions with feedback")
    parser.add_argument("--json", action="store_true", help="print one JSON array instead")
    arguments = parser.parse_args()
    found = measure(arguments.interactions, arguments.share)
    flat = is_flat(found)
    quick = max(row.ready_s for row in found) <= READY_GOAL_S
    exact = all(row.exact for row in found)
    if arguments.json:
        print(json.dumps([asdict(row) for row in found]))
        return 0 if flat and quick and exact else 1
    print("Aggregator with a history held")
    print(f"  {'held':>9}{'events/CPU s':>14}{'RSS MiB':>9}{'disk MiB':>10}{'ready s':>9}  exact")
    for row in found:
        print(
            f"  {row.held:>9,}{row.events_per_cpu_s:>14,}{row.rss_mib:>9,}{row.state_mib:>10,}"
            f"{row.ready_s:>9.1f}  {'yes' if row.exact else 'NO'}"
        )
    print(
        f"{'reached' if flat else 'MISSED'}: memory flat within {FLAT - 1:.0%} and {BUFFERS_MIB} MiB"
    )
    print(f"{'reached' if quick else 'MISSED'}: ready within {READY_GOAL_S:g} s after SIGKILL")
    print(f"{'reached' if exact else 'MISSED'}: counts exact after SIGKILL")
    return 0 if flat and quick and exact else 1


if __name__ == "__main__":
    sys.exit(main())
