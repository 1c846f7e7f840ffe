"""Dataset rows of single answers with a label, good or bad: what KTO trains on. Pure.

A thumb is a row of its own; a preference pair is two. Sides are those of `sides`, over both kinds
together, so a rater or prompt that is set apart for the judge trains by neither.
"""

# pyright: strict
from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from services.training.caps import balance
from services.training.dataset import (
    Selection,
    capped,
    card_of,
    clean_pairs,
    evaluation_prompts,
    machine_refusal,
    trained_row,
)
from services.training.dataset_rows import (
    HELDOUT,
    JUDGE,
    PROMPTS,
    TRAIN,
    LabelledAnswer,
    Pair,
)
from services.training.machine_made import people_made
from services.training.sides import DatasetRules, assign, digest, set_apart
from services.training.thumbs import paired_thumbs
from shared.contracts.prompt_key import normal_text


def select_labelled(
    pairs: Iterable[Pair], answers: Iterable[LabelledAnswer], rules: DatasetRules
) -> Selection:
    """Rows of a dataset of labelled answers. Held out are pairs, and good answers.

    Args:
        pairs: Preference pairs, those of the judge's panel included.
        answers: Thumbs, or an import's rows.
        rules: Checks and shares.

    """
    refused: Counter[str] = Counter()
    everything: list[Pair | LabelledAnswer] = [
        *clean_pairs(pairs, rules, refused),
        *_clean_answers(answers, rules, refused),
    ]
    sides = assign(*set_apart(everything, rules), rules)
    refused += sides.refused
    trained = _balanced(capped(sides.train, rules, refused), rules, refused)
    judged = people_made(sides.judge, refused)
    votes = [one for one in judged if isinstance(one, Pair)]
    by_thumbs = not votes and rules.judge_from_thumbs
    judge = [one.row() for one in (judged if by_thumbs else votes)]
    if by_thumbs:
        judge = paired_thumbs(judge)
    refused["answer_of_judge"] += len(judged) - (2 * len(judge) if by_thumbs else len(judge))
    train = [trained_row(row, rules) for one in trained for row in _answers_of(one)]
    measured = people_made(sides.heldout, refused)
    heldout = [one for one in measured if isinstance(one, Pair) or one.label]
    refused["bad_answer_held_out"] += len(measured) - len(heldout)
    pools = (measured, judged if by_thumbs else votes)
    return Selection(
        files={
            TRAIN: train,
            HELDOUT: [one.row() for one in heldout],
            JUDGE: judge,
            PROMPTS: evaluation_prompts(pools, {digest(one.prompt) for one in sides.train}, rules),
        },
        refused={name: count for name, count in sorted(refused.items()) if count},
        card=card_of(train, raters=sides.raters, rules=rules),
    )


def _clean_answers(
    answers: Iterable[LabelledAnswer], rules: DatasetRules, refused: Counter[str]
) -> Sequence[LabelledAnswer]:
    """Answers that can be trained on, by id; the same answer both good and bad is neither."""
    sound: list[LabelledAnswer] = []
    labels: defaultdict[tuple[str, str], set[bool]] = defaultdict(set)
    for one in sorted(answers, key=lambda one: one.row_id):
        if (reason := one.asked.refusal or machine_refusal(one, rules)) is not None:
            refused[reason] += 1
        elif not one.messages:
            refused["no_prompt"] += 1
        elif len(one.answer.strip()) <= rules.min_chars:
            refused["too_short"] += 1
        else:
            sound.append(one)
            labels[_identity(one)].add(one.label)
    kept: dict[tuple[str, str], LabelledAnswer] = {}
    for one in sound:
        if len(labels[_identity(one)]) > 1:
            refused["contradictory"] += 1
        elif _identity(one) in kept:
            refused["duplicate"] += 1
        else:
            kept[_identity(one)] = one
    return list(kept.values())


def _balanced(
    rows: Sequence[Pair | LabelledAnswer], rules: DatasetRules, refused: Counter[str]
) -> Sequence[Pair | LabelledAnswer]:
    """Rows with good and bad answers in balance; a pair is one of each."""
    kept = balance(
        rows,
        lambda one: one.label if isinstance(one, LabelledAnswer) else None,
        lambda one: one.name,
        rules,
    )
    refused["unbalanced"] += len(rows) - len(kept)
    return kept


def _identity(one: LabelledAnswer) -> tuple[str, str]:
    return (one.prompt, normal_text(one.answer))


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
