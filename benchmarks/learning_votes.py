"""Simulated people of the learning benchmark: their votes as the events that training reads.

A fifth of the raters is set apart for the judge by the service's own rule. Ablations distort the
votes of the others alone, so the judge stays true.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.hidden_taste import HiddenTaste, prefers
from benchmarks.learning_service import MODEL, Feedback
from deploy.starter import corpus
from services.training.dataset_rows import pair_of
from services.training.sides import DatasetRules, set_apart
from shared.contracts.events.base import Message
from shared.contracts.events.preferences import PairSource, PreferencePair, UnpairedExample

VOTES = 300
RATERS = 100
SHARPNESS = 3.0
FLIPPED = {"noisy": 0.2, "random": 0.5, "inverted": 1.0}
"""Share of the training votes that an ablation flips."""
BY_AI = {"ai_judge": 1.0, "hybrid": 0.5}
"""Share of the training votes that the AI judge of an ablation casts."""
AI_LENGTH = 1 / 300
"""Of a unit of the taste, what a character more is worth to the AI judge."""
AI_TIE = 0.05
LENGTH = 50
"""Characters that are worth a unit of the taste to raters who like length alone."""
ZEALOTS = {"capped": 1, "uncapped": 1, "colluders": 5}
"""Raters of an ablation who vote against the taste."""
BY_ZEALOTS = 0.4
"""Share of the training votes that they cast."""
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
EVERY = timedelta(minutes=2)
"""Between two votes: nobody is taken for a machine that votes in bursts."""


@dataclass(frozen=True)
class SaidAnswer:
    """What a version said, and whether it ran into the limit of tokens."""

    text: str
    cut: bool


@dataclass(frozen=True)
class Asked:
    """A prompt with two answers of one version."""

    prompt: corpus.Prompt
    answers: tuple[SaidAnswer, SaidAnswer]


def votes(
    asked: Sequence[Asked],
    taste: HiddenTaste,
    ablation: str,
    *,
    version: str,
    name: str,
    week: int = 0,
) -> list[Feedback]:
    """At most `VOTES` votes of a week on pairs whose answers differ; `name` seeds them."""
    chance = random.Random(name)
    differing = [one for one in asked if one.answers[0].text != one.answers[1].text][:VOTES]
    raters = [f"rater-{number}" for number in range(RATERS)]
    cast = {
        f"{name}-{number}": (one, raters[number % RATERS]) for number, one in enumerate(differing)
    }
    events: list[Feedback] = []
    trainers = _trainers(raters)
    zealots = sorted(trainers)[: ZEALOTS.get(ablation, 0)]
    for at, (vote, (one, rater)) in enumerate(cast.items()):
        margin = taste.utility(one.answers[0].text) - taste.utility(one.answers[1].text)
        first, by, trains = prefers(margin, SHARPNESS, chance), rater, rater in trainers
        if trains:
            first, by = _distorted(ablation, one, margin, first, (rater, zealots), chance)
        if first is None:
            continue
        event = _pair(
            vote,
            one,
            first=first,
            rater=by,
            version=version,
            at=BEGIN + timedelta(weeks=week) + at * EVERY,
            chance=chance,
        )
        events.append(_thumb(event, chance) if trains and ablation == "thumbs" else event)
    return events


def thumbs(
    prompts: Sequence[corpus.Prompt],
    answers: Sequence[SaidAnswer],
    taste: HiddenTaste,
    *,
    version: str,
    name: str,
) -> list[Feedback]:
    """A thumb on each answer: up for the better half."""
    middle = sorted(taste.utility(answer.text) for answer in answers)[len(answers) // 2]
    return [
        UnpairedExample(
            pair_id=f"{name}-{number}",
            tenant="default",
            model=MODEL,
            messages=_turn(prompt),
            completion=answer.text,
            cut=answer.cut,
            label=taste.utility(answer.text) > middle,
            version=version,
            causes=(f"{name}-{number}:0",),
            raters=(f"user-{number}",),
            created_at=BEGIN,
        )
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]


def _trainers(raters: Sequence[str]) -> set[str]:
    """Raters whose votes are trained on, by the service's own rule."""
    blank = Asked(
        corpus.Prompt("?", "", ""), (SaidAnswer("a", cut=False), SaidAnswer("b", cut=False))
    )
    chance = random.Random(0)
    pairs = [
        pair_of(_pair(rater, blank, first=True, rater=rater, version="", at=BEGIN, chance=chance))
        for rater in raters
    ]
    trained, _ = set_apart(pairs, DatasetRules())
    return {rater for pair in trained for rater in pair.raters}


def _distorted(
    ablation: str,
    asked: Asked,
    margin: float,
    first: bool,
    raters: tuple[str, Sequence[str]],
    chance: random.Random,
) -> tuple[bool | None, str]:
    """Whether the first answer is chosen, None for a tie, and who casts the vote.

    `raters` are the honest one and those who vote against the taste.
    """
    honest, zealots = raters
    longer = len(asked.answers[0].text) - len(asked.answers[1].text)
    if chance.random() < BY_AI.get(ablation, 0.0):
        judged = margin + AI_LENGTH * longer
        return (None if abs(judged) < AI_TIE else judged > 0), honest
    if ablation == "length":
        return prefers(longer / LENGTH, SHARPNESS, chance), honest
    if zealots:
        against = chance.random() < BY_ZEALOTS
        return (not first, chance.choice(zealots)) if against else (first, honest)
    return first != (chance.random() < FLIPPED.get(ablation, 0.0)), honest


def _pair(
    name: str,
    asked: Asked,
    *,
    first: bool,
    rater: str,
    version: str,
    at: datetime,
    chance: random.Random,
) -> PreferencePair:
    chosen, rejected = asked.answers if first else asked.answers[::-1]
    return PreferencePair(
        pair_id=name,
        tenant="default",
        model=MODEL,
        messages=_turn(asked.prompt),
        chosen=chosen.text,
        rejected=rejected.text,
        chosen_cut=chosen.cut,
        rejected_cut=rejected.cut,
        chosen_version=version,
        rejected_version=version,
        chosen_side=chance.choice(("left", "right")),
        source=PairSource.vote,
        causes=(f"{name}:0",),
        raters=(rater,),
        created_at=at,
    )


def _thumb(pair: PreferencePair, chance: random.Random) -> UnpairedExample:
    """One answer of a pair with its thumb."""
    good = chance.random() < 0.5
    return UnpairedExample(
        **pair.model_dump(include={"pair_id", "tenant", "model", "causes", "raters", "created_at"}),
        messages=pair.messages,
        completion=pair.chosen if good else pair.rejected,
        cut=pair.chosen_cut if good else pair.rejected_cut,
        label=good,
        version=pair.chosen_version,
    )


def _turn(prompt: corpus.Prompt) -> tuple[Message, ...]:
    return (Message(role="user", content=prompt.text),)


def turns(prompts: Sequence[corpus.Prompt]) -> list[dict[str, Any]]:
    """Lines of a file of prompts."""
    return [{"messages": [{"role": "user", "content": one.text}]} for one in prompts]
