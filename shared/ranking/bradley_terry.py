"""Bradley-Terry model with covariates: posterior mode, covariance and influence. Pure.

A side wins with chance 1 / (1 + exp(-m)). Its margin m is its strength less the other side's (Bradley
and Terry 1952, Biometrika 39, 324-345) plus effects of covariates. Strengths and effects are the
maximum of the likelihood with a weak normal prior, so that a version that always won stays finite.
"""

# pyright: strict
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import mul

PRIOR_SD = 3.0
"""Standard deviation of the prior of a strength, in logits: a chance of 95 % over the mean is one."""
MAX_STEPS = 50
TOLERANCE = 1e-8
"""Of a parameter, in logits."""

Terms = tuple[tuple[int, float], ...]
"""A margin: parameters with their coefficients."""
Row = tuple[Terms, float, float]
"""A margin, the share of votes that its side won (a tie is half of one), and how many votes."""
Matrix = list[list[float]]


def versus(first: int, second: int) -> Terms:
    """The margin of one version over another."""
    return (first, 1.0), (second, -1.0)


def fit(rows: Sequence[Row], start: Sequence[float], tolerance: float = TOLERANCE) -> list[float]:
    """Parameters of highest posterior density, by Newton's method; the strengths' mean is 0."""
    values = list(start)
    for _ in range(MAX_STEPS):
        gradient, curvature = _derivatives(rows, values)
        step = _substitute(_factor(curvature), gradient)
        # Damped: far from the optimum a whole step may overshoot.
        longest = max(map(abs, step), default=0.0)
        scale = min(1.0, 2.0 / longest) if longest else 1.0
        values = [value + scale * change for value, change in zip(values, step, strict=True)]
        if longest < tolerance:
            break
    return values


def covariance(rows: Sequence[Row], values: Sequence[float]) -> Matrix:
    """Covariance of the parameters: the posterior's normal approximation at its mode."""
    _, curvature = _derivatives(rows, values)
    lower = _factor(curvature)
    size = len(values)
    return [_substitute(lower, [float(i == j) for j in range(size)]) for i in range(size)]


def influence(rows: Iterable[Row], values: Sequence[float], spread: Matrix) -> list[float]:
    """How far some of the votes move each parameter, to the first order (infinitesimal jackknife).

    Args:
        rows: these votes.
        values: parameters fitted to all votes.
        spread: their covariance.

    """
    pulls: dict[int, float] = {}
    for terms, share, votes in rows:
        slope = votes * (share - chance(terms, values))
        for at, coefficient in terms:
            pulls[at] = pulls.get(at, 0.0) + coefficient * slope
    moved = [0.0] * len(values)
    for at, pull in pulls.items():
        moved = [value + pull * one for value, one in zip(moved, spread[at], strict=True)]
    return moved


def chance(terms: Terms, values: Sequence[float]) -> float:
    """The chance that a margin's side wins."""
    return 1 / (1 + math.exp(-sum(coefficient * values[at] for at, coefficient in terms)))


def _derivatives(rows: Sequence[Row], values: Sequence[float]) -> tuple[list[float], Matrix]:
    """Gradient of the log posterior, and the negative of its Hessian."""
    size, precision = len(values), 1 / PRIOR_SD**2
    gradient = [-precision * value for value in values]
    curvature = [[0.0] * size for _ in range(size)]
    for index in range(size):
        curvature[index][index] = precision
    for terms, share, votes in rows:
        expected = chance(terms, values)
        slope = votes * (share - expected)
        bend = votes * expected * (1 - expected)
        for at, coefficient in terms:
            gradient[at] += coefficient * slope
            row, bent = curvature[at], coefficient * bend
            for other, factor in terms:
                row[other] += factor * bent
    return gradient, curvature


def _factor(matrix: Matrix) -> Matrix:
    """Cholesky's lower factor of a symmetric positive definite matrix, in the matrix's place."""
    for i, row in enumerate(matrix):
        for j in range(i):
            other = matrix[j]
            # map stops at the shorter one, the slice.
            row[j] = (row[j] - sum(map(mul, row, other[:j]))) / other[j]
        row[i] = math.sqrt(row[i] - sum(map(mul, row, row[:i])))
    return matrix


def _substitute(lower: Matrix, vector: Sequence[float]) -> list[float]:
    """The solution of a system whose Cholesky factor is given."""
    size = len(vector)
    solution: list[float] = []
    for row, value in zip(lower, vector, strict=True):
        solution.append((value - sum(map(mul, row, solution))) / row[len(solution)])
    for i in reversed(range(size)):
        solution[i] /= lower[i][i]
        below = lower[i]
        for j in range(i):
            solution[j] -= below[j] * solution[i]
    return solution
