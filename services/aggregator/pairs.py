"""Preference pairs and unpaired examples, from single feedbacks, votes and answers to one prompt."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson

from services.aggregator.contributions import Contribution, OutcomeCounted
from services.aggregator.fold import Fold, Output, cause_id
from services.aggregator.rows import MAX_VALUE_BYTES, KeptAnswer, PromptRow
from shared.contracts.events.base import Context, Event, Message
from shared.contracts.events.feedback import (
    BAD_SCORE,
    GOOD_SCORE,
    Correction,
    FeedbackSubmitted,
    FeedbackType,
    Preference,
)
from shared.contracts.events.interactions import InteractionRecorded
from shared.contracts.events.preferences import (
    PairSource,
    PreferencePair,
    PreferenceRetracted,
    UnpairedExample,
)
from shared.contracts.events.rated import RatedAnswer
from shared.contracts.events.signals import SignalObserved
from shared.contracts.events.votes import Choice, Side, VoteCast
from shared.contracts.topics import PREFERENCES

PAIRS_PER_ANSWER = 2
"""Pairs that a new answer makes with earlier ones to the same prompt."""
MAX_ANSWERS = 40
"""Answers kept per prompt, MAX_VALUE_BYTES of them; the oldest are forgotten first, their pairs stand."""


def feedback_product(
    interaction: InteractionRecorded, feedback: FeedbackSubmitted, edition: int
) -> Event | None:
    """The pair or example that one feedback makes, if any; anonymous feedback makes none."""
    if feedback.anonymous or not interaction.messages:
        return None
    completion, answer = interaction.completion, interaction.answer
    version = interaction.version
    rejected_cut = False
    chosen_turn = rejected_turn = None
    match feedback.type, feedback.value:
        case ((FeedbackType.thumbs_up | FeedbackType.thumbs_down), _):
            if not completion:
                return None
            label = feedback.type is FeedbackType.thumbs_up
            return _unpaired(interaction, feedback, edition, label=label)
        case FeedbackType.text_correction, Correction() as value:
            rejected_turn = _corrected_turn(value, interaction)
            original = completion if rejected_turn else value.original or completion
            sides = (value.corrected, original, "", version)
            rejected_cut = interaction.cut and original.strip() == completion.strip()
            source = PairSource.correction
        case FeedbackType.demonstration, str() as value:
            sides = (value, completion, "", version)
            rejected_cut, rejected_turn = interaction.cut, answer
            source = PairSource.demonstration
        case FeedbackType.preference, Preference() as value:
            sides = (
                value.chosen,
                value.rejected,
                value.chosen_version,
                value.rejected_version,
            )
            chosen_turn = answer if value.chosen.strip() == completion.strip() else None
            rejected_turn = answer if value.rejected.strip() == completion.strip() else None
            source = PairSource.preference
        case _:
            return None
    chosen, rejected, chosen_version, rejected_version = sides
    if not differ(chosen, rejected):
        return None
    return PreferencePair(
        pair_id=_product_id(feedback, edition),
        tenant=feedback.tenant,
        model=interaction.model,
        messages=interaction.messages,
        tools=interaction.tools,
        chosen=chosen,
        rejected=rejected,
        chosen_turn=chosen_turn,
        rejected_turn=rejected_turn,
        untrainable=interaction.untrainable,
        rejected_cut=rejected_cut,
        chosen_version=chosen_version,
        rejected_version=rejected_version,
        source=source,
        causes=(f"{feedback.feedback_id}:{edition}",),
        traces=(feedback.trace_id,),
        raters=person_of(feedback.user_id),
        askers=person_of(interaction.user_id),
        context=merged(interaction.context, feedback.context),
        created_at=feedback.submitted_at,
    )


def signal_product(
    interaction: InteractionRecorded, signal: SignalObserved, edition: int
) -> UnpairedExample | None:
    """The example that a signal makes where it implies that the answer was good or bad."""
    score = signal.score
    if score is None or BAD_SCORE < score < GOOD_SCORE:
        return None
    if signal.anonymous or not interaction.messages or not interaction.completion:
        return None
    return _unpaired(interaction, signal, edition, label=score >= GOOD_SCORE)


def _unpaired(
    interaction: InteractionRecorded,
    said: FeedbackSubmitted | SignalObserved,
    edition: int,
    *,
    label: bool,
) -> UnpairedExample:
    return UnpairedExample.unvalidated(
        {
            "pair_id": _product_id(said, edition),
            "tenant": said.tenant,
            "model": interaction.model,
            "messages": interaction.messages,
            "tools": interaction.tools,
            "completion": interaction.completion,
            "answer": interaction.answer,
            "untrainable": interaction.untrainable,
            "cut": interaction.cut,
            "label": label,
            "version": interaction.version,
            "causes": (f"{said.feedback_id}:{edition}",),
            "traces": (said.trace_id,),
            "raters": person_of(said.user_id),
            "askers": person_of(interaction.user_id),
            "context": merged(interaction.context, said.context),
            "created_at": said.submitted_at,
        }
    )


def _product_id(said: FeedbackSubmitted | SignalObserved, edition: int) -> str:
    return cause_id("product", said.tenant, said.trace_id, said.feedback_id, str(edition))


def _corrected_turn(value: Correction, interaction: InteractionRecorded) -> Message | None:
    """The answer as a turn, where it is what was corrected.

    An answer of tool calls alone has no text that a product could quote, so whatever it shows as the
    original stands for the calls.
    """
    answer, original = interaction.answer, value.original.strip()
    if answer is None:
        return None
    quoted = original in {"", answer.content.strip(), interaction.completion.strip()}
    return answer if quoted or not answer.content.strip() else None


def vote_product(vote: VoteCast) -> PreferencePair | None:
    """The pair that a vote makes; a tie, both bad, equal texts or no name make none."""
    winners: dict[Choice, tuple[Side, Side]] = {
        Choice.left: (vote.left, vote.right),
        Choice.right: (vote.right, vote.left),
    }
    sides = winners.get(vote.choice)
    if sides is None or vote.anonymous or not vote.messages:
        return None
    chosen, rejected = sides
    if not differ(chosen.completion, rejected.completion):
        return None
    return PreferencePair(
        pair_id=cause_id("vote", vote.tenant, vote.comparison_id, str(vote.revision)),
        tenant=vote.tenant,
        model=vote.model,
        messages=vote.messages,
        tools=vote.tools,
        chosen=chosen.completion,
        rejected=rejected.completion,
        chosen_turn=chosen.answer,
        rejected_turn=rejected.answer,
        chosen_cut=chosen.cut,
        rejected_cut=rejected.cut,
        chosen_version=chosen.version,
        rejected_version=rejected.version,
        chosen_side="left" if vote.choice is Choice.left else "right",
        source=PairSource.vote,
        panel=vote.panel,
        causes=(f"{vote.comparison_id}:{vote.revision}",),
        traces=(chosen.trace_id, rejected.trace_id),
        raters=person_of(vote.user_id),
        askers=person_of(vote.asker),
        context=vote.context,
        created_at=vote.submitted_at,
    )


def fold_rated(row: PromptRow | None, event: RatedAnswer) -> Fold[PromptRow]:
    """Fold a rated answer into its prompt's row: take its old pairs back, make new ones.

    A good answer is paired with the newest bad ones to the same prompt and the other way round,
    where their texts differ, unless the pair is larger than what is stored. An earlier or equal
    revision changes nothing.
    """
    row = row or PromptRow()
    name = f"{event.trace_id}\x1f{event.feedback_id}"
    old = row.answers.get(name)
    if old is not None and event.revision <= old["revision"]:
        return Fold(row)
    answers = {key: answer.copy() for key, answer in row.answers.items()}
    answers.pop(name, None)
    contributions: list[Contribution] = []
    outputs: list[Output] = []
    for pair_id in old["pairs"] if old is not None else []:
        outputs.append(retraction(pair_id, event.tenant, "rating changed", event.created_at))
        for answer in answers.values():
            if pair_id in answer["pairs"]:
                answer["pairs"].remove(pair_id)
    stored: KeptAnswer = {"revision": event.revision, "score": event.score, "pairs": []}
    if event.score is not None:
        stored["event"] = event.model_dump(mode="json", exclude={"messages", "tools"})
        for other, kept in _opposites(answers, event):
            pair = _rated_pair(event, _answered(event, kept))
            if len(pair.to_json()) > MAX_VALUE_BYTES:
                contributions.append(OutcomeCounted("pair_too_large"))
                continue
            stored["pairs"].append(pair.pair_id)
            other["pairs"].append(pair.pair_id)
            outputs.append(pair_output(pair, event.created_at))
    answers[name] = stored
    changed = PromptRow(_kept(answers), event.created_at.timestamp(), list(row.marks))
    return Fold(changed, contributions, outputs)


def _answered(event: RatedAnswer, stored: dict[str, Any]) -> RatedAnswer:
    """A kept answer, to the prompt as the event at hand has it; the two have one prompt_key."""
    return RatedAnswer.model_validate({**stored, "messages": event.messages, "tools": event.tools})


def _kept(answers: dict[str, KeptAnswer]) -> dict[str, KeptAnswer]:
    """The newest answers that a row holds. Their sizes alone decide, so replays forget the same."""
    size = 0
    newest: list[str] = []
    for name, answer in reversed(answers.items()):
        size += len(orjson.dumps([name, answer]))
        if len(newest) == MAX_ANSWERS or size > MAX_VALUE_BYTES:
            break
        newest.append(name)
    return {name: answers[name] for name in reversed(newest)}


def _opposites(
    answers: dict[str, KeptAnswer], event: RatedAnswer
) -> list[tuple[KeptAnswer, dict[str, Any]]]:
    score = event.score
    if score is None or BAD_SCORE < score < GOOD_SCORE:
        return []
    found = [
        (answer, kept)
        for answer in answers.values()
        if answer["score"] is not None
        and (kept := answer.get("event")) is not None
        and (answer["score"] <= BAD_SCORE if score >= GOOD_SCORE else answer["score"] >= GOOD_SCORE)
        and kept["model"] == event.model
        and differ(kept["completion"], event.completion)
    ]
    return found[::-1][:PAIRS_PER_ANSWER]


def _rated_pair(one: RatedAnswer, other: RatedAnswer) -> PreferencePair:
    assert one.score is not None
    assert other.score is not None
    chosen, rejected = (one, other) if one.score > other.score else (other, one)
    raters = dict.fromkeys((*person_of(chosen.user_id), *person_of(rejected.user_id)))
    askers = dict.fromkeys((*person_of(chosen.asker), *person_of(rejected.asker)))
    return PreferencePair(
        pair_id=cause_id("ratings", chosen.rated_id, rejected.rated_id),
        tenant=chosen.tenant,
        model=chosen.model,
        messages=chosen.messages,
        tools=chosen.tools,
        chosen=chosen.completion,
        rejected=rejected.completion,
        chosen_turn=chosen.answer,
        rejected_turn=rejected.answer,
        untrainable=tuple(dict.fromkeys((*chosen.untrainable, *rejected.untrainable))),
        chosen_cut=chosen.cut,
        rejected_cut=rejected.cut,
        chosen_version=chosen.version,
        rejected_version=rejected.version,
        source=PairSource.ratings,
        causes=(
            f"{chosen.feedback_id}:{chosen.revision}",
            f"{rejected.feedback_id}:{rejected.revision}",
        ),
        traces=(chosen.trace_id, rejected.trace_id),
        raters=tuple(raters),
        askers=tuple(askers),
        context=chosen.context,
        created_at=max(chosen.created_at, rejected.created_at),
    )


def pair_output(product: PreferencePair | UnpairedExample, time: datetime) -> Output:
    """A pair or example on its way to the preferences topic."""
    return Output(PREFERENCES, product.pair_id, product, product.pair_id, time)


def retraction(pair_id: str, tenant: str, reason: str, time: datetime) -> Output:
    """Takes a pair or example back."""
    event = PreferenceRetracted(pair_id=pair_id, tenant=tenant, reason=reason, created_at=time)
    return Output(PREFERENCES, pair_id, event, cause_id("retraction", pair_id), time)


def differ(chosen: str, rejected: str) -> bool:
    """Both texts say something, and not the same."""
    chosen, rejected = chosen.strip(), rejected.strip()
    return bool(chosen) and bool(rejected) and chosen != rejected


def merged(first: Context, second: Context) -> Context:
    """The first context, with what it leaves empty taken from the second."""
    return Context(
        session_id=first.session_id or second.session_id,
        locale=first.locale or second.locale,
        segment=first.segment or second.segment,
        category=first.category or second.category,
        labels=first.labels or second.labels,
    )


def person_of(user_id: str) -> tuple[str, ...]:
    """The person, where one is known."""
    return (user_id,) if user_id else ()
