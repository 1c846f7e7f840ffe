"""The three counts: what the clients saw, what the log holds, what the metrics say."""

from __future__ import annotations

from typing import Any

from demo.counts import compare, exported
from demo.recount import FEEDBACK, INTERACTIONS, LogEntry, count
from demo.tally import Tally

V1, V2 = "assistant-v1.0", "assistant-v1.1"
TENANT = "default"


def interaction(trace_id: str, version: str = V1, *, failed_first: bool = False) -> LogEntry:
    attempts = [{"version": version, "arm": "stable", "outcome": "ok"}]
    if failed_first:
        attempts.insert(0, {"version": V2, "arm": "candidate", "outcome": "server_error"})
    body = {
        "tenant": TENANT,
        "trace_id": trace_id,
        "version": version,
        "outcome": "ok",
        "attempts": attempts,
        "started_at": "2026-01-01T00:00:01Z",
    }
    return LogEntry(INTERACTIONS, "ratchet.interaction.recorded.v1", trace_id, 0, body)


def feedback(
    trace_id: str, feedback_id: str, kind: str = "thumbs_up", revision: int = 0
) -> LogEntry:
    body = {
        "tenant": TENANT,
        "trace_id": trace_id,
        "feedback_id": feedback_id,
        "type": kind,
        "revision": revision,
    }
    return LogEntry(FEEDBACK, "ratchet.feedback.submitted.v1", trace_id, 0, body)


def vote(comparison_id: str, choice: str, left: str = V1, right: str = V2) -> LogEntry:
    body: dict[str, Any] = {
        "tenant": TENANT,
        "comparison_id": comparison_id,
        "left": {"version": left},
        "right": {"version": right},
        "choice": choice,
    }
    return LogEntry(FEEDBACK, "ratchet.vote.cast.v1", comparison_id, 0, body)


def test_what_is_sent_twice_or_edited_counts_once() -> None:
    found = count(
        [
            feedback("a", "f1"),
            feedback("a", "f1"),
            feedback("a", "f1", revision=1),
            feedback("a", "f2", "rating"),
            interaction("a"),
            interaction("a"),
            vote("c", "left"),
            vote("c", "left"),
        ]
    )
    assert found.requests == {(V1, "ok"): 1}
    assert found.feedback == {(V1, "thumbs_up"): 1, (V1, "rating"): 1, ("", "vote"): 1}
    assert found.votes == {(V1, V2, "chosen"): 1}
    assert (found.duplicates, found.unjoined) == (1, 0)


def test_feedback_joins_only_its_own_tenant() -> None:
    stranger = feedback("a", "f1")
    stranger.body["tenant"] = "other"
    found = count([interaction("a"), stranger])
    assert (found.feedback, found.unjoined) == ({}, 1)


def test_a_retried_request_is_one_answer_and_two_attempts() -> None:
    found = count([interaction("a", failed_first=True)])
    assert found.requests == {(V1, "ok"): 1}
    assert found.attempts == {(V1, "ok"): 1, (V2, "server_error"): 1}
    assert found.exposures == {V2: [1767225601.0]}


def test_a_vote_for_the_right_turns_the_pair_and_ties_have_no_order() -> None:
    found = count([vote("a", "right"), vote("b", "tie", V2, V1), vote("c", "tie")])
    assert found.votes == {(V2, V1, "chosen"): 1, (V1, V2, "tie"): 2}


ROUTER = f"""\
# TYPE ratchet_router_requests counter
ratchet_router_requests_total{{version="{V1}",arm="stable",outcome="ok"}} 2.0
ratchet_router_requests_total{{version="{V1}",arm="",outcome="ok"}} 3.0
ratchet_router_requests_total{{version="{V1}",arm="",outcome="timeout"}} 1.0
"""
AGGREGATOR = f"""\
# TYPE ratchet_feedback counter
ratchet_feedback_total{{version="{V1}",type="rating",partition="0"}} 1.0
ratchet_feedback_total{{version="{V1}",type="rating",partition="1"}} 1.0
# TYPE ratchet_votes counter
ratchet_votes_total{{chosen="{V2}",rejected="{V1}",result="tie",partition="0"}} 1.0
"""


def test_metrics_add_up_over_arms_and_partitions() -> None:
    found = exported(ROUTER, AGGREGATOR)
    assert found.requests == {(V1, "ok"): 5, (V1, "timeout"): 1}
    assert found.feedback == {(V1, "rating"): 2}
    assert found.votes == {(V1, V2, "tie"): 1}


def test_rows_agree_only_where_all_three_do() -> None:
    tally = Tally()
    tally.answered(V1, count=5)
    tally.gave(V1, "rating")
    tally.gave(V1, "rating")
    log = count([interaction(str(number)) for number in range(5)] + [feedback("0", "f", "rating")])
    rows = {row.what: row for row in compare(tally, log, exported(ROUTER, AGGREGATOR))}
    assert rows[f"answers by {V1}"].agree
    rating = rows[f"rating on {V1}"]
    assert (rating.clients, rating.log, rating.metrics, rating.agree) == (2, 1, 2, False)
    assert not rows[f"tie votes {V1}, {V2}"].agree


def test_the_tally_names_winners_and_leaves_ties_unordered() -> None:
    tally = Tally()
    tally.voted(V1, V2, "right")
    tally.voted(V2, V1, "both_bad")
    assert tally.votes == {(V2, V1, "chosen"): 1, (V1, V2, "both_bad"): 1}
    assert tally.total_feedback == 2
    assert tally.as_json()["feedback"] == {"": {"vote": 2}}
