"""Feedback identity, what counts when, and what each type makes."""

from __future__ import annotations

from typing import Any

import pytest

from services.aggregator.contributions import (
    Contribution,
    FeedbackCounted,
    FiguresChanged,
    OutcomeCounted,
    ScoreCounted,
    VoteCounted,
)
from services.aggregator.errors import EventRefused
from services.aggregator.fold import Fold, FoldRules
from services.aggregator.join import (
    expire,
    fold_feedback,
    fold_interaction,
    fold_score,
    fold_vote,
)
from services.aggregator.pairs import vote_product
from services.aggregator.rows import TraceRow
from shared.contracts.events.base import Event, Message, Tool, ToolCall
from shared.contracts.events.feedback import (
    MAX_FEEDBACKS,
    FeedbackSubmitted,
    FeedbackType,
    FeedbackWithdrawn,
)
from shared.contracts.events.interactions import InteractionRecorded, Outcome, Purpose
from shared.contracts.events.preferences import PreferencePair, PreferenceRetracted, UnpairedExample
from shared.contracts.events.quality import ExampleJoined
from shared.contracts.events.rated import RatedAnswer, RatedScore
from shared.contracts.events.votes import INFORMATIVE, PAIR_LABEL, Choice, VoteCast
from tests.support.aggregator import DOWN, UP, feedback, interaction, vote, withdrawn

RULES = FoldRules(segments=frozenset({"gold"}))


def folded(
    *events: Event, rules: FoldRules = RULES
) -> tuple[TraceRow, list[Contribution], list[Event]]:
    """The row after some events, all contributions and all outputs."""
    row: TraceRow | None = None
    contributions: list[Contribution] = []
    outputs: list[Event] = []
    for number, event in enumerate(events):
        fold: Fold[TraceRow]
        match event:
            case InteractionRecorded():
                raw = event.to_json()
                fold = fold_interaction(row, event, raw, number * 60_000, rules)
            case FeedbackSubmitted() | FeedbackWithdrawn():
                fold = fold_feedback(row, event, number * 60_000, rules)
            case VoteCast():
                fold = fold_vote(row, event, number * 60_000)
            case _:
                raise AssertionError(event)
        row = TraceRow.decode(fold.row.encode())
        contributions += fold.contributions
        outputs += [output.event for output in fold.outputs]
    assert row is not None
    return row, contributions, outputs


def counted(contributions: list[Contribution]) -> list[FeedbackCounted]:
    return [item for item in contributions if isinstance(item, FeedbackCounted)]


def outcomes(contributions: list[Contribution]) -> list[str]:
    return [item.outcome for item in contributions if isinstance(item, OutcomeCounted)]


ASKED = {0: 1, 24: 1, 25: 1}
"""Figures of an interaction that is the first turn of its session."""


def figures(contributions: list[Contribution]) -> dict[int, float]:
    """Sums of the figures by index; indices are aggregates.FIGURES."""
    sums: dict[int, float] = {}
    for item in contributions:
        if isinstance(item, FiguresChanged):
            for index, delta in item.deltas:
                sums[index] = sums.get(index, 0) + delta
    return {index: value for index, value in sums.items() if value}


def kinds(outputs: list[Event]) -> list[str]:
    return [type(event).__name__ for event in outputs]


@pytest.mark.parametrize("late", [True, False])
def test_both_orders_count_the_same(late: bool) -> None:
    shown, told = interaction(), feedback()
    _, contributions, outputs = folded(*((shown, told) if late else (told, shown)))
    assert counted(contributions) == [FeedbackCounted("assistant-v1.0", "thumbs_up")]
    assert figures(contributions) == {**ASKED, 2: 1, 3: 1, 4: 1, 7: 1.0, 8: 1}
    assert sorted(kinds(outputs)) == [
        "ExampleJoined",
        "RatedAnswer",
        "RatedScore",
        "UnpairedExample",
    ]


def test_an_answer_whose_question_was_withheld_counts_and_meets_no_other() -> None:
    asked = interaction(prompt="[UNCHECKED]", untrainable=("unchecked",))
    _, contributions, outputs = folded(asked, feedback())
    assert counted(contributions) == [FeedbackCounted("assistant-v1.0", "thumbs_up")]
    assert "RatedAnswer" not in kinds(outputs)
    assert "RatedScore" in kinds(outputs)


def test_feedback_alone_counts_nothing_yet() -> None:
    row, contributions, outputs = folded(feedback())
    assert counted(contributions) == []
    assert outputs == []
    assert row.pending() == 1


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        (feedback(seconds=9.0), "duplicate"),
        (feedback(kind=UP, user="someone else"), "conflict"),
        (feedback(kind=DOWN, revision=1), "conflict"),
        (withdrawn(kind=DOWN), "conflict"),
        (feedback(revision=1), "edited"),
        (withdrawn(), "withdrawn"),
    ],
)
def test_what_a_second_record_is(second: FeedbackSubmitted, verdict: str) -> None:
    _, contributions, _ = folded(interaction(), feedback(), second)
    assert outcomes(contributions) == ["accepted", verdict]
    assert counted(contributions) == [FeedbackCounted("assistant-v1.0", "thumbs_up")]


def test_a_lower_revision_is_stale() -> None:
    _, contributions, _ = folded(interaction(), feedback(revision=3), feedback(revision=2))
    assert outcomes(contributions) == ["accepted", "stale"]


def test_a_withdrawal_before_its_submission_still_lets_it_count_once() -> None:
    _, contributions, outputs = folded(interaction(), withdrawn(), feedback())
    assert counted(contributions) == [FeedbackCounted("assistant-v1.0", "thumbs_up")]
    assert figures(contributions) == ASKED
    assert "UnpairedExample" not in kinds(outputs)


def test_an_edit_moves_the_figures_and_keeps_the_counters() -> None:
    rating = FeedbackType.rating
    _, contributions, outputs = folded(
        interaction(), feedback(kind=rating, value=5), feedback(kind=rating, value=1, revision=1)
    )
    assert counted(contributions) == [FeedbackCounted("assistant-v1.0", "rating")]
    assert figures(contributions) == {**ASKED, 2: 1, 3: 1, 5: 1, 8: 1}
    scores = [event for event in outputs if isinstance(event, RatedScore)]
    assert [event.score for event in scores] == [1.0]
    rated = [event for event in outputs if isinstance(event, RatedAnswer)]
    assert [(event.revision, event.score) for event in rated] == [(0, 1.0), (1, 0.0)]


def test_a_withdrawal_takes_everything_back_but_the_counters() -> None:
    _, contributions, outputs = folded(interaction(), feedback(), withdrawn())
    assert figures(contributions) == ASKED
    made = [event for event in outputs if isinstance(event, UnpairedExample)]
    taken = [event for event in outputs if isinstance(event, PreferenceRetracted)]
    assert [event.pair_id for event in made] == [event.pair_id for event in taken]
    assert [event.traces for event in made] == [(interaction().trace_id,)]
    rated = [event for event in outputs if isinstance(event, RatedAnswer)]
    assert [event.score for event in rated] == [1.0, None]
    examples = [event for event in outputs if isinstance(event, ExampleJoined)]
    assert [len(event.feedback) for event in examples] == [1, 0]


def test_only_the_first_scored_feedback_of_live_traffic_scores() -> None:
    _, _, outputs = folded(
        interaction(),
        feedback("f0", kind=FeedbackType.comment, value="fine"),
        feedback("f1", kind=DOWN),
        feedback("f2", kind=UP, user="u2"),
    )
    scores = [event.score for event in outputs if isinstance(event, RatedScore)]
    assert scores == [0.0]
    for purpose in (Purpose.explicit, Purpose.comparison, Purpose.evaluation):
        _, _, outputs = folded(interaction(purpose=purpose), feedback())
        assert "RatedScore" not in kinds(outputs)


@pytest.mark.parametrize("api", ["embeddings", "messages"])
def test_what_is_judged_on_operations_only_is_in_no_figure(api: str) -> None:
    _, contributions, outputs = folded(interaction(api=api), feedback())
    assert figures(contributions) == {}
    assert not any(isinstance(output, RatedScore) for output in outputs)
    _, contributions, outputs = folded(interaction(api="responses"), feedback())
    assert figures(contributions)
    assert any(isinstance(output, RatedScore) for output in outputs)


def test_anonymous_feedback_counts_but_teaches_and_judges_nothing() -> None:
    _, contributions, outputs = folded(interaction(), feedback(anonymous=True))
    assert len(counted(contributions)) == 1
    assert kinds(outputs) == ["ExampleJoined"]


def test_feedback_of_another_tenant_does_not_reach_this_row() -> None:
    other = feedback(tenant="other")
    assert other.tenant != interaction().tenant  # the row's key holds the tenant: see rows.py


def test_failed_interactions_are_errors_and_clients_faults_are_not() -> None:
    for outcome, errors in ((Outcome.crash, 1), (Outcome.timeout, 1), (Outcome.client_error, 0)):
        _, contributions, _ = folded(interaction(outcome=outcome, completion=""))
        assert figures(contributions).get(1, 0) == errors


@pytest.mark.parametrize(
    ("kind", "value", "chosen", "rejected"),
    [
        (
            FeedbackType.text_correction,
            {"corrected": "Better."},
            "Better.",
            "Print the label from your account page.",
        ),
        (
            FeedbackType.text_correction,
            {"original": "As shown.", "corrected": "Better."},
            "Better.",
            "As shown.",
        ),
        (
            FeedbackType.demonstration,
            "By hand.",
            "By hand.",
            "Print the label from your account page.",
        ),
        (FeedbackType.preference, {"chosen": "One.", "rejected": "Two."}, "One.", "Two."),
    ],
)
def test_pairs_of_one_feedback(
    kind: FeedbackType, value: object, chosen: str, rejected: str
) -> None:
    _, _, outputs = folded(interaction(), feedback(kind=kind, value=value))
    (pair,) = (event for event in outputs if isinstance(event, PreferencePair))
    assert (pair.chosen, pair.rejected) == (chosen, rejected)
    assert pair.causes == ("f1:0",)
    assert pair.context.category == "explanation"


@pytest.mark.parametrize(
    ("kind", "value", "cut"),
    [
        (FeedbackType.text_correction, {"corrected": "Better."}, True),
        (FeedbackType.text_correction, {"original": "As shown.", "corrected": "Better."}, False),
        (FeedbackType.demonstration, "By hand.", True),
        (FeedbackType.preference, {"chosen": "One.", "rejected": "Two."}, False),
    ],
)
@pytest.mark.parametrize(
    "ending", [{"finish_reason": "length"}, {"outcome": Outcome.cancelled}], ids=str
)
def test_a_pair_says_whether_its_answer_was_cut(
    kind: FeedbackType, value: object, cut: bool, ending: dict[str, Any]
) -> None:
    _, _, outputs = folded(interaction(**ending), feedback(kind=kind, value=value))
    (pair,) = (event for event in outputs if isinstance(event, PreferencePair))
    assert (pair.chosen_cut, pair.rejected_cut) == (False, cut)


@pytest.mark.parametrize(
    "ending", [{"finish_reason": "length"}, {"finish_reason": "stop"}], ids=str
)
def test_a_rating_says_whether_its_answer_was_cut(ending: dict[str, Any]) -> None:
    _, _, outputs = folded(interaction(**ending), feedback())
    (rated,) = (event for event in outputs if isinstance(event, RatedAnswer))
    (example,) = (event for event in outputs if isinstance(event, UnpairedExample))
    assert rated.cut == example.cut == (ending["finish_reason"] == "length")


@pytest.mark.parametrize(
    ("choice", "cut"), [(Choice.left, (True, False)), (Choice.right, (False, True))]
)
def test_a_vote_s_pair_says_which_answer_was_cut(choice: Choice, cut: tuple[bool, bool]) -> None:
    _, _, outputs = folded(vote(choice=choice, left_cut=True))
    (pair,) = (event for event in outputs if isinstance(event, PreferencePair))
    assert (pair.chosen_cut, pair.rejected_cut) == cut


def test_a_correction_that_corrects_nothing_makes_no_pair() -> None:
    same = {"corrected": " Print the label from your account page. "}
    _, _, outputs = folded(interaction(), feedback(kind=FeedbackType.text_correction, value=same))
    assert "PreferencePair" not in kinds(outputs)


@pytest.mark.parametrize(
    ("choice", "chosen", "contribution"),
    [
        (Choice.left, "assistant-v1.1", VoteCounted("assistant-v1.1", "assistant-v1.0", "chosen")),
        (Choice.right, "assistant-v1.0", VoteCounted("assistant-v1.0", "assistant-v1.1", "chosen")),
        (Choice.tie, None, VoteCounted("assistant-v1.1", "assistant-v1.0", "tie")),
        (Choice.both_bad, None, VoteCounted("assistant-v1.1", "assistant-v1.0", "both_bad")),
    ],
)
def test_votes(choice: Choice, chosen: str | None, contribution: Contribution) -> None:
    _, contributions, outputs = folded(vote(choice=choice, panel="judge"))
    assert contribution in contributions
    assert FeedbackCounted("", "vote") in contributions
    pairs = [event for event in outputs if isinstance(event, PreferencePair)]
    assert [pair.chosen_version for pair in pairs] == ([chosen] if chosen else [])
    assert all(pair.panel == "judge" for pair in pairs)


def test_a_vote_on_a_pair_that_a_reward_model_chose_teaches_and_counts_for_no_version() -> None:
    drawn = vote(choice=Choice.left)
    labels = {PAIR_LABEL: INFORMATIVE}
    context = drawn.context.model_copy(update={"labels": labels})
    _, contributions, outputs = folded(drawn.model_copy(update={"context": context}))
    assert FeedbackCounted("", "vote") in contributions
    assert not [one for one in contributions if isinstance(one, VoteCounted)]
    (pair,) = (event for event in outputs if isinstance(event, PreferencePair))
    assert pair.context.labels == labels


def test_a_vote_on_tool_turns_makes_a_whole_pair() -> None:
    call = ToolCall(id="c1", name="weather", arguments='{"city":"Rome"}')
    called = Message(role="assistant", content="", tool_calls=(call,))
    tool = Tool(name="weather", parameters='{"type":"object"}')
    given = vote(left='[{"name":"weather"}]', right="No idea.")
    left = given.left.model_copy(update={"answer": called})
    asked = (*given.messages, called, Message(role="tool", content="21 C", tool_call_id="c1"))
    pair = vote_product(
        given.model_copy(update={"left": left, "tools": (tool,), "messages": asked})
    )
    assert pair is not None
    assert (pair.messages, pair.tools) == (asked, (tool,))
    assert (pair.chosen_turn, pair.rejected_turn) == (called, None)


def test_a_vote_again_counts_once_and_an_edited_one_replaces_its_pair() -> None:
    _, contributions, outputs = folded(
        vote(), vote(), vote(choice=Choice.right), vote(choice=Choice.right, revision=1)
    )
    assert outcomes(contributions) == ["accepted", "duplicate", "conflict", "edited"]
    assert len(counted(contributions)) == 1
    assert kinds(outputs) == ["PreferencePair", "PreferenceRetracted", "PreferencePair"]


def test_a_withdrawn_vote_takes_its_pair_back_and_stays_so() -> None:
    undo = withdrawn("c1", "c1", FeedbackType.preference)
    row, contributions, outputs = folded(vote(), undo, undo, vote())
    assert outcomes(contributions) == ["accepted", "withdrawn", "duplicate", "stale"]
    assert len(counted(contributions)) == 1
    assert kinds(outputs) == ["PreferencePair", "PreferenceRetracted"]
    assert row.entries["c1"].body is None


@pytest.mark.parametrize("kind", [FeedbackType.thumbs_up, FeedbackType.comment])
def test_a_vote_is_withdrawn_as_a_preference_only(kind: FeedbackType) -> None:
    row, contributions, outputs = folded(vote(), withdrawn("c1", "c1", kind))
    assert outcomes(contributions) == ["accepted", "conflict"]
    assert kinds(outputs) == ["PreferencePair"]
    assert row.entries["c1"].body is not None


def test_segments_outside_the_list_share_one_label() -> None:
    assert [RULES.segment(name) for name in ("", "gold", "anything")] == ["", "gold", "other"]


def test_a_trace_keeps_a_bounded_number_of_feedbacks() -> None:
    row = TraceRow()
    for number in range(MAX_FEEDBACKS):
        row = fold_feedback(row, feedback(f"f{number}"), 0, RULES).row
    with pytest.raises(EventRefused, match="feedbacks of trace t1 are kept at most"):
        fold_feedback(row, feedback("one more"), 0, RULES)


def test_expiry_counts_what_waited_and_nothing_else() -> None:
    rules = FoldRules(horizon_s=100.0)
    row, _, _ = folded(feedback("f1", seconds=0.0), feedback("f2", seconds=90.0))
    start = feedback(seconds=0.0).submitted_at.timestamp()
    fold = expire(row, start + 101, rules)
    assert fold.contributions == [FeedbackCounted("unjoined", "thumbs_up")]
    assert fold.row.pending() == 1
    assert row.pending() == 2


def cap_keys(*received_days: float) -> list[str]:
    """Cap keys of one user's first scores by the day on which each reached the log."""
    found: list[str] = []
    for number, day in enumerate(received_days):
        trace = f"t{number}"
        row = fold_interaction(None, interaction(trace), interaction(trace).to_json(), 0, RULES).row
        told = feedback("f", trace, seconds=number * 86_400.0)
        fold = fold_feedback(row, told, int(day * 86_400_000), RULES)
        found += [one.event.cap_key for one in fold.outputs if isinstance(one.event, RatedScore)]
    return found


def test_the_day_of_the_cap_is_that_of_the_log_not_of_the_producer() -> None:
    one_day = cap_keys(20_000.1, 20_000.2, 20_000.9)
    assert len(one_day) == 3
    assert len(set(one_day)) == 1
    assert len(set(cap_keys(20_000.9, 20_001.0))) == 2


def test_scores_beyond_the_cap_do_not_count() -> None:
    _, _, outputs = folded(interaction(), feedback())
    (first,) = (event for event in outputs if isinstance(event, RatedScore))
    row = None
    results = []
    for number in range(5):
        event = first.model_copy(update={"score_id": f"s{min(number, 3)}"})
        fold = fold_score(row, event, RULES)
        row = fold.row
        results.append([(type(item), item[0]) for item in fold.contributions])
    score, capped = (ScoreCounted, "assistant-v1.0"), (OutcomeCounted, "score_capped")
    assert results == [[score], [score], [score], [capped], [capped]]
    assert fold_score(row, first.model_copy(update={"score_id": "s0"}), RULES).contributions == []


def from_log(kind: FeedbackType = UP, value: object = None, **more: Any) -> FeedbackSubmitted:
    said = feedback("f1", "old:t1", kind, value)
    brought = {"source": "old", "model": "assistant", "prompt": "Q?", "completion": "A."}
    return said.model_copy(update={**brought, **more})


def test_feedback_with_a_source_brings_its_interaction_and_teaches() -> None:
    row, contributions, outputs = folded(from_log())
    assert counted(contributions) == [FeedbackCounted("old", "thumbs_up")]
    assert figures(contributions) == {}  # it is no traffic
    (made,) = [one for one in outputs if isinstance(one, UnpairedExample)]
    assert (made.messages[0].content, made.completion, made.label) == ("Q?", "A.", True)
    assert made.context.labels == {"source": "old"}
    assert not [one for one in outputs if isinstance(one, RatedScore)]
    assert row.entries["f1"].counted == "joined"


def test_an_edit_brings_no_second_interaction() -> None:
    correction = {"corrected": "B."}
    edited = from_log(FeedbackType.text_correction, correction).model_copy(
        update={"feedback_id": "f2", "completion": "another answer"}
    )
    _, _, outputs = folded(from_log(), edited)
    (pair,) = [one for one in outputs if isinstance(one, PreferencePair)]
    assert (pair.chosen, pair.rejected) == ("B.", "A.")


def test_ratings_of_one_prompt_from_logs_and_traffic_meet() -> None:
    _, _, outputs = folded(from_log())
    (rated,) = [one for one in outputs if isinstance(one, RatedAnswer)]
    _, _, live = folded(interaction(prompt="Q?"), feedback(kind=DOWN))
    (other,) = [one for one in live if isinstance(one, RatedAnswer)]
    assert rated.prompt_key == other.prompt_key
