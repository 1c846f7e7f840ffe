"""`python training_memory.py <folder>` in the ML environment: memory of trainers by a dataset's rows.

Prints one JSON object: by stage, the growth in KiB from FEW to MANY rows of the anonymous memory that
is held between steps, and what is left of the rows afterwards.
"""

from __future__ import annotations

import ctypes
import gc
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import get_peft_model
from training_tiny_model import main as make_model

from services.training.evaluation import EvaluationSettings
from services.training.trainers import dpo, job, kto, proxy, sft
from services.training.trainers.models import conversations, load_base, lora
from services.training.trainers.rows import row_files
from shared.contracts.recipes import LoraHyperparameters, RewardHyperparameters

FEW, MANY = 1_500, 7_500
HYPERPARAMETERS = {"batch_size": 8, "max_length": 512, "epochs": 0.0005}
STAGES: dict[str, Callable[..., dict[str, float]]] = {
    "sft": sft.run,
    "dpo": dpo.run,
    "kto": kto.run,
    "proxy": proxy.run,
}


def main(folder: Path) -> dict[str, Any]:
    """All figures by name."""
    make_model(folder / "base")
    base = load_base(str(folder / "base"))
    parent = folder / "parent"
    get_peft_model(base, lora(LoraHyperparameters(), task="CAUSAL_LM")).save_pretrained(parent)
    found: dict[str, Any] = {"same": same(folder)}
    for name, run in STAGES.items():
        held: list[int] = []
        for rows in (FEW // 10, FEW, MANY):  # the first loads what is loaded once
            attempt = folder / f"{name}-{rows}"
            place = attempt / "proxy" if name == "proxy" else attempt
            (place / "rows-0/left").mkdir(parents=True)  # by a trainer that was killed
            job.write_rows(folder / "train.jsonl", lines(rows))
            progress = MemoryProgress(attempt)
            run(asked_of(folder, name, parent), attempt, progress)
            held.append(progress.held_kib)
        found[name] = {"growth_kib": held[2] - held[1], "left": left_in(folder)}
    return found


def lines(rows: int) -> Iterator[dict[str, Any]]:
    """Rows that every method can read, of about 700 bytes."""
    rng = random.Random(5)
    for number in range(rows):
        asked, good, bad = ("".join(rng.choices("abcdefgh ", k=200)) for _ in range(3))
        yield {
            "messages": [{"role": "user", "content": asked}],
            "chosen": good,
            "rejected": bad,
            "answer": good,
            "label": number % 2 == 0,
            "meta": {"source": "vote"},
        }


def same(folder: Path) -> bool:
    """Whether mapped rows are those that were given, in their order."""
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"ö": [1]}'}}
    rows = [
        {
            "messages": [{"role": "user", "content": f"ℝ {number} \u2028 ü"}],
            "answer": "so",
            **({"tools": '[{"x": 1}]'} if number % 2 else {}),
            **({"answer_turn": {"role": "assistant", "tool_calls": [call]}} if number % 3 else {}),
            **({"label": True} if number % 5 else {}),
        }
        for number in range(450)
    ]
    with row_files(folder, "kto", job.Progress(folder)) as files:
        mapped = conversations(rows, {"answer": "completion"}, files, flags=("label",))
        plain = [
            {
                "prompt": row["messages"],
                "completion": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {**call, "function": {"name": "look", "arguments": {"ö": [1]}}}
                        ],
                    }
                    if number % 3
                    else {"role": "assistant", "content": "so"}
                ],
                "tools": row.get("tools"),
                "label": bool(number % 5),
            }
            for number, row in enumerate(rows)
        ]
        held = Dataset.from_list(plain, features=mapped.features)
        return list(mapped) == list(held) == plain and bool(mapped.cache_files)


def asked_of(folder: Path, name: Any, parent: Path) -> job.TrainerJob:
    """The job of one stage."""
    return job.TrainerJob(
        stages=(name,),
        base=str(folder / "base"),
        parent_adapter=str(parent),
        data=str(folder),
        judge="",
        method="dpo" if name == "proxy" else name,
        hyperparameters=HYPERPARAMETERS,
        reward=RewardHyperparameters(**HYPERPARAMETERS),
        evaluation=EvaluationSettings(),
        seed=1,
    )


class MemoryProgress(job.Progress):
    """Progress that looks at memory where a trainer reports: between steps, rows and model are held.

    A peak would be the step's own, caught or not by when it is looked at.
    """

    held_kib = 0

    def report(self, *said: Any, **more: Any) -> None:
        """Most KiB held so far, without what was freed and not yet given back."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.held_kib = max(self.held_kib, anonymous_kib())
        super().report(*said, **more)


def anonymous_kib() -> int:
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (one for one in status.splitlines() if one.startswith("RssAnon:"))
    return int(line.split()[1])


def left_in(folder: Path) -> list[str]:
    """Names of what stages left of their rows."""
    return sorted(path.name for path in folder.rglob("rows-*"))


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
