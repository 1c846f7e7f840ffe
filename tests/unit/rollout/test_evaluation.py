"""Checks of an evaluation: paired, and none condemns a version that is no worse."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from services.rollout.evaluation import ALPHA, EvaluatedPair, evaluated, sign_test
from shared.contracts.events.generations import GenerationFinished

REFUSAL = "I'm sorry, but I can't help with that."


def result(
    text: str = "It arrives tomorrow.",
    outcome: Literal["ok", "failed", "expired"] = "ok",
    finish_reason: str = "stop",
) -> GenerationFinished:
    return GenerationFinished(
        request_id="r",
        batch_id="b",
        purpose="evaluation",
        version="v",
        outcome=outcome,
        completion=text if outcome == "ok" else "",
        finish_reason=finish_reason,
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


GOOD = result()


@pytest.mark.parametrize(
    ("bad", "check"),
    [
        (result(REFUSAL), "refusals"),
        (result(finish_reason="length"), "cuts"),
        (result(outcome="failed"), "failures"),
        (result("It arrives tomorrow. " * 10), "length"),
    ],
)
def test_what_only_the_candidate_does_wrong_fails_its_check(
    bad: GenerationFinished, check: str
) -> None:
    worse = [EvaluatedPair(bad, GOOD)] * 12 + [EvaluatedPair(GOOD, GOOD)] * 8
    failed = {one.name for one in evaluated(worse).checks if not one.passed}
    assert check in failed
    assert failed <= {check, "answered"}
    shared = [EvaluatedPair(bad, bad)] * 12 + [EvaluatedPair(GOOD, GOOD)] * 8
    assert check not in {one.name for one in evaluated(shared).checks if not one.passed}
    better = [EvaluatedPair(GOOD, bad)] * 3 + [EvaluatedPair(GOOD, GOOD)] * 17
    assert evaluated(better).passed


def test_a_reward_model_that_prefers_stables_answers_fails_it() -> None:
    worse = [EvaluatedPair(GOOD, GOOD, (0.1, 0.9))] * 20
    check = evaluated(worse).checks[-1]
    assert (check.name, check.passed) == ("reward", False)
    assert check.detail == "the reward model prefers 0 answers, and 20 of stable's"
    even = [EvaluatedPair(GOOD, GOOD, scores) for scores in [(0.1, 0.9), (0.9, 0.1)] * 10]
    assert evaluated(even).passed
    assert "reward" not in {one.name for one in evaluated([EvaluatedPair(GOOD, GOOD)] * 20).checks}


def test_too_few_answers_pass_nothing() -> None:
    gate = evaluated([EvaluatedPair(GOOD, GOOD)] * 15 + [EvaluatedPair(None, GOOD)] * 5)
    assert [one.name for one in gate.checks if not one.passed] == ["answered"]
    assert gate.checks[0].detail == "both versions answered 15 of 20 prompts"
    assert not evaluated([]).passed


@given(st.integers(0, 64), st.integers(0, 64))
def test_the_sign_test_is_the_exact_binomial_one(worse: int, better: int) -> None:
    if worse + better:
        exact = binomtest(worse, worse + better, alternative="greater").pvalue
        assert sign_test(worse, better) == pytest.approx(exact)
    else:
        assert sign_test(0, 0) == 1.0


def test_an_equal_version_fails_a_check_at_most_alpha_of_the_time() -> None:
    both = 40
    weights = [
        sign_test(worse, both - worse) - sign_test(worse + 1, both - worse - 1)
        for worse in range(both)
    ] + [0.5**both]
    refused = sum(
        weight for worse, weight in enumerate(weights) if sign_test(worse, both - worse) < ALPHA
    )
    assert 0 < refused <= ALPHA
