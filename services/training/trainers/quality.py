"""Quality of both arms' answers: references, text, facts, labels, tools, safety, own metrics.

Reads what `evaluate` wrote, and asks both arms the questions of `measures/questions.py` at
temperature 0. Only measures; what the figures mean for a release is the service's gate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import pipeline

from services.training.measures.custom import custom_means
from services.training.measures.questions import (
    EvaluationQuestion,
    all_questions,
    load_questions,
    question_figures,
)
from services.training.measures.references import reference_scores
from services.training.measures.text import coherence, sentiment
from services.training.trainers.answers import answers, by_engine
from services.training.trainers.drift import ARMS, as_arm
from services.training.trainers.fit import TEMPLATE_ERRORS
from services.training.trainers.job import Progress, TrainerJob, iterate_rows, read_rows, write_rows
from services.training.trainers.models import (
    load_adapter,
    load_base,
    load_tokenizer,
    positions,
    prompt_ids,
)

Row = dict[str, Any]
MAX_SENTIMENT_CHARACTERS = 2000
"""Of an answer that a sentiment model reads."""


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, float]:
    """Measure both arms; writes `questions.jsonl` with each question and both answers.

    Returns:
        `<arm>_bleu`, `_rouge_1`, `_rouge_l` on held-out prompts, `_sentiment`, `_coherence`, what
        `question_figures` returns, `<arm>_<metric>` of installed metrics, `metrics_failed`, and
        `questions_skipped`, which the base's template or context cannot hold.

    """
    tokenizer = load_tokenizer(job.base)
    own = job.evaluation.questions
    known = all_questions(load_questions(Path(own)) if own else None)
    limit = positions(job.base) - job.evaluation.question_tokens
    asked = [one for one in known if _fits(tokenizer, one, limit)]
    total = len(ARMS) * len(asked) + 1
    _ask(job, folder, tokenizer, asked, progress, total)
    write_rows(folder / "questions.jsonl", [one.row() for one in asked])
    rows = read_rows(folder / "answers.jsonl")
    references = _references(Path(job.data) / "heldout.jsonl", set(map(_key, rows)))
    feeling = _sentiment(job.evaluation.sentiment_model)
    figures = question_figures(asked) | {"questions_skipped": float(len(known) - len(asked))}
    for arm in ARMS:
        figures |= {
            f"{arm}_{name}": value
            for name, value in _measured(rows, arm, references, feeling).items()
        }
        means, failed = custom_means(
            [(row["messages"], row[arm], references.get(_key(row))) for row in rows],
            note=lambda: progress.report("quality", total - 1, total),
        )
        figures |= {f"{arm}_{name}": value for name, value in means.items()}
        figures["metrics_failed"] = float(failed)
    progress.report("quality", total, total)
    return figures


def _ask(
    job: TrainerJob,
    folder: Path,
    tokenizer: Any,
    questions: Sequence[EvaluationQuestion],
    progress: Progress,
    total: int,
) -> None:
    """Have both arms answer the questions; `total` is of the stage's steps."""
    greedy = job.evaluation.model_copy(
        update={"temperature": 0.0, "max_new_tokens": job.evaluation.question_tokens}
    )
    job = job.model_copy(update={"evaluation": greedy})
    encoded = [prompt_ids(tokenizer, one.messages, _tools(one)) for one in questions]
    adapters = {"parent": job.parent_adapter, "candidate": str(folder / "adapter")}
    done = 0

    def note(count: int) -> None:
        nonlocal done
        done += count
        progress.report("quality", done, total)

    found = by_engine(job, folder, tokenizer, encoded, adapters, progress, "quality", note)
    if not found:
        model = load_adapter(load_base(job.base), adapters["candidate"], trainable=False).eval()
        if job.parent_adapter:
            model.load_adapter(job.parent_adapter, "parent")
        for arm in ARMS:
            with as_arm(model, arm):
                found[arm] = answers(job, model, tokenizer, encoded, note)
    for arm in ARMS:
        for question, text in zip(questions, found[arm].texts, strict=True):
            question.answers[arm] = text


def _fits(tokenizer: Any, question: EvaluationQuestion, limit: int) -> bool:
    """Whether the base's template writes a question, and its context leaves room for an answer."""
    try:
        return len(prompt_ids(tokenizer, question.messages, _tools(question))) <= limit
    except TEMPLATE_ERRORS:
        return False


def _tools(question: EvaluationQuestion) -> str:
    return json.dumps(question.tools) if question.tools else ""


def _measured(
    rows: Sequence[Row],
    arm: str,
    references: dict[str, str],
    feeling: Callable[[Sequence[str]], list[float]],
) -> dict[str, float]:
    if not rows:
        return {}
    referenced = [row for row in rows if _key(row) in references]
    texts = [row[arm] for row in rows]
    return reference_scores(
        [row[arm] for row in referenced], [references[_key(row)] for row in referenced]
    ) | {
        "sentiment": fmean(feeling(texts)),
        "coherence": fmean(
            coherence(str(row["messages"][-1]["content"]), row[arm]) for row in rows
        ),
    }


def _references(path: Path, prompts: Collection[str]) -> dict[str, str]:
    """The preferred answer of each of some prompts that is held out."""
    return {
        key: row["chosen"] if "chosen" in row else row["answer"]
        for row in iterate_rows(path)
        if (key := _key(row)) in prompts
    }


def _key(row: Row) -> str:
    return json.dumps([row["messages"], row.get("tools", "")], sort_keys=True)


def _sentiment(name: str) -> Callable[[Sequence[str]], list[float]]:
    """The lexicon, or a classifier of two labels whose first is the negative one."""
    if not name:
        return lambda texts: [sentiment(text) for text in texts]
    classify = pipeline("text-classification", model=name, top_k=None)
    positive = classify.model.config.id2label[classify.model.config.num_labels - 1]

    def scores(texts: Sequence[str]) -> list[float]:
        clipped = [text[:MAX_SENTIMENT_CHARACTERS] for text in texts]
        found = classify(clipped, truncation=True)
        return [next(o["score"] for o in one if o["label"] == positive) for one in found]

    return scores
