"""Evaluation on held-out prompts: win rate, perplexity, length and stopping, against the parent.

Of a longer chain the win rate over its first version, too. Only measures; what the figures mean for
a release is the service's gate.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from services.training.spill import MadeRows
from services.training.trainers.answers import Answers, Note, answers, by_engine
from services.training.trainers.job import (
    Progress,
    TrainerJob,
    read_rows,
    stored_rows,
    write_rows,
)
from services.training.trainers.models import (
    Messages,
    answer_of,
    by_tokens,
    conversation_ids,
    end_tokens,
    load_adapter,
    load_base,
    load_tokenizer,
    padded,
    prompt_ids,
    without_end,
)
from services.training.trainers.reward import judge_adapter, judged_ids, load_scorer, score
from services.training.trainers.rows import TokenRows

NGRAM = 4
"""Words in a row that count as a repetition when an answer has them again."""
PERPLEXITY_TOKENS = 8192
"""Most tokens that are read at a time, padding included."""
LOGITS = 2**27
"""Most logits of one pass: 256 MiB in bfloat16, 512 MiB in float32; a vocabulary of 152,000 leaves
883 positions at a time."""

READING = "reading held-out answers"
OUTCOMES = ("wins", "ties", "losses", "reward_gain")


class HeldOut(NamedTuple):
    """A prompt with the answer that a model should find likely."""

    messages: Messages
    answer: str | Mapping[str, Any]
    cut: bool = False
    """Generation was truncated."""
    tools: str = ""


def run(job: TrainerJob, folder: Path, progress: Progress) -> dict[str, float]:
    """Measure both arms; writes `answers.jsonl` and returns the figures.

    Figures are named `<arm>_perplexity` (on `perplexity_rows` rows), `<arm>_length` (mean tokens),
    `<arm>_stop_share`, `<arm>_repetition`, and, with a judge, `wins`, `ties`, `losses` of the
    candidate, and its mean `reward_gain`; `first_wins` and so on are those against the chain's
    first version, left out where its adapter is not there.
    """
    data = Path(job.data)
    tokenizer = load_tokenizer(job.base)
    prompts = read_rows(data / "prompts.jsonl")[: job.evaluation.prompts]
    heldout = stored_rows(data / "heldout.jsonl")
    near = MadeRows(
        stored_rows(Path(job.nearest)) if job.nearest else heldout,
        lambda row: (held_out(row, reasoning=job.trained.reasoning),),
    )
    judge = judge_adapter(job)
    counts = {"prompts": len(prompts), "heldout": len(heldout), "perplexity_rows": len(near)}
    folders = {"parent": job.parent_adapter, "candidate": str(folder / "adapter")}
    judged = dict(folders) if prompts and judge is not None else {}
    if judged and job.first_adapter not in ("", job.parent_adapter):
        judged["first"] = job.first_adapter
    asked = folders | judged
    perplexities: dict[str, float | None] = {}
    total = len(prompts) * (len(asked) + len(judged)) + 2 * counts["perplexity_rows"] + 1
    done = 0

    def note(count: int) -> None:
        nonlocal done
        done += count
        progress.report("evaluate", done, total)

    encoded = [prompt_ids(tokenizer, row["messages"], row.get("tools", "")) for row in prompts]
    arms = by_engine(job, folder, tokenizer, encoded, asked, progress, "evaluate", note)
    for arm, adapter in asked.items():
        if arm in arms and arm not in folders:
            continue
        model = load_base(job.base)
        if adapter:
            model = load_adapter(model, adapter, trainable=False).merge_and_unload()
        model.eval()
        if arm not in arms:
            arms[arm] = answers(job, model, tokenizer, encoded, note)
        if arm in folders:
            read = progress.counted("evaluate", READING, near, counts["perplexity_rows"])
            limit = job.trained.max_length
            perplexities[arm] = perplexity(model, tokenizer, read, max_length=limit, note=note)
    figures = {
        f"{arm}_{name}": value
        for arm in folders
        for name, value in _manners(arms[arm], perplexities[arm])
    }
    rows = [
        {**prompt, **{arm: arms[arm].texts[number] for arm in asked}}
        for number, prompt in enumerate(prompts)
    ]
    if judge is not None and judged:
        figures |= _verdict(job, tokenizer, judge, rows, note, tuple(judged))
    if "first" not in judged and (job.first_adapter or not job.parent_adapter):
        # The parent is the first version itself.
        figures |= {f"first_{name}": figures[name] for name in OUTCOMES if name in figures}
    write_rows(folder / "answers.jsonl", rows)
    progress.report("evaluate", total, total)
    return figures | {name: float(count) for name, count in counts.items()}


def held_out(row: Mapping[str, Any], *, reasoning: bool) -> HeldOut:
    """A line of `heldout.jsonl` with the answer that is to be likely: the preferred one."""
    answer = answer_of(row, "chosen" if "chosen" in row else "answer", reasoning=reasoning)
    return HeldOut(row["messages"], answer, row.get("chosen_cut", False), row.get("tools", ""))


@torch.no_grad()
def perplexity(
    model: Any,
    tokenizer: Any,
    heldout: Iterable[HeldOut],
    *,
    max_length: int,
    note: Note,
) -> float | None:
    """Exponential of the mean negative log-likelihood of the answers' tokens.

    The end-of-turn token is one of them, unless generation was truncated before it.

    Rows are cut where training cuts them. A row with more positions than `LOGITS` allows is read
    again for each further piece of it, so only time grows with its length.

    Args:
        model: A causal model.
        tokenizer: Its tokenizer.
        heldout: Prompts with answers.
        max_length: Most tokens of a row.
        note: Hears how many rows were read, after each batch.

    Returns:
        The perplexity, NaN of a diverged model; None where no row has a token of an answer.

    """
    limit = min(max_length, model.config.max_position_embeddings)
    ends = end_tokens(model.generation_config, tokenizer)
    rows, firsts = TokenRows(), array("i")
    for row in heldout:
        ids = conversation_ids(tokenizer, row.messages, row.answer, row.tools)
        rows.append((without_end(ids, ends) if row.cut else ids)[:limit])
        firsts.append(max(len(prompt_ids(tokenizer, row.messages, row.tools)), 1))
    width = max(1, LOGITS // model.get_output_embeddings().weight.shape[0])
    nll, count = 0.0, 0
    for batch in by_tokens([len(row) for row in rows], tokens=min(width, PERPLEXITY_TOKENS)):
        read = [rows[i] for i in batch]
        ids, mask = padded(read, tokenizer.pad_token_id, left=False)
        last = ids.shape[1]
        for start in range(min(firsts[i] for i in batch), last, width):
            stop = min(start + width, last)
            logits = model(
                input_ids=ids[:, : stop - 1],
                attention_mask=mask[:, : stop - 1],
                logits_to_keep=stop - start,
                use_cache=False,
            ).logits
            for row, index in enumerate(batch):
                first, end = max(firsts[index], start), min(len(read[row]), stop)
                if first < end:
                    nll += float(
                        functional.cross_entropy(
                            logits[row, first - start : end - start].float(),
                            ids[row, first:end],
                            reduction="sum",
                        )
                    )
                    count += end - first
        note(len(batch))
    return math.exp(min(nll / count, 50.0)) if count else None


def _manners(said: Answers, perplexity: float | None) -> list[tuple[str, float]]:
    figures = [] if perplexity is None else [("perplexity", perplexity)]
    count = len(said.texts)
    if count:
        figures += [
            ("length", sum(said.lengths) / count),
            ("stop_share", sum(said.ended) / count),
            ("repetition", sum(map(repetition, said.texts)) / count),
        ]
    return figures


def repetition(text: str) -> float:
    """Share of an answer's runs of four words that it has said before; 0 for a short one."""
    words = text.lower().split()
    runs = Counter(tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1))
    total = runs.total()
    return (total - len(runs)) / total if total else 0.0


def _verdict(
    job: TrainerJob,
    tokenizer: Any,
    adapter: Path,
    rows: list[dict[str, Any]],
    note: Note,
    arms: Sequence[str] = ("parent", "candidate"),
) -> dict[str, float]:
    """Who wins by the judge, and by how much; each row gets `<arm>_score`.

    Against the parent as `wins`, `ties`, `losses` and `reward_gain`, against the arm `first`, where
    there is one, as `first_wins` and so on.
    """
    judge = load_scorer(job, tokenizer, adapter)
    read: dict[str, list[list[int]]] = {}
    for arm in arms:
        read[arm] = [judged_ids(job, tokenizer, row, row[arm]) for row in rows]
        for row, value in zip(rows, score(judge, tokenizer, read[arm], note), strict=True):
            row[f"{arm}_score"] = value
    found: dict[str, float] = {}
    for arm in arms:
        if arm != "candidate":
            gains = [row["candidate_score"] - row[f"{arm}_score"] for row in rows]
            tied = [old == new for old, new in zip(read[arm], read["candidate"], strict=True)]
            prefix = "" if arm == "parent" else f"{arm}_"
            outcomes = _outcomes(gains, tied).items()
            found |= {f"{prefix}{name}": value for name, value in outcomes}
    return found


def _outcomes(gains: Sequence[float], tied: Sequence[bool]) -> dict[str, float]:
    """Counts of wins, ties and losses and the mean gain; NaN of a diverged judge.

    Answers that read the same to the judge are ties.
    """
    if not all(map(math.isfinite, gains)):
        return dict.fromkeys(OUTCOMES, math.nan)
    wins = sum(gain > 0 for gain, same in zip(gains, tied, strict=True) if not same)
    return {
        "wins": float(wins),
        "ties": float(sum(tied)),
        "losses": float(len(gains) - wins - sum(tied)),
        "reward_gain": sum(gains) / len(gains),
    }
