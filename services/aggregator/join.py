"""The join: interactions and feedback of one trace, in whichever order they come.

Reducers `(row, event) -> Fold`, without I/O and without a clock. Feedback identity is design
section 4; which revision counts is in `revisions`, what it then adds in `settlement`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from services.aggregator import aggregates
from services.aggregator.contributions import (
    FeedbackCounted,
    FigureDeltas,
    FiguresChanged,
    OutcomeCounted,
    ScoreCounted,
    VoteCounted,
)
from services.aggregator.erasing import NO_TEXTS, asked_by_erased, emptied, without_person
from services.aggregator.errors import EventRefused
from services.aggregator.fold import Fold, FoldRules
from services.aggregator.foreign_answers import foreign_interaction
from services.aggregator.pairs import (
    vote_product,
)
from services.aggregator.revisions import VOTE, may_follow, revised
from services.aggregator.rows import NO_FEEDBACK, UNANSWERED, CapRow, Revised, TraceRow
from services.aggregator.settlement import counts, example, first_score, produce, settle
from shared.contracts.events.feedback import (
    MAX_FEEDBACKS,
    FeedbackSubmitted,
    FeedbackWithdrawn,
)
from shared.contracts.events.interactions import InteractionRecorded, Outcome
from shared.contracts.events.rated import RatedScore
from shared.contracts.events.signals import SignalObserved
from shared.contracts.events.votes import Choice, VoteCast, is_drawn
from shared.voters import voter_label

UNJOINED = "unjoined"
"""Version under which feedback counts whose interaction never came."""
UNANSWERED_TEXTS_S = 86_400.0
"""How long a request that failed or was cancelled keeps its texts for feedback on it."""
FAILURES = frozenset({Outcome.server_error, Outcome.timeout, Outcome.crash})


def fold_interaction(
    row: TraceRow | None, event: InteractionRecorded, raw: bytes, ts_ms: int, rules: FoldRules
) -> Fold[TraceRow]:
    """Fold an interaction in, and all feedback that waited for it. A second one is ignored."""
    if row is not None and row.interaction:
        return Fold(row, contributions=[OutcomeCounted("interaction_repeated")])
    started_s = event.started_at.timestamp()
    kept = event
    if row is None:
        row = TraceRow(raw, {}, started_s, ts_ms, started_s)
        if event.outcome is not Outcome.ok:
            row.with_feedback_minute = UNANSWERED
        waiting: list[str] = []
    else:
        row = row.copy()
        if asked_by_erased(event, row):
            kept = without_person(event)
            raw = kept.to_json()
            row.entries = {name: emptied(entry) for name, entry in row.entries.items()}
        row.interaction, row.started_s, row.ts_ms = raw, started_s, ts_ms
        row.touched_s = max(row.touched_s, started_s)
        waiting = [name for name, entry in row.entries.items() if not entry.counted]
    deltas: FigureDeltas = ((aggregates.INTERACTIONS, 1),)
    if event.outcome in FAILURES:
        deltas += ((aggregates.ERRORS, 1),)
    if event.messages and event.messages[-1].role == "user":
        deltas += ((aggregates.TURNS, 1),)
        if all(turn.role != "assistant" for turn in event.messages):
            deltas += ((aggregates.SESSIONS, 1),)
    fold = Fold(row)
    if counts(event):
        fold.contributions += [
            FiguresChanged(event.version, started_s, ts_ms // 60_000, deltas),
            rules.audience("requests", event.context),
        ]
    for name in waiting:
        settle(fold, kept, name, None, row.entries[name], rules)
    if any(row.entries[name].counted for name in waiting):
        last = max(row.entries[name].at_s for name in waiting)
        time = max(event.started_at, datetime.fromtimestamp(last, UTC))
        fold.outputs.append(example(row, kept, time, "interaction"))
    return fold


def fold_feedback(
    row: TraceRow | None,
    event: FeedbackSubmitted | SignalObserved | FeedbackWithdrawn,
    ts_ms: int,
    rules: FoldRules,
) -> Fold[TraceRow]:
    """Fold a submission, a signal or a withdrawal in; it counts once its interaction is there.

    One that names its source brings the interaction.

    Raises:
        EventRefused: the trace has as many feedbacks as can be kept.
    """
    brought: Fold[TraceRow] | None = None
    if isinstance(event, FeedbackSubmitted) and event.source and not (row and row.interaction):
        interaction = foreign_interaction(event)
        brought = fold_interaction(row, interaction, interaction.to_json(), ts_ms, rules)
        row = brought.row
    fold = _fold_said(row, event, ts_ms, rules)
    if brought is not None:
        fold.contributions[:0] = brought.contributions
        fold.outputs[:0] = brought.outputs
    return fold


def _fold_said(
    row: TraceRow | None,
    event: FeedbackSubmitted | SignalObserved | FeedbackWithdrawn,
    ts_ms: int,
    rules: FoldRules,
) -> Fold[TraceRow]:
    row = row.copy() if row is not None else TraceRow()
    old = row.entries.get(event.feedback_id)
    body = None if isinstance(event, FeedbackWithdrawn) else event.model_dump(mode="json")
    at_s = event.submitted_at.timestamp()
    new = Revised(event.revision, at_s, event.by_receipt, body)
    if old is not None and not may_follow(old.kind, event):
        verdict, entry = "conflict", old
    else:
        verdict, entry = revised(old, new, str(event.type), ts_ms)
    fold = Fold(row, contributions=[OutcomeCounted(verdict)])
    if verdict in {"stale", "duplicate"} and (body is None or entry.seen):
        row.entries[event.feedback_id] = entry
        return fold
    if verdict == "conflict":
        return fold
    if body is not None and not entry.seen:
        entry = entry.copy()
        entry.seen, entry.kind = True, str(event.type)
        entry.first = first_score(event, ts_ms, rules)
    if old is None and len(row.entries) >= MAX_FEEDBACKS:
        raise EventRefused(
            "policy",
            f"trace_id: {MAX_FEEDBACKS} feedbacks of trace {event.trace_id} are kept at most",
        )
    row.entries[event.feedback_id] = entry
    row.touched_s = max(row.touched_s, at_s)
    if entry.kind == VOTE:
        # A withdrawn vote stays counted, as every withdrawn feedback does; its pair goes.
        produce(fold, entry, old, event.tenant, event.submitted_at, None)
    elif row.interaction and entry.counted != UNJOINED:
        interaction = InteractionRecorded.model_validate_json(row.interaction)
        settle(fold, interaction, event.feedback_id, old, entry, rules)
        cause = f"{event.feedback_id}:{entry.number}"
        fold.outputs.append(example(row, interaction, event.submitted_at, cause))
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
        verdict, entry = revised(old, new, VOTE, ts_ms)
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
        if is_drawn(event.context):
            fold.contributions.append(VoteCounted(chosen, rejected, _result(event.choice)))
    product = vote_product(event)
    produce(fold, entry, old, event.tenant, event.submitted_at, product)
    return fold


def expire(row: TraceRow, now_s: float, rules: FoldRules) -> Fold[TraceRow]:
    """Count feedback as unjoined that waited a whole horizon at stream time `now_s`.

    A request that failed or was cancelled and got no feedback loses its texts instead.
    """
    if _perishable(row):
        return drop_texts(row)
    row = row.copy()
    fold = Fold(row)
    for name, entry in row.entries.items():
        if entry.seen and not entry.counted and entry.at_s + rules.horizon_s <= now_s:
            row.entries[name] = replace(entry, counted=UNJOINED)
            fold.contributions.append(FeedbackCounted(UNJOINED, entry.kind))
    row.touched_s = max(row.touched_s, now_s)
    return fold


def drop_texts(row: TraceRow, outcome: str = "") -> Fold[TraceRow]:
    """Take the texts from an interaction without feedback; later feedback counts and teaches nothing.

    Args:
        row: it is not changed.
        outcome: what is counted.
    """
    row = row.copy()
    row.interaction = _without_texts(row.interaction)
    row.with_feedback_minute = NO_FEEDBACK
    return Fold(row, contributions=[OutcomeCounted(outcome)] if outcome else [])


def has_texts_alone(row: TraceRow) -> bool:
    """Whether the row has texts and no feedback on them."""
    if row.entries or not row.interaction:
        return False
    event = InteractionRecorded.model_validate_json(row.interaction)
    return event.encrypted is not None or any(
        getattr(event, name) != empty for name, empty in NO_TEXTS.items()
    )


def due_s(row: TraceRow, rules: FoldRules) -> float:
    """Stream time at which the row needs a look: something to `expire`, or all of it to drop."""
    if row.entries:
        waiting = [entry.at_s for entry in row.entries.values() if entry.seen and not entry.counted]
        if waiting:
            return min(waiting) + rules.horizon_s
    elif _perishable(row):
        return row.touched_s + min(UNANSWERED_TEXTS_S, rules.horizon_s)
    return _over_s(row, rules)


def over(row: TraceRow, now_s: float, rules: FoldRules) -> bool:
    """Whether nothing waits in the row and its time has passed."""
    return not row.waiting() and _over_s(row, rules) <= now_s


def _over_s(row: TraceRow, rules: FoldRules) -> float:
    """An interaction without feedback is kept one horizon, anything else two after its last change."""
    horizons = 2 if row.entries else 1
    return row.touched_s + horizons * rules.horizon_s


def _perishable(row: TraceRow) -> bool:
    return row.with_feedback_minute == UNANSWERED and not row.entries


def _without_texts(interaction: bytes) -> bytes:
    event = InteractionRecorded.model_validate_json(interaction)
    return event.model_copy(update={**NO_TEXTS, "encrypted": None}).to_json()


def fold_score(row: CapRow | None, event: RatedScore, rules: FoldRules) -> Fold[CapRow]:
    """Count a score unless its user had as many on that day as count."""
    row = row or CapRow()
    if event.score_id in row.counted:
        return Fold(row)
    if len(row.counted) >= rules.scores_per_day:
        return Fold(row, contributions=[OutcomeCounted("score_capped")])
    at_s = event.created_at.timestamp()
    score = ScoreCounted(
        event.version,
        event.arm.value,
        event.rollout,
        event.segment,
        event.score,
        at_s,
        voter_label(event.tenant),
        event.api_key,
    )
    changed = CapRow([*row.counted, event.score_id], at_s, list(row.marks))
    return Fold(changed, contributions=[score])


def _result(choice: Choice) -> str:
    """left and right say nothing once the versions are known; a tie and both bad do."""
    return choice.value if choice in {Choice.tie, Choice.both_bad} else "chosen"
