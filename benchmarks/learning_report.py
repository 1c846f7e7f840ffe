"""Versions of the learning benchmark with their figures: tables beside the published ones. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.learning_plot import LearningPanel
from shared.intervals import Z99, wilson

PUBLISHED_SATISFACTION = (3.5, 3.8, 4.0, 4.2)
PUBLISHED_WINS = (0.58, 0.62, 0.65)
FIRST_SCORE = 3.5
JUDGED = 150
"""Prompts of the final measure."""
GATE_WIN_RATE = 0.55
HEAD = """\
| | satisfaction (published) | gained over v1.0 | wins v1.0 (published) | wins parent | judge agrees \
| KL to parent, to v1.0 | general tasks | gate's win rate |
|---|---|---|---|---|---|---|---|---|"""

Rate = tuple[float, float, float]
"""A share with its 95 % interval: share, low, high."""


@dataclass(frozen=True)
class LearntVersion:
    """A version with the figures of its own evaluation and of the taste's."""

    name: str
    figures: Mapping[str, float]
    satisfaction: float
    gain: tuple[float, float]
    """95 % interval of the satisfaction gained over v1.0 on the same prompts."""
    wins_first: Rate
    wins_parent: Rate

    @property
    def passes(self) -> bool:
        """Whether the gate's win rate by the run's own judge lets it through."""
        judged = sum(self.figures[name] for name in ("wins", "ties", "losses"))
        won = self.figures["wins"] + self.figures["ties"] / 2
        return won / judged >= GATE_WIN_RATE and wilson(won, judged)[0] >= 0.5

    @property
    def keeps_tasks(self) -> bool:
        """Whether general tasks fall no further than by chance, as the gate has it."""
        lost, won = self.figures["capability_lost"], self.figures["capability_won"]
        return wilson(lost, lost + won, Z99)[0] <= 0.5


def pooled(runs: Sequence[Sequence[LearntVersion]]) -> list[LearntVersion]:
    """Each version over all runs: figures and satisfaction are means, win rates of all prompts.

    `passed` of the figures is the share that the gate lets through. The interval of the gain is that
    of the mean over these runs, not over further tastes.
    """
    return [_pooled(versions) for versions in zip(*runs, strict=True)]


def _pooled(versions: Sequence[LearntVersion]) -> LearntVersion:
    count = len(versions)
    middle = statistics.fmean(sum(one.gain) / 2 for one in versions)
    spread = math.hypot(*((one.gain[1] - one.gain[0]) / 2 for one in versions)) / count

    def rate(shares: Sequence[float]) -> Rate:
        won, prompts = sum(shares) * JUDGED, count * JUDGED
        return (won / prompts, *wilson(won, prompts))

    return LearntVersion(
        versions[0].name,
        {
            name: statistics.fmean(one.figures[name] for one in versions)
            for name in versions[0].figures
            if all(name in one.figures for one in versions)
        }
        | {"passed": sum(one.passes for one in versions) / count},
        statistics.fmean(one.satisfaction for one in versions),
        (middle - spread, middle + spread),
        rate([one.wins_first[0] for one in versions]),
        rate([one.wins_parent[0] for one in versions]),
    )


def with_mean(
    name: str, runs: Mapping[int, Sequence[LearntVersion]]
) -> dict[str, Sequence[LearntVersion]]:
    """Rows of a table: each seed's run, and the mean over the iterations that all have."""
    rows = {f"{name}seed {seed}": versions for seed, versions in runs.items()}
    if len(runs) > 1:
        count = min(map(len, runs.values()))
        mean = pooled([versions[:count] for versions in runs.values()])
        rows[f"{name}mean of {len(runs)}"] = mean
    return rows


def table(runs: Mapping[str, Sequence[LearntVersion]]) -> str:
    """Markdown with a row for each version of each run; what is below the published is bold."""
    return "\n".join(
        [HEAD, *(row for name, versions in runs.items() for row in _rows(name, versions))]
    )


def _rows(run: str, versions: Sequence[LearntVersion]) -> list[str]:
    rows: list[str] = []
    for one, satisfied, wins in zip(
        versions, PUBLISHED_SATISFACTION[1:], PUBLISHED_WINS, strict=False
    ):
        figures = one.figures
        agreed = figures["judge_agreed"] / max(1.0, figures["judge_tested"])
        low, high = one.gain
        cells = (
            f"{run}, {one.name}",
            f"{_bold(f'{one.satisfaction:.2f}', one.satisfaction < satisfied)} ({satisfied})",
            f"{low:+.2f} to {high:+.2f}",
            f"{_bold(percent(one.wins_first[0]), one.wins_first[0] < wins)} ({percent(wins)})",
            _bold(shown(one.wins_parent), one.wins_parent[1] <= 0.5),
            percent(agreed),
            f"{figures['kl']:.2f}, {figures['kl_first']:.2f}",
            f"{percent(figures['capability_parent'])} to {percent(figures['capability_candidate'])}",
            _gate(one),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _gate(one: LearntVersion) -> str:
    if "passed" in one.figures:
        return f"{percent(one.figures['passed'])} pass"
    return "passes" if one.passes else "refused"


def _bold(text: str, missed: bool) -> str:
    return f"**{text}**" if missed else text


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def shown(rate: Rate) -> str:
    share, low, high = rate
    return f"{percent(share)} ({percent(low)} to {percent(high)})"


def panels_of(runs: Sequence[Sequence[LearntVersion]]) -> list[LearningPanel]:
    """Satisfaction and win rate over v1.0 of some runs of the same versions."""
    names = [one.name for one in runs[0]]
    satisfied = [[FIRST_SCORE, *(one.satisfaction for one in run)] for run in runs]
    won = [[one.wins_first[0] for one in run] for run in runs]
    return [
        LearningPanel(
            "satisfaction, 1 to 5", ["v1.0", *names], satisfied, PUBLISHED_SATISFACTION, 3.0, 5.0
        ),
        LearningPanel("win rate over v1.0", names, won, PUBLISHED_WINS, 0.4, 1.0),
    ]
