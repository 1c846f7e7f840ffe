"""Rows a second and memory of making a dataset from an import, by its rows.

`python -m benchmarks.datasets [ROWS …]`: each size in a process of its own; without sizes 2,312 (as
many pairs as the test split of HH's harmless-base has), 100,000, 300,000 and 1,000,000. All are made
up: 2,312 are dialogues in Anthropic's HH text, two whole transcripts a row, and are converted first;
others are pairs of about 720 bytes in Ratchet's form. It reads, redacts, checks, compares, splits and
writes them as a training does before its trainer starts, on one core. 1 where memory grew with the
rows beyond GROWTH.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from services.training import importing
from services.training.importing import ImportedRows
from services.training.sides import DatasetRules
from services.training.snapshot import Dataset, take_snapshot
from shared.contracts.events.training import TrainingMethod
from shared.testing.log import MemoryLog

HH_ROWS = 2_312
SIZES = (HH_ROWS, 100_000, 300_000, 1_000_000)
GROWTH = 2.0
"""Most peak memory of a million rows over that of 100,000."""
WORDS = tuple(f"w{number}" for number in range(3_000))


def lines(rows: int) -> Iterator[bytes]:
    """Pairs of 30 words and two answers of 45; the same each time."""
    rng = random.Random(1)
    for number in range(rows):
        prompt, chosen, rejected = (" ".join(rng.choices(WORDS, k=k)) for k in (30, 45, 45))
        row = {"prompt": f"{number} {prompt}", "chosen": chosen, "rejected": rejected}
        yield json.dumps(row).encode() + b"\n"


def hh_lines(rows: int) -> Iterator[bytes]:
    """Dialogues in Anthropic's HH text: up to three exchanges that both transcripts begin with."""
    rng = random.Random(2)

    def said(fewest: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(fewest, most)))

    for number in range(rows):
        asked = f"\n\nHuman: {number} {said(5, 40)}\n\nAssistant:"
        for _ in range(rng.randint(0, 3)):
            asked += f" {said(10, 60)}\n\nHuman: {said(5, 40)}\n\nAssistant:"
        row = {side: f"{asked} {said(10, 80)}" for side in ("chosen", "rejected")}
        yield json.dumps(row).encode() + b"\n"


def written_pairs(rows: int, folder: Path) -> Path:
    """A file of a size in Ratchet's form; HH's rows are converted by the command."""
    pairs, hh = folder / "pairs.jsonl", folder / "hh.jsonl"
    with (hh if rows == HH_ROWS else pairs).open("wb") as file:
        file.writelines(hh_lines(rows) if rows == HH_ROWS else lines(rows))
    if rows == HH_ROWS:
        command = [sys.executable, "-m", "services.cli", "dataset", "import", hh, "--to", pairs]
        subprocess.run(command, check=True)
    return pairs


async def dpo_dataset(imported: ImportedRows, rules: DatasetRules | None = None) -> Dataset:
    """The dataset that DPO trains on by an import's pairs; no broker is asked."""
    return await take_snapshot(
        MemoryLog(),
        model="assistant",
        method=TrainingMethod.dpo,
        rules=rules or DatasetRules(),
        imported=imported,
    )


def measure(rows: int) -> dict[str, float]:
    """Make one dataset in this process.

    Returns:
        `rows_per_s`, `rows_per_cpu_s` (of a second that a core worked for it, which a loaded machine
        leaves as it is), `peak_mib` and `trained`.

    """
    importing.MAX_ROWS = max(importing.MAX_ROWS, rows)  # what the limit could be is looked for
    with (
        tempfile.TemporaryDirectory() as folder,
        written_pairs(rows, Path(folder)).open("rb") as file,
    ):
        began, worked = time.monotonic(), time.process_time()
        dataset = asyncio.run(dpo_dataset(ImportedRows("file:///pairs.jsonl", file)))
        took_s, worked_s = time.monotonic() - began, time.process_time() - worked
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trained = dataset.manifest.files["train.jsonl"].rows
    return {
        "rows_per_s": rows / took_s,
        "rows_per_cpu_s": rows / worked_s,
        "peak_mib": peak_kib / 1024,
        "trained": trained,
    }


def measured(rows: int) -> dict[str, float]:
    """`measure` in a process of its own, as a peak never falls again.

    Raises:
        CalledProcessError: the process failed.

    """
    command = [sys.executable, "-m", "benchmarks.datasets", "--one", str(rows)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(ran.stdout)


def main(arguments: Sequence[str]) -> int:
    """Print one line a size."""
    if arguments[:1] == ["--one"]:
        print(json.dumps(measure(int(arguments[1]))))
        return 0
    peaks: dict[int, float] = {}
    for rows in map(int, arguments or SIZES):
        found = measured(rows)
        peaks[rows] = found["peak_mib"]
        print(
            f"{rows:>9,} rows: {found['rows_per_s']:,.0f} rows/s, "
            f"{found['rows_per_cpu_s']:,.0f} a second of CPU, {found['peak_mib']:.0f} MiB peak, "
            f"{found['trained']:,.0f} trained on",
            flush=True,
        )
    flat = peaks.get(max(SIZES), 0.0) <= GROWTH * peaks.get(100_000, float("inf"))
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
