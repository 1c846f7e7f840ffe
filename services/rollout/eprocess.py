"""Tests by betting that may be looked at after every slice of data.

Each function returns, for one slice, what it adds to the logarithms of a family of e-processes:
one addend for each alternative of the family. Sums over slices are log-wealths; `mixture` is the
log of their mean, which is an e-process again. Under the null hypothesis an e-process ever reaches
1/alpha with probability at most alpha, however often one looks (Ville's inequality; Ramdas,
Grünwald, Vovk, Shafer: Game-theoretic statistics and safe anytime-valid inference, 2023).

All take sums and counts of values in [0, 1]: a failure is a value of 1. For such a value x with
mean m, and 0 < p, q < 1, the weighted mean inequality gives
E[(q/p)^x ((1-q)/(1-p))^(1-x)] <= 1 + (m - p)(q - p)/(p(1-p)),
so a likelihood ratio of coins stays valid for scores between 0 and 1, and needs only their sum.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import exp, inf, isfinite, lgamma, log, log1p, pi, sqrt

RATE_ALTERNATIVES = (1.4, 2.0, 4.0, 10.0, 40.0, 400.0)
"""How many times the margin the candidate's failure rate may be, for the bets on it."""
RATE_STAKES = tuple(log(6 * part) for part in (0.12, 0.2, 0.3, 0.22, 0.13, 0.03))
"""Log of what is bet on each of them to begin with, times their number: most on 2 to 10 times the
margin, which is where a bad version is that is not plain at once."""
EARLIER_RATE_STAKES = tuple(log(6 * part) for part in (0.2, 0.2, 0.2, 0.2, 0.16, 0.04))
"""The same in the versions 2 and 3 of the judge's rule."""
MEAN_ALTERNATIVES = (0.93, 0.8, 0.6, 0.35, 0.1)
"""What part of the margin the candidate's mean score may be, for the bets on it."""
ODDS_ALTERNATIVES = (1.4, 2.0, 4.0, 10.0, 40.0)
"""How many times the limit's odds the true odds may be, for the bets on it."""
ODDS_BELOW = tuple(1 / times for times in ODDS_ALTERNATIVES)
"""The same for means below a limit."""
SHARE_ALTERNATIVES = (0.5, 0.8, 0.92, 1.09, 1.25, 2.0)
"""How many times the wanted odds the odds of a split may be."""

MEAN_CLIP = (0.05, 0.98)
"""Bets need a stable mean strictly inside (0, 1)."""

LIMITS_CACHED = 256
"""Limits, and pairs of counts, whose logarithms are kept."""

LogWealth = tuple[float, ...]
_RATE_LOGS = tuple(log(times) for times in RATE_ALTERNATIVES)


def none_yet(alternatives: Sequence[float]) -> LogWealth:
    """The log-wealths before any data."""
    return (0.0,) * len(alternatives)


def added(wealth: LogWealth, addends: LogWealth) -> LogWealth:
    """Log-wealths after one more slice."""
    return tuple([one + other for one, other in zip(wealth, addends, strict=True)])


def mixture(wealth: LogWealth) -> float:
    """The log of the mean wealth: one e-process that bets on all alternatives."""
    top = max(wealth)
    if not isfinite(top):
        return -inf
    return top + log(sum([exp(one - top) for one in wealth]) / len(wealth))


def rate_ratio(
    margin: float, candidate: tuple[float, float], stable: tuple[float, float]
) -> LogWealth:
    """Addends against "the candidate's failure rate is at most `margin` times the stable one's".

    `candidate` and `stable` are (requests, failures) of a slice. Given the requests, the next
    failure is the candidate's with probability at most q = margin*n_c / (margin*n_c + n_s); the
    bet that it is a = rho*n_c / (rho*n_c + n_s) multiplies the wealth by a/q or (1-a)/(1-q).
    With rare failures that is the conditional test of two Poisson rates; it holds for any
    Bernoulli rates too, as (1 - p + p*x) <= exp(p*(x - 1)) makes the expected product of a
    slice at most exp(p_s*(a-q)*(margin*n_c/q - n_s/(1-q))) = exp(0).
    A slice without either arm's requests adds 0.
    """
    n_c, failures_c = candidate
    n_s, failures_s = stable
    failures = failures_c + failures_s
    if n_c <= 0 or n_s <= 0 or not failures:
        return none_yet(RATE_ALTERNATIVES)
    growths = _rate_growths(margin, n_c, n_s)
    return tuple(
        [
            failures_c * rate - failures * growth
            for rate, growth in zip(_RATE_LOGS, growths, strict=True)
        ]
    )


# Several criteria of one look have the same margin and counts.
@lru_cache(maxsize=LIMITS_CACHED)
def _rate_growths(margin: float, n_c: float, n_s: float) -> LogWealth:
    return tuple(
        log((times * margin * n_c + n_s) / (margin * n_c + n_s)) for times in RATE_ALTERNATIVES
    )


def mean_ratio(
    margin: float,
    expected: float,
    candidate: tuple[float, float],
    stable: tuple[float, float],
) -> LogWealth:
    """Addends against "the candidate's mean is at least `margin` (<= 1) times the stable one's".

    `candidate` and `stable` are (count, sum of values in [0, 1]) of a slice; `expected` is the
    stable mean as known before the slice. For each alternative (m_c, m_s) the addend is the log
    likelihood ratio against the nearest point (margin*m, m) of the null in Kullback-Leibler
    divergence, which lies on its edge. The log of the expected product is concave in the true
    means, is 0 at that point and falls towards all of the convex null, so the null cannot gain
    (after Turner, Ly, Grünwald: Generic e-variables for exact sequential k-sample tests, 2024).
    A slice without either arm's values adds 0.
    """
    n_c, sum_c = candidate
    n_s, sum_s = stable
    if n_c <= 0 or n_s <= 0:
        return none_yet(MEAN_ALTERNATIVES)
    low, high = MEAN_CLIP
    mean_s = min(max(expected, low), high)
    return tuple(
        _two_means(margin, (times * margin * mean_s, mean_s), (n_c, sum_c), (n_s, sum_s))
        for times in MEAN_ALTERNATIVES
    )


def _two_means(
    margin: float,
    alternative: tuple[float, float],
    candidate: tuple[float, float],
    stable: tuple[float, float],
) -> float:
    bet_c, bet_s = alternative
    n_c, sum_c = candidate
    n_s, sum_s = stable
    # d/dm of n_c*KL(bet_c || margin*m) + n_s*KL(bet_s || m) is 0 where square*m^2 - linear*m
    # + constant is; the smaller root is the one between the two means.
    square = margin * (n_c + n_s)
    linear = n_c * (margin + bet_c) + n_s * (1 + margin * bet_s)
    constant = n_c * bet_c + n_s * bet_s
    nearest = 2 * constant / (linear + sqrt(max(linear * linear - 4 * square * constant, 0.0)))
    return _log_ratio(n_c, sum_c, bet_c, margin * nearest) + _log_ratio(n_s, sum_s, bet_s, nearest)


def _log_ratio(count: float, total: float, bet: float, null: float) -> float:
    return total * log(bet / null) + (count - total) * (log1p(-bet) - log1p(-null))


def above_limit(limit: float, count: float, total: float) -> LogWealth:
    """Addends against "the mean is at most `limit`", from a count and a sum in [0, count]."""
    return _one_mean(limit, count, total, ODDS_ALTERNATIVES)


def below_limit(limit: float, count: float, total: float) -> LogWealth:
    """Addends against "the mean is at least `limit`", from a count and a sum in [0, count]."""
    return _one_mean(limit, count, total, ODDS_BELOW)


def off_share(share: float, hits: float, misses: float) -> LogWealth:
    """Addends against "each of hits + misses was a hit with probability `share`"."""
    return _one_mean(share, hits + misses, hits, SHARE_ALTERNATIVES)


def _one_mean(null: float, count: float, total: float, odds: tuple[float, ...]) -> LogWealth:
    if not 0 < null < 1:
        return none_yet(odds)
    misses = count - total
    return tuple([total * hit + misses * miss for hit, miss in _coins(null, odds)])


# The limits of a strategy are few, and each look bets on every one.
@lru_cache(maxsize=LIMITS_CACHED)
def _coins(null: float, odds: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """What a hit and a miss add, for each alternative."""
    bets = [times * null / (1 - null + times * null) for times in odds]
    return tuple((log(bet / null), log1p(-bet) - log1p(-null)) for bet in bets)


def upper_bound(count: float, total: float, alpha: float) -> float:
    """A bound that the mean of values in [0, 1] exceeds with probability at most alpha, ever.

    The mean m is refused once the mixture of all coins under Jeffreys' prior has 1/alpha times
    the likelihood of a coin m (Robbins 1970; Howard et al.: Time-uniform confidence sequences,
    2021). 1 where there is no data.
    """
    return _bound(count, total, alpha, edge=1.0)


def lower_bound(count: float, total: float, alpha: float) -> float:
    """A bound that the mean of values in [0, 1] lies below with probability at most alpha, ever.

    See `upper_bound`. 0 where there is no data.
    """
    return _bound(count, total, alpha, edge=0.0)


def is_above(limit: float, count: float, total: float, alpha: float) -> bool:
    """Whether `lower_bound` of the same lies above a limit, without a search for it."""
    if count <= 0 or not limit < total / count:
        return False
    if limit <= 0:
        return lower_bound(count, total, alpha) > limit
    return _evidence(count, total) - _log_likelihood(limit, count, total) >= log(1 / alpha)


def _evidence(count: float, total: float) -> float:
    return lgamma(total + 0.5) + lgamma(count - total + 0.5) - lgamma(count + 1) - log(pi)


def _log_likelihood(mean: float, count: float, total: float) -> float:
    return total * log(mean) + (count - total) * log1p(-mean)


def _bound(count: float, total: float, alpha: float, *, edge: float) -> float:
    if count <= 0:
        return edge
    evidence, needed = _evidence(count, total), log(1 / alpha)
    near, far = total / count, edge
    for _ in range(60):
        middle = (near + far) / 2
        if middle in (near, far) or not 0 < middle < 1:
            break
        if evidence - _log_likelihood(middle, count, total) >= needed:
            far = middle
        else:
            near = middle
    return far
