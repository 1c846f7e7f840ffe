"""Dataset rows of single answers with a label, good or bad: what KTO trains on. Pure.

A thumb is a row of its own; a preference pair is two. Sides are those of `sides`, over both kinds
together, so a rater or prompt that is set apart for the judge trains by neither.
"""

# pyright: strict
from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from itertools import chain
from typing import TypeVar

from services.training.caps import balance
from services.training.dataset import Selection, capped, card_of, lines_of, trained_row
from services.training.dataset_rows import (
    HELDOUT,
    JUDGE,
    PROMPTS,
    TRAIN,
    LabelledAnswer,
    Pair,
)
from services.training.evaluation_prompts import Whole, evaluation_prompts, itself
from services.training.machine_made import people_made
from services.training.row_checks import clean_pairs, machine_refusal, settled
from services.training.row_store import RowFinding, RowKey
from services.training.sides import DatasetRules, assign, digest, prompts_of, set_apart
from services.training.spill import SpilledTable, keep, made, sorted_rows, spilled
from services.training.thumbs import paired_thumbs
from shared.contracts.prompt_key import normal_text

AnswerRow = Pair | LabelledAnswer | RowKey
A = TypeVar("A", bound=LabelledAnswer | RowKey)
BOTH = (b"0", b"1")
"""Labels of an answer, as they are kept by its digest."""


def select_labelled(
    pairs: Iterable[Pair | RowKey],
    answers: Iterable[LabelledAnswer | RowKey],
    rules: DatasetRules,
    whole: Whole = itself,
) -> Selection:
    """Rows of a dataset of labelled answers. Held out are pairs, and good answers.

    Args:
        pairs: Preference pairs, those of the judge's panel included.
        answers: Thumbs, or an import's rows.
        rules: Checks and shares.
        whole: Gives the row of a key.

    """
    refused: Counter[str] = Counter()
    everything: Collection[AnswerRow] = spilled(
        chain(
            clean_pairs(pairs, rules, refused),
            _clean_answers(answers, rules, refused),
        )
    )
    sides = assign(*set_apart(everything, rules), rules)
    refused += sides.refused
    trained = _balanced(capped(sides.train, rules, refused), rules, refused)
    judged = people_made(sides.judge, refused)
    votes = keep(judged, lambda one: one.label is None)
    by_thumbs = not votes and rules.judge_from_thumbs
    judge = lines_of(judged if by_thumbs else votes, whole)
    if by_thumbs:
        judge = paired_thumbs(judge)
    refused["answer_of_judge"] += len(judged) - (2 * len(judge) if by_thumbs else len(judge))
    train = made(trained, lambda one: (trained_row(row, rules) for row in _answers_of(whole(one))))
    measured = people_made(sides.heldout, refused)
    heldout = keep(measured, lambda one: one.label is not False)
    refused["bad_answer_held_out"] += len(measured) - len(heldout)
    pools = (measured, judged if by_thumbs else votes)
    return Selection(
        files={
            TRAIN: train,
            HELDOUT: lines_of(heldout, whole),
            JUDGE: judge,
            PROMPTS: evaluation_prompts(pools, prompts_of(sides.train), rules, whole),
        },
        refused={name: count for name, count in sorted(refused.items()) if count},
        card=card_of(train, raters=sides.raters, rules=rules),
    )


def answer_finding(one: LabelledAnswer, rules: DatasetRules) -> RowFinding:
    """Why an answer alone is not trained on, and what of it is compared with other answers."""
    reason = one.asked.refusal or machine_refusal(one, rules)
    if reason is None and not one.messages:
        reason = "no_prompt"
    if reason is None and len(one.answer.strip()) <= rules.min_chars:
        reason = "too_short"
    return RowFinding(reason, digest(one.prompt_digest.hex(), normal_text(one.answer)))


def _clean_answers(
    answers: Iterable[A], rules: DatasetRules, refused: Counter[str]
) -> Collection[A]:
    """Answers that can be trained on, by id; the same answer both good and bad is neither."""
    labels, contradicted = SpilledTable[bytes](), SpilledTable[bytes]()

    def found(one: A) -> RowFinding:
        return one.finding if isinstance(one, RowKey) else answer_finding(one, rules)

    def is_sound(one: A) -> bool:
        reason, identity, _ = found(one)
        if reason is not None:
            refused[reason] += 1
            return False
        label = BOTH[bool(one.label)]
        if labels.first(identity, label) != label:
            contradicted.add(identity)
        return True

    sound = keep(sorted_rows(answers, lambda one: one.name), is_sound)
    return settled(sound, lambda one: found(one).question, contradicted, refused)


def _balanced(
    rows: Collection[AnswerRow], rules: DatasetRules, refused: Counter[str]
) -> Collection[AnswerRow]:
    """Rows with good and bad answers in balance; a pair is one of each."""
    kept = balance(rows, lambda one: one.label, lambda one: one.name, rules)
    refused["unbalanced"] += len(rows) - len(kept)
    return kept


def _answers_of(one: Pair | LabelledAnswer) -> list[LabelledAnswer]:
    if isinstance(one, LabelledAnswer):
        return [one]
    sides = (
        ("chosen", one.chosen, one.chosen_turn, one.chosen_cut, True),
        ("rejected", one.rejected, one.rejected_turn, one.rejected_cut, False),
    )
    return [
        LabelledAnswer(
            f"{one.pair_id}/{side}",
            one.messages,
            text,
            label,
            answer_cut=cut,
            meta=one.meta,
            tools=one.tools,
            answer_turn=turn,
            tenant=one.tenant,
        )
        for side, text, turn, cut, label in sides
    ]
