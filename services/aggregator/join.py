"""The join: interactions and feedback of one trace, in whichever order they come.

Reducers `(row, event) -> Fold`, without I/O and without a clock. Feedback identity is design
section 4. Revisions of one feedback have two orders: those that a product numbered, of which the
highest counts and the first body of a number, and those ordered by receipt, of which the last
received counts. Of the two that are left, the one received later counts. A withdrawal is a
revision. Each order keeps its best revision, so the result is the same in whichever order they come.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from services.aggregator import aggregates
from services.aggregator.contributions import (
    FeedbackCounted,
    FigureDeltas,
    FiguresChanged,
    OutcomeCounted,
    ScoreCounted,
    VoteCounted,
)
from services.aggregator.errors import EventRefused
from services.aggregator.fold import Fold, FoldRules, Output, cause_id
from services.aggregator.pairs import (
    BAD_SCORE,
    GOOD_SCORE,
    feedback_product,
    merged,
    pair_output,
    retraction,
    vote_product,
)
from services.aggregator.rows import CapRow, FeedbackEntry, FirstScore, Revised, TraceRow
from shared.contracts.events.feedback import (
    MAX_FEEDBACKS,
    RATINGS,
    FeedbackSubmitted,
    FeedbackType,
    FeedbackWithdrawn,
)
from shared.contracts.events.interactions import InteractionRecorded, Outcome, Purpose
from shared.contracts.events.preferences import PreferencePair, UnpairedExample
from shared.contracts.events.quality import ExampleJoined
from shared.contracts.events.rated import RatedAnswer, RatedScore
from shared.contracts.events.votes import Choice, VoteCast
from shared.contracts.feedback_id import default_feedback_id
from shared.contracts.prompt_key import digest, prompt_key
from shared.contracts.topics import EXAMPLES, RATED

UNJOINED = "unjoined"
"""Version under which feedback counts whose interaction never came."""
VOTE = "vote"
FAILURES = frozenset({Outcome.server_error, Outcome.timeout, Outcome.crash})
_NOT_BODY = frozenset({"submitted_at"})
"""What may differ between two sendings of one revision: when the service received it."""


def fold_interaction(
    row: TraceRow | None, event: InteractionRecorded, raw: bytes, ts_ms: int, rules: FoldRules
) -> Fold[TraceRow]:
    """Fold an interaction in, and all feedback that waited for it. A second one is ignored."""
    if row is not None and row.interaction:
        return Fold(row, contributions=[OutcomeCounted("interaction_repeated")])
    started_s = event.started_at.timestamp()
    if row is None:
        row = TraceRow(raw, {}, started_s, ts_ms, started_s)
        waiting: list[str] = []
    else:
        row = row.copy()
        row.interaction, row.started_s, row.ts_ms = raw, started_s, ts_ms
        row.touched_s = max(row.touched_s, started_s)
        waiting = [name for name, entry in row.entries.items() if not entry.counted]
    deltas: FigureDeltas = ((aggregates.INTERACTIONS, 1),)
    if event.outcome in FAILURES:
        deltas += ((aggregates.ERRORS, 1),)
    fold = Fold(row)
    if event.purpose in _COUNTED:
        fold.contributions.append(FiguresChanged(event.version, started_s, ts_ms // 60_000, deltas))
    for name in waiting:
        _settle(fold, event, name, None, row.entries[name], rules)
    if any(row.entries[name].counted for name in waiting):
        last = max(row.entries[name].at_s for name in waiting)
        time = max(event.started_at, datetime.fromtimestamp(last, UTC))
        fold.outputs.append(_example(row, event, time, "interaction"))
    return fold


def fold_feedback(
    row: TraceRow | None,
    event: FeedbackSubmitted | FeedbackWithdrawn,
    ts_ms: int,
    rules: FoldRules,
) -> Fold[TraceRow]:
    """Fold a submission or a withdrawal in; it counts once its interaction is there.

    Raises:
        EventRefused: the trace has as many feedbacks as can be kept.
    """
    row = row.copy() if row is not None else TraceRow()
    old = row.entries.get(event.feedback_id)
    body = event.model_dump(mode="json") if isinstance(event, FeedbackSubmitted) else None
    at_s = event.submitted_at.timestamp()
    new = Revised(event.revision, at_s, event.by_receipt, body)
    if old is not None and not _may_follow(old.kind, event):
        verdict, entry = "conflict", old
    else:
        verdict, entry = _revised(old, new, event.type.value, ts_ms)
    fold = Fold(row, contributions=[OutcomeCounted(verdict)])
    if verdict in {"stale", "duplicate"} and (body is None or entry.seen):
        row.entries[event.feedback_id] = entry
        return fold
    if verdict == "conflict":
        return fold
    if body is not None and not entry.seen:
        entry = replace(entry, seen=True, kind=event.type.value, first=_first(event, ts_ms))
    if old is None and len(row.entries) >= MAX_FEEDBACKS:
        raise EventRefused(
            "policy",
            f"trace_id: {MAX_FEEDBACKS} feedbacks of trace {event.trace_id} are kept at most",
        )
    row.entries[event.feedback_id] = entry
    row.touched_s = max(row.touched_s, at_s)
    if entry.kind == VOTE:
        # A withdrawn vote stays counted, as every withdrawn feedback does; its pair goes.
        _produce(fold, entry, old, event.tenant, event.submitted_at, None)
    elif row.interaction and entry.counted != UNJOINED:
        interaction = InteractionRecorded.model_validate_json(row.interaction)
        _settle(fold, interaction, event.feedback_id, old, entry, rules)
        cause = f"{event.feedback_id}:{entry.number}"
        fold.outputs.append(_example(row, interaction, event.submitted_at, cause))
    return fold


def fold_vote(row: TraceRow | None, event: VoteCast, ts_ms: int) -> Fold[TraceRow]:
    """Fold a vote in: self-contained, so it counts at once."""
    row = row.copy() if row is not None else TraceRow()
    old = row.entries.get(event.comparison_id)
    at_s = event.submitted_at.timestamp()
    new = Revised(event.revision, at_s, False, event.model_dump(mode="json"))
    if old is not None and old.kind != VOTE:
        verdict, entry = "conflict", old
    else:
        verdict, entry = _revised(old, new, VOTE, ts_ms)
    fold = Fold(row, contributions=[OutcomeCounted(verdict)])
    if verdict not in {"accepted", "edited"}:
        return fold
    entry.seen = True
    row.entries[event.comparison_id] = entry
    row.touched_s = max(row.touched_s, at_s)
    if not entry.counted:
        entry.counted = "joined"
        fold.contributions.append(FeedbackCounted("", VOTE))
        left, right = event.left.version, event.right.version
        chosen, rejected = (right, left) if event.choice is Choice.right else (left, right)
        fold.contributions.append(VoteCounted(chosen, rejected, _result(event.choice)))
    product = vote_product(event)
    _produce(fold, entry, old, event.tenant, event.submitted_at, product)
    return fold


def expire(row: TraceRow, now_s: float, rules: FoldRules) -> Fold[TraceRow]:
    """Count feedback as unjoined that waited a whole horizon at stream time `now_s`."""
    row = row.copy()
    fold = Fold(row)
    for name, entry in row.entries.items():
        if entry.seen and not entry.counted and entry.at_s + rules.horizon_s <= now_s:
            row.entries[name] = replace(entry, counted=UNJOINED)
            fold.contributions.append(FeedbackCounted(UNJOINED, entry.kind))
    row.touched_s = max(row.touched_s, now_s)
    return fold


def due_s(row: TraceRow, rules: FoldRules) -> float:
    """Stream time at which the row needs a look: feedback to `expire`, or all of it to drop.

    An interaction without feedback is kept one horizon, anything else two after its last change.
    """
    waiting = [entry.at_s for entry in row.entries.values() if entry.seen and not entry.counted]
    if waiting:
        return min(waiting) + rules.horizon_s
    horizons = 2 if row.entries else 1
    return row.touched_s + horizons * rules.horizon_s


def fold_score(row: CapRow | None, event: RatedScore, rules: FoldRules) -> Fold[CapRow]:
    """Count a score unless its user had as many on that day as count."""
    row = row or CapRow()
    if event.score_id in row.counted:
        return Fold(row)
    if len(row.counted) >= rules.scores_per_day:
        return Fold(row, contributions=[OutcomeCounted("score_capped")])
    at_s = event.created_at.timestamp()
    score = ScoreCounted(
        event.version, event.arm.value, event.rollout, event.segment, event.score, at_s
    )
    changed = CapRow([*row.counted, event.score_id], at_s, list(row.marks))
    return Fold(changed, contributions=[score])


_COUNTED = frozenset({Purpose.live, Purpose.explicit})
"""Purposes whose interactions people see one at a time, so that feedback rates mean something."""


def _may_follow(kind: str, event: FeedbackSubmitted | FeedbackWithdrawn) -> bool:
    """Whether feedback of a type may get this revision.

    Thumbs and ratings share a default id; a vote is withdrawn as the preference it is.
    """
    if event.type.value == kind:
        return True
    if kind == VOTE:
        return isinstance(event, FeedbackWithdrawn) and event.type is FeedbackType.preference
    place = (event.tenant, event.trace_id, event.user_id)
    return (
        event.type in RATINGS
        and kind in RATINGS
        and event.feedback_id == default_feedback_id(*place, event.type)
    )


def _revised(
    old: FeedbackEntry | None, new: Revised, kind: str, ts_ms: int
) -> tuple[str, FeedbackEntry]:
    """What a revision is to an entry, and the entry after it.

    The outcome is accepted, edited, withdrawn, duplicate, conflict or stale. Where it is one of the
    last three, the entry at most remembers the revision.
    """
    if old is None:
        entry = FeedbackEntry(
            new.revision, kind, new.body, new.received_s, ts_ms, seen=False,
            received_s=new.received_s, by_receipt=new.by_receipt,
        )  # fmt: skip
        return ("withdrawn" if new.body is None else "accepted"), entry
    present = old.present
    same_order, other = (
        (present, old.rival) if present.by_receipt == new.by_receipt else (old.rival, present)
    )
    if same_order is not None and (outcome := _not_above(same_order, new)):
        return outcome, old
    if other is None or _counts_before(other, new):
        best, rival = new, other
    else:
        best, rival = other, new
    if best is present:
        return "stale", replace(old, rival=rival)
    changed = replace(
        old, revision=best.revision, received_s=best.received_s, by_receipt=best.by_receipt,
        edition=old.number, body=best.body, rival=rival,
    )  # fmt: skip
    if best.by_receipt and present.by_receipt and _same_body(present.body, best.body):
        return "duplicate", changed
    edition = old.number + 1 if best.by_receipt else max(old.number + 1, best.revision)
    entry = replace(changed, edition=edition, ts_ms=ts_ms, figures=(), products=[])
    return ("withdrawn" if best.body is None else "edited"), entry


def _not_above(best: Revised, new: Revised) -> str:
    """Why a revision is not above the best of its order; empty where it is."""
    one, other = (
        (best.received_s, new.received_s) if new.by_receipt else (best.revision, new.revision)
    )
    if other > one:
        return ""
    if other < one:
        return "stale"
    return "duplicate" if _same_body(best.body, new.body) else "conflict"


def _counts_before(one: Revised, other: Revised) -> bool:
    """Whether the second of two revisions of different orders counts; at one time, by receipt."""
    if one.received_s == other.received_s:
        return other.by_receipt
    return one.received_s < other.received_s


def _same_body(one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    if one is None or other is None:
        return one is other
    return _body(one) == _body(other)


def _body(stored: dict[str, Any]) -> dict[str, Any]:
    """What says the same in two sendings; a field younger than a stored body is at its default."""
    return {
        key: value
        for key, value in stored.items()
        if key not in _NOT_BODY and value is not None and value is not False
    }


def _settle(
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
    if interaction.purpose in _COUNTED:
        _refigure(fold, interaction, old, entry, feedback)
    time = feedback.submitted_at if feedback else datetime.fromtimestamp(row.touched_s, UTC)
    product = feedback_product(interaction, feedback, entry.number) if feedback else None
    assert product is None or isinstance(product, PreferencePair | UnpairedExample)
    _produce(fold, entry, old, interaction.tenant, time, product)
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


def _produce(
    fold: Fold[TraceRow],
    entry: FeedbackEntry,
    old: FeedbackEntry | None,
    tenant: str,
    time: datetime,
    product: PreferencePair | UnpairedExample | None,
) -> None:
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


def _first(event: FeedbackSubmitted | FeedbackWithdrawn, ts_ms: int) -> FirstScore | None:
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


def _example(row: TraceRow, interaction: InteractionRecorded, time: datetime, cause: str) -> Output:
    """The joined row for queries, as it is after this event."""
    example = ExampleJoined(
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
    return Output(EXAMPLES, interaction.trace_id, example, event_id, time)


def _result(choice: Choice) -> str:
    """left and right say nothing once the versions are known; a tie and both bad do."""
    return choice.value if choice in {Choice.tie, Choice.both_bad} else "chosen"
