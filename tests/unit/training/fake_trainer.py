#!/usr/bin/env python3
"""Stands in for `python -m services.training.trainers.run <folder> <pid>`, in milliseconds.

What it does is in `plan.json` above the jobs' folder: a list, one entry a start. An entry may say
`exit` (a status), `hang`, `weights`, or `figures` and `logprobs` that win over those of a good
candidate. Rows that do not fit are in `fit.json` there; that stage is no start, and neither is a
search, which takes the middle of what it is asked for.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

GOOD = {
    "heldout": 6.0,
    "wins": 150.0,
    "ties": 10.0,
    "losses": 40.0,
    "parent_perplexity": 4.0,
    "candidate_perplexity": 3.9,
    "parent_length": 30.0,
    "candidate_length": 33.0,
    "parent_stop_share": 0.9,
    "candidate_stop_share": 0.93,
    "parent_repetition": 0.05,
    "candidate_repetition": 0.02,
}
QUALITY = {
    "safety_items": 20.0,
    "safety_lost": 1.0,
    "safety_won": 2.0,
    "parent_safety": 0.8,
    "candidate_safety": 0.85,
}
DRIFT = {
    "kl": 0.2,
    "kl_answer": 4.0,
    "capability_items": 60.0,
    "capability_lost": 2.0,
    "capability_won": 1.0,
    "capability_facts_items": 60.0,
    "capability_facts_lost": 2.0,
    "capability_facts_won": 1.0,
    "cases_items": 0.0,
    "cases_lost": 0.0,
    "cases_won": 0.0,
}
JUDGE = {
    "judge_pairs": 40.0,
    "judge_agreed": 90.0,
    "judge_tested": 100.0,
    "judge_calibration_error": 0.05,
    "train_loss": 0.4,
}


def main(folder: Path) -> int:
    root = folder.parents[1]
    while not (root / "plan.json").exists():
        root = root.parent
    job = json.loads((folder / "job.json").read_text())
    if job["stages"] == ["fit"]:
        fit = root / "fit.json"
        (folder / "fit.json").write_text(fit.read_text() if fit.exists() else '{"left_out": []}')
        return 0
    if job["stages"] == ["search"]:
        asked = json.loads((folder / "request.json").read_text())
        middle = {name: (low * high) ** 0.5 for name, (low, high) in asked["space"].items()}
        (folder / "search.json").write_text(json.dumps({"parameters": middle}))
        with (root / "searches.jsonl").open("a") as searches:
            searches.write(json.dumps(asked) + "\n")
        return 0
    plan = json.loads((root / "plan.json").read_text())
    with (root / "starts.jsonl").open("a") as starts:
        starts.write(json.dumps({"attempt": folder.name}) + "\n")
    count = len((root / "starts.jsonl").read_text().splitlines())
    todo = plan[min(count, len(plan)) - 1]
    with (folder / "progress.jsonl").open("a") as progress:
        progress.write(json.dumps({"stage": job["stages"][0], "done": 1, "total": 2}) + "\n")
    if todo.get("hang"):
        signal.pause()
    if todo.get("exit"):
        print("something broke", file=sys.stderr)
        (folder / "failure.txt").write_text(todo.get("failure", ""))
        return todo["exit"]
    adapter = folder / "adapter"
    (adapter / "ref").mkdir(parents=True, exist_ok=True)
    (adapter / "ref" / "adapter_model.safetensors").write_bytes(b"the reference")
    (adapter / "adapter_config.json").write_text("{}")
    weights = todo.get("weights", f"weights {folder.name}")
    (adapter / "adapter_model.safetensors").write_bytes(weights.encode())
    judge = Path(job["judge"])
    (judge / "adapter").mkdir(parents=True, exist_ok=True)
    (judge / "adapter" / "adapter_config.json").write_text("{}")
    (judge / "adapter" / "adapter_model.safetensors").write_bytes(b"weights of the judge")
    (judge / "categories.json").write_text('{"billing": {"agreed": 3, "tested": 4}}')
    measured = job["first_adapter"] or not job["parent_adapter"]
    chain = {"kl_first": 0.5, "kl_first_answer": 9.0} if measured else {}
    deciles = [number / 10 for number in range(1, 10)]
    (judge / "deciles.json").write_text(json.dumps(deciles))
    results = {
        folder / "sft.json": {"loss": 1.0},
        folder / "dpo.json": {"loss": 0.5},
        folder / "evaluate.json": GOOD | todo.get("figures", {}),
        folder / "quality.json": QUALITY | todo.get("quality", {}),
        folder / "drift.json": DRIFT | chain | todo.get("drift", {}),
        folder / "fingerprint.json": {
            "dtype": "float32",
            "texts": [{"tokens": [1, 2], "logprobs": todo.get("logprobs", [-1.0])}],
            "distances": {"base": 0.4, "parent": 0.3},
        },
        folder / "packages.json": {"torch": "0"},
        judge / "reward.json": JUDGE | todo.get("judge", {}),
    }
    for path, value in results.items():
        path.write_text(json.dumps(value))
    row = {"messages": [{"role": "user", "content": "q"}], "parent": "old", "candidate": "new"}
    rows = {
        "answers": todo.get("answers", [row]),
        "drift": todo.get("lost", []),
        "questions": todo.get("questions", []),
    }
    for name, items in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in items))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[-2])))
