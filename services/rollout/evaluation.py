"""Evaluation of a version of settings on recorded prompts: paired checks of two sets of answers. Pure.

Candidate and stable answer the same prompts at the engine, so each prompt is a pair, and a check
looks at the pairs that differ: a one-sided sign test (McNemar's exact test where the figure is yes
or no; McNemar 1947, Psychometrika 12, 153).
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

from shared.contracts.events.generations import GenerationFinished
from shared.contracts.events.versions import GateCheck, GateResult
from shared.refusals import is_refusal

ALPHA = 0.01
"""Chance that one check refuses a version that is no worse."""
MIN_SHARE = 0.8
"""Share of the prompts that both versions must have answered."""
MAX_LENGTH_RATIO = 3.0


@dataclass(frozen=True, slots=True)
class EvaluatedPair:
    """What both versions made of one prompt; None where no result came. Scores: higher is better."""

    candidate: GenerationFinished | None
    stable: GenerationFinished | None
    scores: tuple[float, float] | None = None

    @property
    def answered(self) -> bool:
        """Whether both answered."""
        return _ok(self.candidate) and _ok(self.stable)


def evaluated(pairs: Sequence[EvaluatedPair]) -> GateResult:
    """The checks of an evaluation.

    Answers that failed, refuse or were cut, and scores, must not be worse by a sign test at ALPHA;
    answers must not be MAX_LENGTH_RATIO times as long, and few prompts may lack an answer.
    """
    both = [pair for pair in pairs if pair.answered]
    share = len(both) / len(pairs) if pairs else 0.0
    checks = [
        GateCheck(
            name="answered",
            passed=share >= MIN_SHARE,
            value=round(share, 4),
            limit=MIN_SHARE,
            detail=f"both versions answered {len(both)} of {len(pairs)} prompts",
        ),
        _paired("failures", "failed", pairs, lambda one: one is not None and not _ok(one)),
        _paired("refusals", "refuse", both, _refuses),
        _paired("cuts", "were cut", both, _was_cut),
        _length(both),
    ]
    scored = [pair.scores for pair in both if pair.scores is not None]
    if scored:
        worse = sum(candidate < stable for candidate, stable in scored)
        better = sum(candidate > stable for candidate, stable in scored)
        detail = f"the reward model prefers {better} answers, and {worse} of stable's"
        checks.append(_sign_test("reward", worse, better, detail))
    return GateResult(passed=all(check.passed for check in checks), checks=tuple(checks))


def sign_test(worse: int, better: int) -> float:
    """One-sided p-value: the chance of `worse` and more among both if either is as likely."""
    both = worse + better
    return sum(comb(both, count) for count in range(worse, both + 1)) / 2**both


def _sign_test(name: str, worse: int, better: int, detail: str) -> GateCheck:
    p = sign_test(worse, better)
    return GateCheck(name=name, passed=p >= ALPHA, value=round(p, 6), limit=ALPHA, detail=detail)


def _paired(
    name: str,
    words: str,
    pairs: Iterable[EvaluatedPair],
    bad: Callable[[GenerationFinished | None], bool],
) -> GateCheck:
    found = [(bad(pair.candidate), bad(pair.stable)) for pair in pairs]
    worse = sum(candidate and not stable for candidate, stable in found)
    better = sum(stable and not candidate for candidate, stable in found)
    mine, others = (sum(one) for one in zip(*found, strict=True)) if found else (0, 0)
    return _sign_test(name, worse, better, f"{mine} answers {words}, of stable's {others}")


def _length(pairs: Sequence[EvaluatedPair]) -> GateCheck:
    ratios = [
        len(pair.candidate.completion) / max(1, len(pair.stable.completion))
        for pair in pairs
        if pair.candidate is not None and pair.stable is not None
    ]
    ratio = median(ratios) if ratios else 1.0
    return GateCheck(
        name="length",
        passed=ratio <= MAX_LENGTH_RATIO,
        value=round(ratio, 3),
        limit=MAX_LENGTH_RATIO,
        detail="times stable's length, median",
    )


def _ok(result: GenerationFinished | None) -> bool:
    return result is not None and result.outcome == "ok"


def _refuses(result: GenerationFinished | None) -> bool:
    return result is not None and is_refusal(result.completion)


def _was_cut(result: GenerationFinished | None) -> bool:
    return result is not None and result.finish_reason == "length"
