"""Settlement: what the present revision of a feedback adds to figures, pairs, ratings and scores."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from services.aggregator import aggregates
from services.aggregator.contributions import FeedbackCounted, FigureDeltas, FiguresChanged
from services.aggregator.fold import Fold, FoldRules, Output, cause_id
from services.aggregator.pairs import (
    BAD_SCORE,
    GOOD_SCORE,
    feedback_product,
    merged,
    pair_output,
    retraction,
)
from services.aggregator.rows import FeedbackEntry, FirstScore, TraceRow
from shared.contracts.events.feedback import (
    RATINGS,
    FeedbackSubmitted,
    FeedbackType,
    FeedbackWithdrawn,
)
from shared.contracts.events.interactions import InteractionRecorded, Purpose
from shared.contracts.events.preferences import PreferencePair, UnpairedExample
from shared.contracts.events.quality import ExampleJoined
from shared.contracts.events.rated import RatedAnswer, RatedScore
from shared.contracts.prompt_key import digest, prompt_key
from shared.contracts.topics import EXAMPLES, RATED

COUNTED = frozenset({Purpose.live, Purpose.explicit})
"""Purposes whose interactions people see one at a time, so that feedback rates mean something."""


def settle(
    fold: Fold[TraceRow],
    interaction: InteractionRecorded,
    name: str,
    old: FeedbackEntry | None,
    entry: FeedbackEntry,
    rules: FoldRules,
) -> None:
    """Settle one feedback: make its effects those of its present revision.

    Runs again at each revision. `counted` is set once and never taken back, so counters only grow;
    figures, pairs and ratings are replaced: what `old` caused is subtracted or retracted first.
    """
    row = fold.row
    feedback = FeedbackSubmitted.model_validate(entry.body) if entry.body else None
    # Rows share entries with the rows they were copied from: changed in place, a refused event would
    # leave `counted` set in the row before it, and the feedback would never count.
    entry = replace(entry)
    row.entries[name] = entry
    if entry.seen and not entry.counted:
        entry.counted = "joined"
        entry.minute = max(entry.ts_ms, row.ts_ms) // 60_000
        fold.contributions.append(FeedbackCounted(interaction.version, entry.kind))
    if interaction.purpose in COUNTED:
        _refigure(fold, interaction, old, entry, feedback)
    time = feedback.submitted_at if feedback else datetime.fromtimestamp(row.touched_s, UTC)
    product = feedback_product(interaction, feedback, entry.number) if feedback else None
    assert product is None or isinstance(product, PreferencePair | UnpairedExample)
    produce(fold, entry, old, interaction.tenant, time, product)
    _rate(fold, interaction, name, entry, feedback, time, rules)
    _score(fold, interaction, entry, rules)


def _refigure(
    fold: Fold[TraceRow],
    interaction: InteractionRecorded,
    old: FeedbackEntry | None,
    entry: FeedbackEntry,
    feedback: FeedbackSubmitted | None,
) -> None:
    row = fold.row
    started_s = row.started_s
    entry.figures = _figures(feedback) if feedback is not None else ()
    before = old.figures if old is not None else ()
    deltas = _difference(before, entry.figures)
    if deltas:
        fold.contributions.append(
            FiguresChanged(interaction.version, started_s, entry.minute, deltas)
        )
    active = any(one.figures for one in row.entries.values())
    if active and row.with_feedback_minute < 0:
        row.with_feedback_minute = entry.minute
        delta = 1
    elif not active and row.with_feedback_minute >= 0:
        delta = -1
    else:
        return
    fold.contributions.append(
        FiguresChanged(
            interaction.version,
            started_s,
            row.with_feedback_minute,
            ((aggregates.WITH_FEEDBACK, delta),),
        )
    )
    if delta < 0:
        row.with_feedback_minute = -1


def _figures(feedback: FeedbackSubmitted) -> FigureDeltas:
    """What one feedback adds to the figures of its version."""
    deltas: list[tuple[int, float]] = [(aggregates.FEEDBACK, 1)]
    score = feedback.score
    if feedback.type in RATINGS and score is not None:
        if score >= GOOD_SCORE:
            deltas.append((aggregates.POSITIVE, 1))
        elif score <= BAD_SCORE:
            deltas.append((aggregates.NEGATIVE, 1))
    if feedback.type is FeedbackType.text_correction:
        deltas.append((aggregates.CORRECTIONS, 1))
    if score is not None:
        deltas.append((aggregates.SCORED, 1))
        if score:
            deltas.append((aggregates.SCORE, score))
    return tuple(deltas)


def _difference(before: FigureDeltas, after: FigureDeltas) -> FigureDeltas:
    sums = dict(after)
    for index, delta in before:
        sums[index] = sums.get(index, 0) - delta
    return tuple((index, delta) for index, delta in sorted(sums.items()) if delta)


def produce(
    fold: Fold[TraceRow],
    entry: FeedbackEntry,
    old: FeedbackEntry | None,
    tenant: str,
    time: datetime,
    product: PreferencePair | UnpairedExample | None,
) -> None:
    """Replace the pair or example that a feedback makes: what `old` made is retracted first."""
    for pair_id in old.products if old is not None else []:
        reason = "feedback edited" if entry.body else "feedback withdrawn"
        fold.outputs.append(retraction(pair_id, tenant, reason, time))
    entry.products = [product.pair_id] if product else []
    if product:
        fold.outputs.append(pair_output(product, time))


def _rate(
    fold: Fold[TraceRow],
    interaction: InteractionRecorded,
    name: str,
    entry: FeedbackEntry,
    feedback: FeedbackSubmitted | None,
    time: datetime,
    rules: FoldRules,
) -> None:
    """Hand a rating on to the answers of the same prompt, or take it back from there."""
    rateable = (
        feedback is not None
        and feedback.type in RATINGS
        and not feedback.anonymous
        and bool(interaction.completion.strip())
        and bool(interaction.messages)
    )
    tenant, messages, tools = interaction.tenant, interaction.messages, interaction.tools
    standing = prompt_key(tenant, messages) if entry.rated is True else entry.rated
    key = prompt_key(tenant, messages, tools, rules.prompt_ignores) if rateable else ""
    entry.rated = key
    for place in dict.fromkeys((standing, key)):
        # Where the rules of keys changed in between, the rating moves: it leaves its old place.
        if place:
            score = feedback.score if feedback is not None and place == key else None
            answer = _rated_answer(interaction, name, entry, feedback, time, place, score)
            fold.outputs.append(Output(RATED, place, answer, answer.rated_id, time))


def _rated_answer(
    interaction: InteractionRecorded,
    name: str,
    entry: FeedbackEntry,
    feedback: FeedbackSubmitted | None,
    time: datetime,
    key: str,
    score: float | None,
) -> RatedAnswer:
    """The answer for one prompt's row; without a score it takes the answer back from there."""
    cause = ("rated", interaction.tenant, interaction.trace_id, name, str(entry.number))
    moved = (key,) if score is None and entry.rated else ()
    return RatedAnswer(
        rated_id=cause_id(*cause, *moved),
        prompt_key=key,
        tenant=interaction.tenant,
        model=interaction.model,
        trace_id=interaction.trace_id,
        feedback_id=name,
        revision=entry.number,
        messages=interaction.messages,
        tools=interaction.tools,
        completion=interaction.completion,
        answer=interaction.answer,
        untrainable=interaction.untrainable,
        cut=interaction.cut,
        version=interaction.version,
        score=score,
        user_id=feedback.user_id if feedback is not None else "",
        context=(
            merged(interaction.context, feedback.context)
            if feedback is not None
            else interaction.context
        ),
        created_at=time,
    )


def first_score(event: FeedbackSubmitted | FeedbackWithdrawn, ts_ms: int) -> FirstScore | None:
    """What the judge's counters take of a first submission: later ones never change them.

    Its time is the log's, for a producer's timestamp could spread a user's scores over many days.
    """
    if isinstance(event, FeedbackWithdrawn) or event.anonymous or event.score is None:
        return None
    return FirstScore(event.score, event.user_id, ts_ms / 1000)


def _score(
    fold: Fold[TraceRow], interaction: InteractionRecorded, entry: FeedbackEntry, rules: FoldRules
) -> None:
    """Hand the interaction's first scored feedback on to the counters of the judge."""
    row = fold.row
    if row.scored or entry.first is None or interaction.purpose is not Purpose.live:
        return
    row.scored = True
    score, rater, received_s = entry.first
    rater = rater or interaction.user_id
    who = ("user", rater) if rater else ("trace", interaction.trace_id)
    time = datetime.fromtimestamp(received_s, UTC)
    cap_key = digest(interaction.tenant, *who, interaction.rollout, time.date().isoformat())
    score_id = cause_id("score", interaction.tenant, interaction.trace_id)
    event = RatedScore(
        score_id=score_id,
        cap_key=cap_key,
        tenant=interaction.tenant,
        trace_id=interaction.trace_id,
        version=interaction.version,
        arm=interaction.arm,
        rollout=interaction.rollout,
        segment=rules.segment(interaction.context.segment),
        score=score,
        created_at=time,
    )
    fold.outputs.append(Output(RATED, cap_key, event, score_id, time))


def example(row: TraceRow, interaction: InteractionRecorded, time: datetime, cause: str) -> Output:
    """The joined row for queries, as it is after this event."""
    joined = ExampleJoined(
        trace_id=interaction.trace_id,
        tenant=interaction.tenant,
        model=interaction.model,
        version=interaction.version,
        messages=interaction.messages,
        tools=interaction.tools,
        completion=interaction.completion,
        answer=interaction.answer,
        untrainable=interaction.untrainable,
        context=interaction.context,
        started_at=interaction.started_at,
        feedback=tuple(
            FeedbackSubmitted.model_validate(entry.body)
            for entry in row.entries.values()
            if entry.body is not None and entry.counted == "joined"
        ),
        updated_at=time,
    )
    event_id = cause_id("example", interaction.tenant, interaction.trace_id, cause)
    return Output(EXAMPLES, interaction.trace_id, joined, event_id, time)
