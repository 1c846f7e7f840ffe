"""Settlement: what the present revision of a feedback adds to figures, pairs, ratings and scores."""

from __future__ import annotations

from datetime import UTC, datetime

from services.aggregator import aggregates
from services.aggregator.contributions import FeedbackCounted, FigureDeltas, FiguresChanged
from services.aggregator.figures import (
    difference,
    feedback_figures,
    is_signal,
    paired_figures,
    signal_figures,
)
from services.aggregator.fold import Fold, FoldRules, Output, cause_id
from services.aggregator.pairs import (
    feedback_product,
    merged,
    pair_output,
    retraction,
    signal_product,
)
from services.aggregator.rows import NO_FEEDBACK, FeedbackEntry, FirstScore, TraceRow
from shared.contracts.events.base import Event, Untrainable
from shared.contracts.events.feedback import (
    RATINGS,
    FeedbackSubmitted,
    FeedbackWithdrawn,
)
from shared.contracts.events.interactions import OPERATIONS_ONLY, InteractionRecorded, Purpose
from shared.contracts.events.preferences import PreferencePair, UnpairedExample
from shared.contracts.events.quality import ExampleJoined
from shared.contracts.events.rated import RatedAnswer, RatedScore
from shared.contracts.events.signals import SignalObserved
from shared.contracts.prompt_key import digest, prompt_key
from shared.contracts.topics import EXAMPLES, RATED

COUNTED = frozenset({Purpose.live, Purpose.explicit})
"""Purposes whose interactions people see one at a time, so that feedback rates mean something."""


def counts(interaction: InteractionRecorded) -> bool:
    """Whether an interaction and what is said of it are in the figures."""
    return interaction.purpose in COUNTED and interaction.api not in OPERATIONS_ONLY


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
    said = _said(entry)
    feedback = said if isinstance(said, FeedbackSubmitted) else None
    # Rows share entries with the rows they were copied from: changed in place, a refused event would
    # leave `counted` set in the row before it, and the feedback would never count.
    entry = entry.copy()
    row.entries[name] = entry
    if entry.seen and not entry.counted:
        entry.counted = "joined"
        entry.minute = max(entry.ts_ms, row.ts_ms) // 60_000
        fold.contributions.append(FeedbackCounted(interaction.version, entry.kind))
        if counts(interaction) and not is_signal(entry):
            fold.contributions.append(rules.audience("feedback", interaction.context))
    if counts(interaction):
        _refigure(fold, interaction, old, entry, said)
        _repair(fold, interaction, name, old)
    time = said.submitted_at if said else datetime.fromtimestamp(row.touched_s, UTC)
    product: Event | None = None
    if feedback is not None:
        product = feedback_product(interaction, feedback, entry.number)
    elif isinstance(said, SignalObserved) and rules.signals_teach:
        product = signal_product(interaction, said, entry.number)
    assert product is None or isinstance(product, PreferencePair | UnpairedExample)
    produce(fold, entry, old, interaction.tenant, time, product)
    _rate(fold, interaction, name, entry, feedback, time, rules)
    _score(fold, interaction, entry, rules)


def _said(entry: FeedbackEntry) -> FeedbackSubmitted | SignalObserved | None:
    """The present revision as its event; None once withdrawn."""
    if not entry.body:
        return None
    return (SignalObserved if is_signal(entry) else FeedbackSubmitted).model_validate(entry.body)


def _refigure(
    fold: Fold[TraceRow],
    interaction: InteractionRecorded,
    old: FeedbackEntry | None,
    entry: FeedbackEntry,
    said: FeedbackSubmitted | SignalObserved | None,
) -> None:
    row = fold.row
    match said:
        case FeedbackSubmitted():
            entry.figures = feedback_figures(said)
        case SignalObserved():
            entry.figures = signal_figures(said)
        case None:
            entry.figures = ()
    before = old.figures if old is not None else ()
    _change(fold, interaction, entry.minute, difference(before, entry.figures))
    if is_signal(entry):
        return
    active = any(one.figures and not is_signal(one) for one in row.entries.values())
    if active and row.with_feedback_minute < 0:
        row.with_feedback_minute = entry.minute
        _change(fold, interaction, entry.minute, ((aggregates.WITH_FEEDBACK, 1),))
    elif not active and row.with_feedback_minute >= 0:
        minute, row.with_feedback_minute = row.with_feedback_minute, NO_FEEDBACK
        _change(fold, interaction, minute, ((aggregates.WITH_FEEDBACK, -1),))


def _repair(
    fold: Fold[TraceRow], interaction: InteractionRecorded, name: str, old: FeedbackEntry | None
) -> None:
    """Move the figures of implied beside explicit satisfaction to what the row says now."""
    entries = fold.row.entries
    if len({is_signal(entry) for entry in entries.values()}) == 1:
        return
    others = [entry for key, entry in entries.items() if key != name]
    before = paired_figures(others if old is None else [*others, old])
    after = paired_figures(entries.values())
    if before != after:
        for sign, paired in ((-1, before), (1, after)):
            if paired is not None:
                minute, deltas = paired
                signed = tuple((index, sign * delta) for index, delta in deltas)
                _change(fold, interaction, minute, signed)


def _change(
    fold: Fold[TraceRow], interaction: InteractionRecorded, minute: int, deltas: FigureDeltas
) -> None:
    if deltas:
        changed = FiguresChanged(interaction.version, fold.row.started_s, minute, deltas)
        fold.contributions.append(changed)


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
        # Questions that were withheld look alike and are not.
        and Untrainable.unchecked.value not in interaction.untrainable
    )
    tenant, messages, tools = interaction.tenant, interaction.messages, interaction.tools
    standing = prompt_key(tenant, messages) if entry.rated is True else entry.rated
    key = prompt_key(tenant, messages, tools, rules.prompt_ignores) if rateable else ""
    entry.rated = key
    for place in dict.fromkeys((standing, key)):
        # Where the rules of keys changed in between, the rating moves: it leaves its old place.
        if place:
            score = feedback.score if feedback is not None and place == key else None
            answer = rated_answer(interaction, name, entry, feedback, time, place, score)
            fold.outputs.append(Output(RATED, place, answer, answer.rated_id, time))


def rated_answer(
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
    return RatedAnswer.unvalidated(
        {
            "rated_id": cause_id(*cause, *moved),
            "prompt_key": key,
            "tenant": interaction.tenant,
            "model": interaction.model,
            "trace_id": interaction.trace_id,
            "feedback_id": name,
            "revision": entry.number,
            "messages": interaction.messages,
            "tools": interaction.tools,
            "completion": interaction.completion,
            "answer": interaction.answer,
            "untrainable": interaction.untrainable,
            "cut": interaction.cut,
            "version": interaction.version,
            "score": score,
            "user_id": feedback.user_id if feedback is not None else "",
            "asker": interaction.user_id,
            "context": (
                merged(interaction.context, feedback.context)
                if feedback is not None
                else interaction.context
            ),
            "created_at": time,
        }
    )


def first_score(
    event: FeedbackSubmitted | FeedbackWithdrawn | SignalObserved, ts_ms: int, rules: FoldRules
) -> FirstScore | None:
    """What the judge's counters take of a first submission: later ones never change them.

    Its time is the log's, for a producer's timestamp could spread a user's scores over many days.
    """
    if isinstance(event, FeedbackWithdrawn) or event.anonymous or event.score is None:
        return None
    if isinstance(event, SignalObserved) and not rules.signals_judge:
        return None
    return FirstScore(event.score, event.user_id, ts_ms / 1000)


def _score(
    fold: Fold[TraceRow], interaction: InteractionRecorded, entry: FeedbackEntry, rules: FoldRules
) -> None:
    """Hand the interaction's first scored feedback on to the counters of the judge."""
    row = fold.row
    if row.scored or entry.first is None or interaction.purpose is not Purpose.live:
        return
    if not counts(interaction):
        return
    row.scored = True
    score, rater, received_s = entry.first
    rater = rater or interaction.user_id
    who = ("user", rater) if rater else ("trace", interaction.trace_id)
    time = datetime.fromtimestamp(received_s, UTC)
    cap_key = digest(interaction.tenant, *who, interaction.rollout, time.date().isoformat())
    score_id = cause_id("score", interaction.tenant, interaction.trace_id)
    event = RatedScore.unvalidated(
        {
            "score_id": score_id,
            "cap_key": cap_key,
            "tenant": interaction.tenant,
            "trace_id": interaction.trace_id,
            "version": interaction.version,
            "arm": interaction.arm,
            "rollout": interaction.rollout,
            "segment": rules.segment(interaction.context.segment),
            "api_key": interaction.api_key,
            "score": score,
            "created_at": time,
        }
    )
    fold.outputs.append(Output(RATED, cap_key, event, score_id, time))


def example(row: TraceRow, interaction: InteractionRecorded, time: datetime, cause: str) -> Output:
    """The joined row for queries, as it is after this event."""
    said = [_said(entry) for entry in row.entries.values() if entry.counted == "joined"]
    joined = ExampleJoined.unvalidated(
        {
            "trace_id": interaction.trace_id,
            "tenant": interaction.tenant,
            "model": interaction.model,
            "version": interaction.version,
            "messages": interaction.messages,
            "tools": interaction.tools,
            "completion": interaction.completion,
            "answer": interaction.answer,
            "untrainable": interaction.untrainable,
            "asker": interaction.user_id,
            "context": interaction.context,
            "started_at": interaction.started_at,
            "feedback": tuple(one for one in said if isinstance(one, FeedbackSubmitted)),
            "signals": tuple(one for one in said if isinstance(one, SignalObserved)),
            "updated_at": time,
        }
    )
    event_id = cause_id("example", interaction.tenant, interaction.trace_id, cause)
    return Output(EXAMPLES, interaction.trace_id, joined, event_id, time)
