"""Every addend is checked to be fair: its expectation under the null is at most 1, computed exactly."""

from __future__ import annotations

import random
from itertools import product
from math import comb, exp, isclose, log, log1p

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rollout import eprocess

counts = st.integers(1, 5)
shares = st.floats(0.01, 0.99)
SLACK = 1 + 1e-9


def binomial(n: int, p: float) -> list[tuple[int, float]]:
    return [(k, comb(n, k) * p**k * (1 - p) ** (n - k)) for k in range(n + 1)]


def scores(n: int, mean: float, spread: float) -> list[tuple[float, float]]:
    """Sums of n scores of 0, 1/2 or 1 with that mean; `spread` is how much of it lies on 1/2."""
    half = spread * 2 * min(mean, 1 - mean)
    one, nothing = mean - half / 2, 1 - mean - half / 2
    found: dict[float, float] = {}
    for values in product(((0.0, nothing), (0.5, half), (1.0, one)), repeat=n):
        total, chance = 0.0, 1.0
        for value, probability in values:
            total, chance = total + value, chance * probability
        found[total] = found.get(total, 0.0) + chance
    return list(found.items())


@given(n_c=counts, n_s=counts, p_s=shares, part=st.floats(0, 1), margin=st.floats(1, 3))
def test_the_rate_test_is_fair_at_any_rate_not_only_at_rare_ones(
    n_c: int, n_s: int, p_s: float, part: float, margin: float
) -> None:
    p_c = min(1.0, margin * p_s) * part
    expected = [0.0] * len(eprocess.RATE_ALTERNATIVES)
    for (k_c, chance_c), (k_s, chance_s) in product(binomial(n_c, p_c), binomial(n_s, p_s)):
        addends = eprocess.rate_ratio(margin, (n_c, k_c), (n_s, k_s))
        expected = [
            sum_ + chance_c * chance_s * exp(one)
            for sum_, one in zip(expected, addends, strict=True)
        ]
    assert max(expected) <= SLACK


@given(
    n_c=st.integers(1, 3),
    n_s=st.integers(1, 3),
    mean_s=shares,
    above=st.floats(0, 1),
    margin=st.floats(0.5, 1),
    guess=st.floats(0, 1),
    spread=st.floats(0, 1),
)
def test_the_mean_test_is_fair_for_scores_between_0_and_1_and_any_guess(
    n_c: int, n_s: int, mean_s: float, above: float, margin: float, guess: float, spread: float
) -> None:
    mean_c = margin * mean_s + above * (1 - margin * mean_s)
    expected = [0.0] * len(eprocess.MEAN_ALTERNATIVES)
    for (sum_c, chance_c), (sum_s, chance_s) in product(
        scores(n_c, mean_c, spread), scores(n_s, mean_s, spread)
    ):
        addends = eprocess.mean_ratio(margin, guess, (n_c, sum_c), (n_s, sum_s))
        expected = [
            sum_ + chance_c * chance_s * exp(one)
            for sum_, one in zip(expected, addends, strict=True)
        ]
    assert max(expected) <= SLACK


@given(n=counts, limit=shares, part=st.floats(0, 1), spread=st.floats(0, 1))
def test_the_limit_tests_are_fair_on_their_sides(
    n: int, limit: float, part: float, spread: float
) -> None:
    for addends, mean in (
        (eprocess.above_limit, limit * part),
        (eprocess.below_limit, limit + (1 - limit) * part),
    ):
        expected = [0.0] * len(eprocess.ODDS_ALTERNATIVES)
        for total, chance in scores(n, mean, spread):
            expected = [
                sum_ + chance * exp(one)
                for sum_, one in zip(expected, addends(limit, n, total), strict=True)
            ]
        assert max(expected) <= SLACK


@given(n=counts, share=shares)
def test_the_share_test_is_exactly_fair(n: int, share: float) -> None:
    expected = [0.0] * len(eprocess.SHARE_ALTERNATIVES)
    for hits, chance in binomial(n, share):
        expected = [
            sum_ + chance * exp(one)
            for sum_, one in zip(expected, eprocess.off_share(share, hits, n - hits), strict=True)
        ]
    assert all(isclose(one, 1.0, rel_tol=1e-9) for one in expected)


@given(n=st.integers(1, 1000), k=st.integers(0, 1000))
def test_one_arm_alone_moves_nothing(n: int, k: int) -> None:
    nothing_c, nothing_s = (0.0, 0.0), (float(n), float(min(k, n)))
    for pair in ((nothing_c, nothing_s), (nothing_s, nothing_c)):
        assert set(eprocess.rate_ratio(1.5, *pair)) == {0.0}
        assert set(eprocess.mean_ratio(0.9, 0.7, *pair)) == {0.0}


@given(n=st.integers(1, 10_000), share=st.floats(0, 1), alpha=st.floats(1e-4, 0.5))
def test_bounds_enclose_the_mean_and_close_in(n: int, share: float, alpha: float) -> None:
    total = n * share
    low = eprocess.lower_bound(n, total, alpha)
    high = eprocess.upper_bound(n, total, alpha)
    assert 0 <= low <= total / n + 1e-9
    assert total / n - 1e-9 <= high <= 1
    assert high - low <= eprocess.upper_bound(1, share, alpha) + 1e-9


@given(
    n=st.integers(0, 10_000),
    share=st.floats(0, 1),
    alpha=st.floats(1e-4, 0.5),
    limit=st.floats(0, 1),
)
def test_a_mean_is_above_a_limit_where_its_lower_bound_is(
    n: int, share: float, alpha: float, limit: float
) -> None:
    low = eprocess.lower_bound(n, n * share, alpha)
    for asked in (limit, max(low - 1e-6, 0.0), low + 1e-6):
        if not isclose(asked, low, abs_tol=1e-9):
            assert eprocess.is_above(asked, n, n * share, alpha) is (low > asked)


def test_bounds_hold_at_every_moment() -> None:
    chance, alpha, runs = 0.03, 0.05, 200
    generator = random.Random(3)
    broken = 0
    for _ in range(runs):
        hits = 0
        for n in range(1, 301):
            hits += generator.random() < chance
            if n % 10 == 0 and eprocess.upper_bound(n, hits, alpha) < chance:
                broken += 1
                break
    assert broken / runs <= alpha


def test_without_data_bounds_say_nothing() -> None:
    assert eprocess.upper_bound(0, 0, 0.05) == 1.0
    assert eprocess.lower_bound(0, 0, 0.05) == 0.0


@pytest.mark.parametrize("wealth", [(0.0, 0.0), (5.0, -900.0), (-900.0, -900.0)])
def test_a_mixture_lies_between_its_parts(wealth: tuple[float, ...]) -> None:
    assert min(wealth) <= eprocess.mixture(wealth) <= max(wealth)


def test_stakes_are_shares_of_one_wealth() -> None:
    for stakes in (eprocess.RATE_STAKES, eprocess.EARLIER_RATE_STAKES):
        assert len(stakes) == len(eprocess.RATE_ALTERNATIVES)
        assert isclose(eprocess.mixture(stakes), 0.0, abs_tol=1e-12)


@given(
    candidate=st.tuples(st.integers(0, 10**6), st.integers(0, 50)),
    stable=st.tuples(st.integers(0, 10**6), st.integers(0, 50)),
    margin=st.floats(1, 10),
)
def test_the_rate_test_is_its_formula_whatever_is_cached(
    candidate: tuple[int, int], stable: tuple[int, int], margin: float
) -> None:
    (n_c, failures_c), (n_s, failures_s) = candidate, stable
    expected = [
        failures_c * log(times)
        - (failures_c + failures_s) * log((times * margin * n_c + n_s) / (margin * n_c + n_s))
        if n_c and n_s
        else 0.0
        for times in eprocess.RATE_ALTERNATIVES
    ]
    for _ in range(2):
        assert list(eprocess.rate_ratio(margin, candidate, stable)) == expected


@given(limit=shares, count=st.integers(0, 10**6), part=st.floats(0, 1))
def test_the_test_of_a_limit_is_its_formula_whatever_is_cached(
    limit: float, count: int, part: float
) -> None:
    total = count * part
    for found, odds in (
        (eprocess.above_limit(limit, count, total), eprocess.ODDS_ALTERNATIVES),
        (eprocess.below_limit(limit, count, total), eprocess.ODDS_BELOW),
        (eprocess.off_share(limit, total, count - total), eprocess.SHARE_ALTERNATIVES),
    ):
        bets = [times * limit / (1 - limit + times * limit) for times in odds]
        expected = [
            total * log(bet / limit) + (count - total) * (log1p(-bet) - log1p(-limit))
            for bet in bets
        ]
        assert list(found) == pytest.approx(expected)
