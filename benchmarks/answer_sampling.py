"""`python -m benchmarks.answer_sampling FOLDER`: what an adapter answers, in the ML environment.

Reads `FOLDER/job.json` (a trainer's job, the adapter as its parent) and `FOLDER/prompts.jsonl`, and
writes `FOLDER/answers.jsonl`: one answer a prompt, and whether it ended by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

from services.training.trainers.answers import answers, by_engine
from services.training.trainers.job import Progress, TrainerJob, read_rows, write_rows
from services.training.trainers.models import (
    load_adapter,
    load_base,
    load_tokenizer,
    prompt_ids,
)


def main(folder: Path) -> None:
    job = TrainerJob.model_validate_json((folder / "job.json").read_bytes())
    tokenizer = load_tokenizer(job.base)
    prompts = [
        prompt_ids(tokenizer, row["messages"]) for row in read_rows(folder / "prompts.jsonl")
    ]
    adapters = {"parent": job.parent_adapter}
    progress = Progress(folder)
    said = by_engine(
        job, folder, tokenizer, prompts, adapters, progress, "evaluate", lambda _: None
    ).get("parent")
    if said is None:
        model = load_adapter(load_base(job.base), job.parent_adapter, trainable=False)
        model = model.merge_and_unload().eval()
        said = answers(job, model, tokenizer, prompts, lambda _: None)
    rows = [
        {"answer": text, "cut": not ended}
        for text, ended in zip(said.texts, said.ended, strict=True)
    ]
    write_rows(folder / "answers.jsonl", rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
