"""Checks of rows: what is not trained on alone, or beside others. Pure."""

# pyright: strict
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from services.training.dataset_rows import Demonstration, LabelledAnswer, Pair
from services.training.machine_made import SourcedRow
from services.training.row_store import RowFinding, RowKey
from services.training.sides import DatasetRules, digest
from services.training.spill import SpilledTable, keep, sorted_rows
from shared.contracts.events.preferences import PairSource
from shared.contracts.prompt_key import normal_text
from shared.pair_quality import similarity

P = TypeVar("P", bound=Pair | RowKey)
T = TypeVar("T")


def refusal(pair: Pair, rules: DatasetRules) -> str | None:
    """Why this pair alone is not trained on, or None."""
    if (reason := pair.asked.refusal) is not None:
        return reason
    chosen, rejected = pair.chosen.strip(), pair.rejected.strip()
    if not pair.messages:
        return "no_prompt"
    if (reason := machine_refusal(pair, rules)) is not None:
        return reason
    if min(len(chosen), len(rejected)) <= rules.min_chars:
        return "too_short"
    if normal_text(chosen) == normal_text(rejected):
        return "same_answers"
    if pair.chosen_turn is not None or pair.rejected_turn is not None:
        return None  # calls of tools have no length or sentences to compare
    source = pair.meta.get("source")
    if len(chosen) <= _length_ratio(source, rules) * len(rejected):
        return "chosen_shorter"
    if source != PairSource.correction and similarity(chosen, rejected) >= rules.similarity:
        return "similar_answers"
    return None


def _length_ratio(source: str | None, rules: DatasetRules) -> float:
    """The share of the rejected answer's length that a chosen one must exceed.

    Who judged both answers preferred the shorter one on purpose. To leave such choices out and keep
    those for the longer answer would teach, and have the judge reward, length that people do not want.
    """
    if source not in rules.compared_sources or rules.compared_length_ratio is None:
        return rules.length_ratio
    return rules.compared_length_ratio


def machine_refusal(row: SourcedRow, rules: DatasetRules) -> str | None:
    """Why a row that a machine made is not trained on, or None."""
    if row.source == PairSource.synthetic and not rules.synthetic:
        return "synthetic"
    if row.machine_made and row.meta.get("category") in rules.people_only:
        return "people_only"
    return None


def clean_pairs(pairs: Iterable[P], rules: DatasetRules, refused: Counter[str]) -> Collection[P]:
    """Pairs that can be trained on, by id; the others are counted by reason in `refused`."""
    better = SpilledTable[bytes]()
    """Question -> the answer that was chosen first."""
    contradicted, of_people = SpilledTable[bytes](), SpilledTable[bytes]()
    """Questions with two answers that were chosen, and those that a person has judged."""

    def is_sound(pair: P) -> bool:
        reason, question, chosen = _pair_finding(pair, rules)
        if reason is not None:
            refused[reason] += 1
            return False
        agrees = better.first(question, chosen) == chosen
        if not pair.machine_made:
            of_people.add(question)
        elif not agrees and question in of_people and question not in contradicted:
            refused["against_people"] += 1
            return False
        if not agrees:
            contradicted.add(question)
        return True

    # People first: where they have judged, a machine's word is not asked for, only refused.
    ordered = sorted_rows(pairs, lambda pair: (pair.machine_made, pair.name))
    sound = keep(ordered, is_sound)
    return settled(sound, lambda pair: _pair_finding(pair, rules).question, contradicted, refused)


def settled(
    rows: Collection[T],
    question_of: Callable[[T], bytes],
    contradicted: SpilledTable[bytes],
    refused: Counter[str],
) -> Collection[T]:
    """The first row of each question that is not contradicted; others are counted in `refused`."""
    known = SpilledTable[bytes]()

    def is_kept(row: T) -> bool:
        question = question_of(row)
        if question in contradicted:
            refused["contradictory"] += 1
            return False
        if not known.add(question):
            refused["duplicate"] += 1
            return False
        return True

    return keep(rows, is_kept)


def pair_finding(pair: Pair, rules: DatasetRules) -> RowFinding:
    """Why a pair alone is not trained on, and what of it is compared with other pairs."""
    reason = refusal(pair, rules)
    return RowFinding(reason) if reason is not None else RowFinding(None, *_question(pair))


def _pair_finding(pair: Pair | RowKey, rules: DatasetRules) -> RowFinding:
    return pair.finding if isinstance(pair, RowKey) else pair_finding(pair, rules)


def _question(pair: Pair) -> tuple[bytes, bytes]:
    """What stands for a prompt and two answers, whichever was preferred, and for the preferred."""
    chosen, rejected = normal_text(pair.chosen), normal_text(pair.rejected)
    return digest(pair.prompt, *sorted((chosen, rejected))), digest(chosen)


def demonstration_finding(row: Demonstration, rules: DatasetRules) -> RowFinding:
    """Why a demonstration is not trained on, and what of it may be there once."""
    reason = row.asked.refusal or machine_refusal(row, rules)
    if reason is None and not row.messages:
        reason = "no_prompt"
    if reason is None and len(row.answer.strip()) <= rules.min_chars:
        reason = "too_short"
    return RowFinding(reason, digest(row.prompt_digest.hex(), row.answer))


def prompt_finding(row: LabelledAnswer) -> RowFinding:
    """Why a row's prompt may not be asked in an evaluation."""
    return RowFinding(row.asked.refusal)
