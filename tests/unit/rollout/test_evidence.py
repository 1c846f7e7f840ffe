from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from services.rollout.counters import (
    ANSWER_LENGTH,
    ANSWERS,
    BREAKER,
    COUNTED,
    GAPS,
    KEYS,
    REQUESTS,
    SCORE_COUNT,
    SCORE_SUM,
    SHORT_GAPS,
    SLOW,
    VOTER_ATTEMPTS,
    VOTER_SCORE_COUNT,
    VOTER_SCORE_SUM,
    WITHIN,
    CounterSeries,
    breakers_open,
    copies,
    spoiled,
)
from services.rollout.evidence import (
    RolloutEvidence,
    SampleWindow,
    carried,
    crashes,
    query,
    recovered,
    take,
    window_s,
)
from services.rollout.judge import Judge
from services.rollout.recorder import WHOLE_EVIDENCE_S
from services.rollout.state import RolloutState
from services.rollout.strategy import Strategy
from services.rollout.strategy_files import parse
from services.rollout.voters import voter_shares

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STRATEGY: Strategy = parse(
    {
        "name": "s",
        "steps": [
            {"setWeight": 5},
            {"analysis": {}},
            {"setWeight": 100},
            {"pause": {"duration": 1}},
        ],
    }
)
STATE = RolloutState(
    rollout_id="r1",
    model="m",
    stable="v1",
    candidate="v2",
    strategy=STRATEGY,
    weight=500,
    weight_set_at=NOW,
    started_at=NOW,
    step_started_at=NOW,
    updated_at=NOW,
)
JUDGE = Judge(STRATEGY.judge, STRATEGY.error_limits)


def series(name: str, samples: list[tuple[float, float]], **labels: str) -> CounterSeries:
    base = {"__name__": name, "rollout": "r1", "arm": "candidate", "version": "v2", "instance": "a"}
    return CounterSeries({**base, **labels}, tuple(samples))


def empty() -> RolloutEvidence:
    return RolloutEvidence(rollout_id="r1")


def fed(
    evidence: RolloutEvidence, *found: CounterSeries, state: RolloutState = STATE
) -> RolloutEvidence:
    return take(evidence, found, state, JUDGE)


@given(
    rises=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    cuts=st.lists(st.tuples(st.integers(0, 29), st.integers(1, 30)), max_size=20),
)
def test_overlapping_fetches_never_count_a_sample_twice(
    rises: list[int], cuts: list[tuple[int, int]]
) -> None:
    """Any windows in any order of growing ends: what was seen of the counter is counted once."""
    values = [sum(rises[: n + 1]) for n in range(len(rises))]
    samples = [(100.0 + n, float(value)) for n, value in enumerate(values)]
    evidence, seen = empty(), 0.0
    for start, length in sorted(cuts, key=lambda cut: cut[0] + cut[1]):
        window = samples[start : start + length]
        if window:
            evidence = fed(evidence, series(COUNTED, window))
            seen = max(seen, window[-1][1])
    assert evidence.judge.totals.candidate.requests == seen


def test_a_restarted_router_counts_from_zero_and_nothing_is_lost() -> None:
    evidence = fed(empty(), series(COUNTED, [(1, 0), (2, 5), (3, 2), (4, 4)]))
    assert evidence.judge.totals.candidate.requests == 9
    evidence = fed(evidence, series(COUNTED, [(4, 4), (5, 1)]))
    assert evidence.judge.totals.candidate.requests == 10


def test_two_scrapes_of_one_router_count_it_once_and_are_named() -> None:
    """Two jobs scrape at different times; a restarted process is another router."""
    one = series(COUNTED, [(1.0, 0.0), (6.0, 10.0), (11.0, 20.0)], router="aa", job="x")
    two = series(COUNTED, [(3.0, 4.0), (8.0, 13.0)], router="aa", job="y")
    evidence = fed(empty(), one, two)
    assert evidence.judge.totals.candidate.requests == 20
    again = series(COUNTED, [(13.0, 24.0)], router="aa", job="y")
    new = series(COUNTED, [(13.0, 3.0)], router="bb", job="x")
    assert fed(evidence, again, new).judge.totals.candidate.requests == 27
    (said,) = copies([one, two, new], STATE)
    assert "router aa" in said
    assert "job=x" in said
    assert "job=y" in said


def test_a_label_that_changes_while_its_counter_goes_on_counts_nothing_again() -> None:
    before = series(COUNTED, [(1.0, 0.0), (6.0, 10.0)], router="aa", pod="old")
    after = series(COUNTED, [(11.0, 12.0)], router="aa", pod="new")
    assert fed(empty(), before, after).judge.totals.candidate.requests == 12
    assert copies([before, after], STATE) == []


def test_a_spoiled_series_is_named_and_the_others_go_on() -> None:
    bad = CounterSeries(
        series(REQUESTS, [], outcome="server_error").labels, ((1.0, 0.0),), spoiled=2.0
    )
    good = series(COUNTED, [(1.0, 0.0), (2.0, 30.0)])
    assert fed(empty(), bad, good).judge.totals.candidate.requests == 30
    assert spoiled([bad, good], STATE) == f"the newest sample of {REQUESTS} is no count"
    assert spoiled([series(COUNTED, [], version="other")], STATE) == ""


def test_gaps_and_behaviour_are_counted_and_segments_by_themselves() -> None:
    at = [(1.0, 0.0), (2.0, 8.0)]
    evidence = fed(
        empty(),
        series(GAPS, at),
        series(SHORT_GAPS, [(1.0, 0.0), (2.0, 5.0)], le="2.0"),
        series(ANSWERS, at, behaviour="answered"),
        series(ANSWERS, [(1.0, 0.0), (2.0, 3.0)], behaviour="refused"),
        series(ANSWER_LENGTH, [(1.0, 0.0), (2.0, 0.5)]),
        series(WITHIN, [(1.0, 0.0), (2.0, 6.0)], le="0.5", segment="gold"),
        series(COUNTED, at, segment="gold"),
        series(COUNTED, [(1.0, 0.0), (2.0, 4.0)], segment="other"),
    )
    found = evidence.judge.totals.candidate
    assert (found.streams, found.stalls) == (8, 3)
    assert (found.answers, found.refusals, found.length_sum) == (8, 3, 0.5)
    assert (found.requests, found.over_500ms) == (12, 6)
    assert evidence.judge.segments["gold"].candidate.requests == 8
    assert set(evidence.judge.segments) == {"gold", "other"}


def test_routers_whose_breaker_is_open_are_named_while_they_say_so() -> None:
    def said(value: float, at: float, router: str) -> CounterSeries:
        labels = {"__name__": BREAKER, "rollout": "r1", "router": router}
        return CounterSeries(labels, ((at, value),))

    fresh = series(COUNTED, [(100.0, 1.0)])
    found = [said(1, 99.0, "aa"), said(0, 99.0, "bb"), said(1, 60.0, "gone"), fresh]
    assert breakers_open(found, STATE) == ["aa"]
    assert fed(empty(), *found).judge.totals.candidate.requests == 1


def test_a_span_ignores_what_was_before_and_leaves_what_comes_after() -> None:
    samples = [(1.0, 1.0), (2.0, 3.0), (3.0, 6.0), (4.0, 10.0), (5.0, 15.0)]
    found = [series(COUNTED, samples)]
    evidence = take(empty(), found, STATE, JUDGE, SampleWindow(after=2.0, before=4.0))
    assert (evidence.judge.totals.candidate.requests, evidence.sampled_until) == (3, 3.0)
    assert take(evidence, found, STATE, JUDGE, SampleWindow(before=4.0)) is evidence
    assert fed(evidence, *found).judge.totals.candidate.requests == 12
    assert take(empty(), found, STATE, JUDGE, SampleWindow(before=-inf)) == empty()


def test_a_router_that_restarted_unjudged_may_count_its_keys_again_all_the_same() -> None:
    found = [series(KEYS, [(1, 5), (2, 1)])]
    assert take(empty(), found, STATE, JUDGE, SampleWindow(after=9.0)).key_resets == 1


def test_crashes_are_told_by_the_samples_at_which_they_rose() -> None:
    found = [
        series(REQUESTS, [(1, 0), (2, 2), (3, 2), (4, 1)], outcome="crash"),
        series(REQUESTS, [(2, 0), (5, 1)], outcome="crash", arm="stable", version="v1"),
        series(REQUESTS, [(6, 9)], outcome="server_error"),
        series(REQUESTS, [(7, 9)], outcome="crash", version="v9"),
    ]
    assert sorted(crashes(empty(), found, STATE)) == [2, 4, 5]
    assert list(crashes(fed(empty(), *found), found, STATE)) == []
    # Without cursors a first sample says nothing of when it rose.
    lost = recovered("r1", [carried(fed(empty(), *found), whole=True)], JUDGE)
    assert list(crashes(lost, [series(REQUESTS, [(8, 3)], outcome="crash")], STATE)) == []


def test_prometheus_may_lose_all_it_had() -> None:
    evidence = fed(empty(), series(COUNTED, [(1, 0), (2, 5)]))
    assert fed(evidence) is evidence
    evidence = fed(evidence, series(COUNTED, [(90, 25)]))
    assert evidence.judge.totals.candidate.requests == 25


def test_instances_are_summed_and_each_has_its_own_history() -> None:
    evidence = fed(
        empty(),
        series(COUNTED, [(1, 3)], instance="a"),
        series(COUNTED, [(2, 4)], instance="b"),
        series(COUNTED, [(2, 50)], instance="a", arm="stable", version="v1"),
    )
    assert evidence.judge.totals.candidate.requests == 7
    assert evidence.judge.totals.stable.requests == 50


def test_only_this_rollout_and_its_two_versions_count() -> None:
    evidence = fed(
        empty(),
        series(COUNTED, [(1, 100)], rollout="r0"),
        series(COUNTED, [(1, 100)], version="v9"),
        series(COUNTED, [(1, 100)], arm="stable", version="v2"),
        series(COUNTED, [(1, 100)], arm="fallback", version="v1"),
        series("something_else_total", [(1, 100)]),
    )
    assert evidence == empty()


def test_the_figures_are_those_of_the_design() -> None:
    evidence = fed(
        empty(),
        series(COUNTED, [(1, 10)]),
        series(SLOW, [(1, 3)]),
        series(REQUESTS, [(1, 2)], outcome="server_error"),
        series(REQUESTS, [(1, 1)], outcome="timeout"),
        series(REQUESTS, [(1, 1)], outcome="crash"),
        series(REQUESTS, [(1, 9)], outcome="client_error"),
        series(KEYS, [(1, 6)]),
        series(SCORE_SUM, [(1, 2.5)], partition="0"),
        series(SCORE_COUNT, [(1, 4)], partition="0"),
    )
    arm = evidence.judge.totals.candidate
    assert (arm.requests, arm.failures, arm.crashes, arm.slow) == (10, 4, 1, 3)
    assert (arm.keys, arm.score_sum, arm.scores) == (6, 2.5, 4)


def test_a_partition_that_moves_to_another_worker_is_counted_on() -> None:
    old = series(SCORE_COUNT, [(1, 4), (2, 6)], partition="0", instance="w1", node="n1")
    new = series(SCORE_COUNT, [(3, 6), (4, 9)], partition="0", instance="w2", node="n2")
    late = series(SCORE_COUNT, [(5, 5)], partition="0", instance="w1")
    evidence = fed(fed(empty(), old), old, new)
    assert evidence.judge.totals.candidate.scores == 9
    assert fed(evidence, late).judge.totals.candidate.scores == 9
    other = series(SCORE_COUNT, [(5, 2)], partition="1", instance="w1")
    assert fed(evidence, other).judge.totals.candidate.scores == 11


@given(
    rises=st.lists(st.integers(0, 9), min_size=2, max_size=20),
    at=st.integers(0, 19),
    back=st.integers(0, 5),
)
def test_what_a_decision_carries_is_enough_to_go_on_without_counting_twice(
    rises: list[int], at: int, back: int
) -> None:
    values = [sum(rises[: n + 1]) for n in range(len(rises))]
    samples = [(100.0 + n, float(value)) for n, value in enumerate(values)]
    at = min(at, len(samples) - 1)
    before = fed(empty(), series(COUNTED, samples[: at + 1]))
    evidence = [carried(before, whole=True)]
    after = fed(recovered("r1", evidence, JUDGE), series(COUNTED, samples[max(0, at - back) :]))
    # The window reaches back to a sample that was counted, so nothing is lost either.
    assert after.judge.totals.candidate.requests == values[-1]


def test_slices_of_later_decisions_bring_an_earlier_state_up_to_date() -> None:
    evidence, decided = empty(), list[dict[str, object]]()
    for second in range(1, 20):
        evidence = fed(evidence, series(COUNTED, [(second, 3.0 * second)]))
        if second % 4 == 0:
            decided.append(carried(evidence, whole=second == 4))
            # Killed before the file knew of the decision: its slices are told again.
            evidence = evidence.reported() if second % 8 else evidence
    decided.append(carried(evidence, whole=False))
    again = recovered("r1", decided, JUDGE)
    assert again.judge == evidence.judge
    assert again.sampled_until == evidence.sampled_until


def test_without_a_sample_from_before_what_is_unknown_is_left_out() -> None:
    before = fed(empty(), series(COUNTED, [(1, 5)]))
    after = fed(
        recovered("r1", [carried(before, whole=True)], JUDGE),
        series(COUNTED, [(500, 90), (501, 93)]),
    )
    assert after.judge.totals.candidate.requests == 5 + 3


def test_a_new_candidate_starts_from_nothing() -> None:
    evidence = recovered("r2", [], JUDGE)
    assert evidence.judge.totals.candidate.requests == 0
    assert evidence.recovered_at is None
    other = STATE.but(rollout_id="r2")
    assert fed(evidence, series(COUNTED, [(1, 5)]), state=other) is evidence


def test_keys_are_tested_only_in_a_stretch_of_one_weight() -> None:
    evidence = fed(empty(), series(KEYS, [(NOW.timestamp() + 1, 5)]))
    assert evidence.judge.keys.candidate == 0
    evidence = fed(evidence, series(KEYS, [(NOW.timestamp() + 12, 7)]))
    assert evidence.judge.keys.candidate == 0
    evidence = fed(evidence, series(KEYS, [(NOW.timestamp() + 13, 10)]))
    assert (evidence.judge.keys.candidate, evidence.judge.keys.weight) == (3, 500)
    full = STATE.but(weight=10_000, weight_set_at=NOW - timedelta(hours=1))
    assert (
        fed(evidence, series(KEYS, [(NOW.timestamp() + 20, 30)]), state=full).judge.keys.candidate
        == 3
    )


def test_the_query_asks_for_raw_samples_and_no_further_back_than_needed() -> None:
    asked = query('r"1', 15)
    assert 'rollout="r\\"1"' in asked
    assert asked.endswith("[15s]")
    assert "rate(" not in asked
    assert window_s(empty(), 1000.0) == 120
    assert window_s(RolloutEvidence(rollout_id="r", sampled_until=995.0), 1000.0) == 20
    assert window_s(RolloutEvidence(rollout_id="r", sampled_until=1.0), 1000.0) == 120


def test_slices_wait_for_a_decision_and_are_bounded() -> None:
    evidence = empty()
    for second in range(1, 200):
        evidence = fed(evidence, series(COUNTED, [(second, second)]))
    assert len(evidence.unreported) == 64
    assert evidence.unreported[-1]["look"] == 198
    assert evidence.reported().unreported == ()


def test_capped_attempts_are_shown_by_arm_and_judged_in_none() -> None:
    """A router gives them an arm of their own; the version says whose users' they are."""
    evidence = fed(
        empty(),
        series(COUNTED, [(1.0, 4.0)]),
        series(COUNTED, [(1.0, 7.0)], arm="capped"),
        series(COUNTED, [(1.0, 9.0)], arm="capped", version="v1"),
        series(COUNTED, [(1.0, 5.0)], arm="capped", version="other"),
        series("ratchet_router_requests_total", [(1.0, 7.0)], arm="capped", outcome="crash"),
    )
    totals = evidence.judge.totals
    assert (totals.candidate.requests, totals.candidate.capped) == (4, 7)
    assert (totals.stable.requests, totals.stable.capped) == (0, 9)
    assert totals.candidate.failures == totals.candidate.crashes == 0
    assert "capped" in query("r1", 60)


def test_what_each_voter_adds_is_a_part_of_the_slice() -> None:
    labels = {"by": "tenant", "voter": "3fa9c1d2"}
    later = take(
        RolloutEvidence(rollout_id="r1"),
        [
            series(COUNTED, [(1.0, 40.0)], router="a"),
            series(VOTER_ATTEMPTS, [(1.0, 10.0)], router="a", figure="requests", **labels),
            series(VOTER_ATTEMPTS, [(1.0, 2.0)], router="b", figure="requests", **labels),
            series(VOTER_ATTEMPTS, [(1.0, 3.0)], router="a", figure="capped", **labels),
            series(VOTER_ATTEMPTS, [(1.0, 9.0)], router="a", figure="unknown", **labels),
            series(VOTER_SCORE_COUNT, [(1.0, 2.0)], partition="0", **labels),
            series(VOTER_SCORE_SUM, [(1.0, 1.5)], partition="0", **labels),
        ],
        STATE,
        JUDGE,
    )
    voter = later.judge.voters["tenant:3fa9c1d2"].candidate
    assert (voter.requests, voter.capped, voter.scores, voter.score_sum) == (12, 3, 2, 1.5)
    assert later.judge.totals.candidate.requests == 40
    assert later.judge.without["tenant:3fa9c1d2"].totals.candidate.requests == 28
    (row,) = voter_shares(later.judge)
    assert (row["by"], row["voter"], row["candidate"], row["capped"]) == (
        "tenant", "3fa9c1d2", 0.3, 3,
    )  # fmt: skip
    assert VOTER_ATTEMPTS in query("r1", 60)


def scraped(second: int, voters: int, failures: float = 0.0) -> list[CounterSeries]:
    """A router's counters at a second: ten requests of each voter, ten new ones each second."""
    found = [
        series(
            name, [(float(second), 10.0 * voters * second)], router="a", arm=arm, version=version
        )
        for name in (COUNTED, SLOW)
        for arm, version in (("candidate", "v2"), ("stable", "v1"))
    ]
    for number in range(voters):
        labels = {"by": "tenant" if number % 2 else "key", "voter": f"{number:08x}", "router": "a"}
        for arm, version in (("candidate", "v2"), ("stable", "v1")):
            found.append(
                series(
                    VOTER_ATTEMPTS,
                    [(float(second), 10.0 * second)],
                    arm=arm,
                    version=version,
                    figure="requests",
                    **labels,
                )
            )
    failed = [(float(second), failures)]
    return [*found, series(REQUESTS, failed, router="a", outcome="server_error")]


def test_a_day_of_scrapes_a_second_with_48_voters_is_a_bounded_record() -> None:
    evidence, judge_bytes = empty(), 0
    for second in range(1, 61):
        evidence = take(evidence, scraped(second, 24), STATE, JUDGE)
    slices = [json.dumps(one) for one in evidence.unreported]
    assert len(slices) == 60
    assert sum("voters" in json.loads(one) for one in slices) <= 6
    judge_bytes = len(json.dumps(carried(evidence, whole=True)["judge"]))
    a_day = 86_400 / 60 * sum(map(len, slices)) + 86_400 / WHOLE_EVIDENCE_S * judge_bytes
    assert a_day < 150e6


def test_who_breaks_a_criterion_is_looked_at_in_the_same_look() -> None:
    evidence = empty()
    for second in range(100, 103):
        evidence = take(evidence, scraped(second, 2), STATE, JUDGE)
    assert [one.get("voters_later", False) for one in evidence.unreported] == [False, True, True]
    assert evidence.judge.voters["key:00000000"].candidate.requests == 1_000
    evidence = take(evidence, scraped(103, 2, failures=60.0), STATE, JUDGE)
    assert "voters_later" not in evidence.unreported[-1]
    assert evidence.judge.voters["key:00000000"].candidate.requests == 1_030
    assert evidence.judge.totals.candidate.requests == 2_060
    assert evidence.judge.without["key:00000000"].totals.candidate.requests == 1_030
