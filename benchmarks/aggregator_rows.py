"""Folding and storing alone: what the aggregator's rows take without Faust, brokers and outputs.

    python -m benchmarks.aggregator_rows [--interactions 300000] [--share 0.08] [--slices 5]

One process decodes, folds and commits the log of `benchmarks.aggregator` into the state on disk as a
worker of four partitions does, its rated answers included. Printed for each slice: CPU a joined event,
resident memory and bytes on disk; at the end, the seconds that it takes to open the state again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

from benchmarks.aggregator import PARTITIONS, events
from services.aggregator.codec import MODELS
from services.aggregator.consumption import BATCH_EVENTS
from services.aggregator.disk_rows import DiskRows
from services.aggregator.fold import FoldRules
from services.aggregator.partition import PartitionState
from services.aggregator.row_database import MIB, RowDatabase
from services.aggregator.settings import AggregatorSettings
from shared.clock import SystemClock
from shared.contracts.topics import RATED
from shared.garbage import spare_collector
from shared.kafka.envelope import decode
from shared.kafka.log import NewRecord

RULES = FoldRules(prompt_ignores=("clock", "ids"))
TEMPLATE = 20_000
"""Interactions that are made; later ones are these with other trace ids and prompts."""


class RowsAlone:
    """The partitions of one worker over its database."""

    def __init__(self, directory: Path) -> None:
        cache_mib = AggregatorSettings.model_fields["state_cache_mib"].default
        self._database = RowDatabase(directory, cache_bytes=cache_mib * MIB)
        self._states = [
            PartitionState(
                number,
                DiskRows(self._database, number, rules=RULES, clock=SystemClock()),
                RULES,
            )
            for number in range(PARTITIONS)
        ]
        self._written = [0] * PARTITIONS
        for state in self._states:
            state.recover()

    def fold(self, record: NewRecord) -> None:
        """Fold one record, and write a batch of its partition where it is full."""
        state = self._states[crc32(record.key.encode()) % PARTITIONS]
        value = record.value or b""
        event = decode(record.headers, value, MODELS[record.topic])
        state.apply(
            record.topic, state.expects(record.topic), event, value, int(time.time() * 1000)
        )
        if state.events >= BATCH_EVENTS:
            self._commit(state)

    def _commit(self, state: PartitionState) -> None:
        batch = state.take()
        self._written[state.partition] += len(batch.rows) + 1
        batch.position = self._written[state.partition]
        state.confirm(batch)
        for output in batch.outputs:
            if output.topic == RATED:
                state.apply(RATED, state.expects(RATED), output.event, output.event.to_json(), 0)

    def close(self) -> None:
        """Write the last batches, and put on disk what is in memory."""
        for state in self._states:
            self._commit(state)
        self._database.close()

    def held(self) -> int:
        """Rows."""
        return sum(state.held for state in self._states)

    def disk_mib(self) -> int:
        """Bytes on disk."""
        return self._database.disk_bytes() // MIB


def log(template: Sequence[NewRecord], rounds: range) -> Iterator[NewRecord]:
    """The template's records once a round, each time with traces and prompts of their own."""
    for number in rounds:
        asked = f"What now, {number}?".encode()
        for topic, key, value, headers, _ in template:
            trace = f"{key[:-8]}{number:08x}"
            assert value is not None
            told = value.replace(key.encode(), trace.encode()).replace(b"What now?", asked)
            yield NewRecord(topic, trace, told, headers)


def resident_mib() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // MIB


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--interactions", type=int, default=300_000)
    parser.add_argument("--share", type=float, default=0.08, help="interactions with feedback")
    parser.add_argument("--slices", type=int, default=5)
    arguments = parser.parse_args()
    spare_collector()
    size = min(TEMPLATE, arguments.interactions // arguments.slices)
    template, joined = events(size, arguments.share)
    rounds = arguments.interactions // size // arguments.slices
    with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as name:
        directory = Path(name)
        print(f"{'held':>10}{'CPU µs':>9}{'RSS MiB':>9}{'disk MiB':>10}", flush=True)
        rows = RowsAlone(directory)
        for each in range(arguments.slices):
            begun = time.process_time()
            for record in log(template, range(each * rounds, (each + 1) * rounds)):
                rows.fold(record)
            cost = (time.process_time() - begun) / (joined * rounds) * 1e6
            print(
                f"{rows.held():>10,}{cost:>9.0f}{resident_mib():>9,}{rows.disk_mib():>10,}",
                flush=True,
            )
        rows.close()
        begun = time.monotonic()
        held = RowsAlone(directory).held()
        print(f"opened again in {time.monotonic() - begun:.1f} s, {held:,} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
