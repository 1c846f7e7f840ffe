"""Rounds of the learning benchmark with their figures: tables beside the published ones. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.learning_plot import LearningPanel
from benchmarks.learning_votes import VOTES
from shared.intervals import TWO_SIDED_99, wilson

PUBLISHED_SATISFACTION = (3.5, 3.8, 4.0, 4.2)
PUBLISHED_WINS = (0.58, 0.62, 0.65)
FIRST_SCORE = 3.5
JUDGED = 150
"""Prompts of the final measure."""
MUST_FAIL = frozenset({"random", "inverted", "length"})
"""Ablations whose candidates the gate must refuse."""
MAY_FALL = frozenset({"uncapped", "no_shorter"})
HEAD = """\
| | satisfaction (published) | gained over v1.0 | wins v1.0 (published) | wins parent | judge agrees \
| wins parent on the gate's prompts: by judge, by taste | KL to parent, to v1.0 | general tasks | votes | gate |
|---|---|---|---|---|---|---|---|---|---|---|"""
SERVED_HEAD = "| rounds of votes | satisfaction of what is served (published) | wins v1.0 (published) |\n|---|---|---|"

Rate = tuple[float, float, float]
"""A share with its 95 % interval: share, low, high."""


@dataclass(frozen=True)
class LearntRound:
    """A round of votes and the candidate that its job made."""

    name: str
    """The version that the candidate is, or would have been."""
    released: bool
    votes: Sequence[float]
    """Of each round since the parent was released, this one the last."""
    attempts: float
    failed: Sequence[str]
    """Checks of the gate that refused the attempt nearest to passing."""
    figures: Mapping[str, float]
    """Of the candidate's evaluation."""
    satisfaction: float
    gain: tuple[float, float]
    """95 % interval of the satisfaction gained over v1.0 on the same prompts."""
    wins_first: Rate
    wins_parent: Rate
    wins_gate: float
    """Share of the gate's own prompts on which the taste prefers the candidate to its parent."""

    @property
    def keeps_tasks(self) -> bool:
        """Whether general tasks fall no further than by chance, as the gate has it."""
        lost, won = self.figures["capability_lost"], self.figures["capability_won"]
        return wilson(lost, lost + won, TWO_SIDED_99)[0] <= 0.5


def released(rounds: Sequence[LearntRound]) -> list[LearntRound]:
    """Rounds whose candidate became a version."""
    return [one for one in rounds if one.released]


def pooled(runs: Sequence[Sequence[LearntRound]]) -> list[LearntRound]:
    """Each version over all runs: figures and satisfaction are means, win rates of all prompts.

    A run that has no version of a number counts with its last one, which is still served. `passed`
    of the figures is the share of rounds whose candidate was released. The interval of the gain is
    that of the mean over these runs, not over further tastes.
    """
    made = [released(rounds) for rounds in runs]
    most = max(map(len, made))
    return [
        _pooled(f"v1.{number}", [versions[:number][-1] for versions in made if versions])
        for number in range(1, most + 1)
    ]


def _pooled(name: str, versions: Sequence[LearntRound]) -> LearntRound:
    count = len(versions)
    middle = statistics.fmean(sum(one.gain) / 2 for one in versions)
    spread = math.hypot(*((one.gain[1] - one.gain[0]) / 2 for one in versions)) / count

    def rate(shares: Sequence[float]) -> Rate:
        won, prompts = sum(shares) * JUDGED, count * JUDGED
        return (won / prompts, *wilson(won, prompts))

    return LearntRound(
        name=name,
        released=True,
        votes=(statistics.fmean(sum(one.votes) for one in versions),),
        attempts=statistics.fmean(one.attempts for one in versions),
        failed=(),
        figures={
            figure: statistics.fmean(one.figures[figure] for one in versions)
            for figure in versions[0].figures
            if all(figure in one.figures for one in versions)
        }
        | {"passed": count / sum(len(one.votes) for one in versions)},
        satisfaction=statistics.fmean(one.satisfaction for one in versions),
        gain=(middle - spread, middle + spread),
        wins_first=rate([one.wins_first[0] for one in versions]),
        wins_parent=rate([one.wins_parent[0] for one in versions]),
        wins_gate=statistics.fmean(one.wins_gate for one in versions),
    )


def misses(rounds: Sequence[LearntRound], ablation: str, iterations: int) -> list[str]:
    """Goals of this run that were missed."""
    versions = released(rounds)
    if ablation in MUST_FAIL:
        return [f"{one.name} passed the gate" for one in versions]
    if ablation != "none":
        last = versions[-1].satisfaction if versions else FIRST_SCORE
        rises = last > FIRST_SCORE or ablation in MAY_FALL
        return [] if rises else [f"satisfaction is {last:.2f} after {len(rounds)} rounds"]
    missing = [f"v1.{n}: was not released" for n in range(len(versions) + 1, iterations + 1)]
    rows = zip(versions, PUBLISHED_SATISFACTION[1:], PUBLISHED_WINS, strict=False)
    return [
        *(
            text
            for one, satisfied, wins in rows
            for text, met in (
                (f"{one.name}: satisfaction {satisfied}", one.satisfaction >= satisfied),
                (f"{one.name}: wins of v1.0 {wins:.0%}", one.wins_first[0] >= wins),
                (f"{one.name}: beats its parent", one.wins_parent[1] > 0.5),
                (f"{one.name}: keeps its general tasks", one.keeps_tasks),
                (f"{one.name}: at most {VOTES} votes", sum(one.votes) <= VOTES),
            )
            if not met
        ),
        *missing,
    ]


def with_mean(
    name: str, runs: Mapping[int, Sequence[LearntRound]]
) -> dict[str, Sequence[LearntRound]]:
    """Rows of a table: each seed's run, and the mean over all."""
    rows = {f"{name}seed {seed}": rounds for seed, rounds in runs.items()}
    if len(runs) > 1 and any(map(released, runs.values())):
        rows[f"{name}mean of {len(runs)}"] = pooled([*runs.values()])
    return rows


def served(rounds: Sequence[LearntRound], most: int) -> list[LearntRound | None]:
    """What is served after each of the first rounds; None is v1.0."""
    found: list[LearntRound | None] = []
    for one in rounds[:most]:
        found.append(one if one.released else next(iter(found[-1:]), None))
    return found


def served_table(seeds: Mapping[int, Sequence[LearntRound]], most: int) -> str:
    """Markdown with the means of what is served after equal numbers of rounds."""
    rows = [SERVED_HEAD]
    means = served_means([*seeds.values()], most)
    published = zip(PUBLISHED_SATISFACTION[1:], PUBLISHED_WINS, strict=True)
    for number, ((satisfaction, wins), (above, won)) in enumerate(
        zip(means, published, strict=False), start=1
    ):
        rows.append(
            f"| {number} | {_bold(f'{satisfaction:.2f}', satisfaction < above)} ({above}) "
            f"| {_bold(percent(wins), wins < won)} ({percent(won)}) |"
        )
    return "\n".join(rows)


def served_means(runs: Sequence[Sequence[LearntRound]], most: int) -> list[tuple[float, float]]:
    """Mean satisfaction and win rate over v1.0 of what is served after each of the first rounds."""
    satisfaction, wins = panels_of(runs, most)
    return [
        (
            statistics.fmean(values[number] for values in satisfaction.seeds),
            statistics.fmean(values[number - 1] for values in wins.seeds),
        )
        for number in range(1, most + 1)
    ]


def table(runs: Mapping[str, Sequence[LearntRound]]) -> str:
    """Markdown with a row for each round of each run; what is below the published is bold."""
    return "\n".join([HEAD, *(row for name, rounds in runs.items() for row in _rows(name, rounds))])


def _rows(run: str, rounds: Sequence[LearntRound]) -> list[str]:
    published = zip(PUBLISHED_SATISFACTION[1:], PUBLISHED_WINS, strict=True)
    beside = {f"v1.{number}": figures for number, figures in enumerate(published, start=1)}
    return [_row(run, one, *beside[one.name]) for one in rounds]


def _row(run: str, one: LearntRound, satisfied: float, wins: float) -> str:
    figures = one.figures
    agreed = figures.get("judge_accuracy", 0.0)
    low, high = one.gain
    cells = (
        f"{run}, {one.name}{'' if one.released else ' refused'}",
        f"{_bold(f'{one.satisfaction:.2f}', one.satisfaction < satisfied)} ({satisfied})",
        f"{low:+.2f} to {high:+.2f}",
        f"{_bold(percent(one.wins_first[0]), one.wins_first[0] < wins)} ({percent(wins)})",
        _bold(shown(one.wins_parent), one.wins_parent[1] <= 0.5),
        percent(agreed),
        f"{percent(figures['win_rate'])}, {percent(one.wins_gate)}",
        f"{figures['kl']:.2f}, {figures['kl_first']:.2f}",
        f"{percent(figures['capability_parent'])} to {percent(figures['capability_candidate'])}",
        " + ".join(f"{votes:.0f}" for votes in one.votes),
        _gate(one),
    )
    return f"| {' | '.join(cells)} |"


def _gate(one: LearntRound) -> str:
    if "passed" in one.figures:
        return f"{percent(one.figures['passed'])} of rounds"
    how = "passes" if one.released else f"refuses: {', '.join(one.failed)}"
    return how if one.attempts == 1 else f"{how} ({one.attempts:.0f} attempts)"


def _bold(text: str, missed: bool) -> str:
    return f"**{text}**" if missed else text


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def shown(rate: Rate) -> str:
    share, low, high = rate
    return f"{percent(share)} ({percent(low)} to {percent(high)})"


def panels_of(runs: Sequence[Sequence[LearntRound]], most: int) -> list[LearningPanel]:
    """Satisfaction and win rate over v1.0 of what is served after each of the first rounds."""
    after = [served(rounds, most) for rounds in runs]
    names = [f"round {number}" for number in range(1, most + 1)]
    satisfied = [
        [FIRST_SCORE, *(one.satisfaction if one else FIRST_SCORE for one in run)] for run in after
    ]
    won = [[one.wins_first[0] if one else 0.5 for one in run] for run in after]
    return [
        LearningPanel(
            "satisfaction, 1 to 5", ["v1.0", *names], satisfied, PUBLISHED_SATISFACTION, 3.0, 5.0
        ),
        LearningPanel("win rate over v1.0", names, won, PUBLISHED_WINS, 0.4, 1.0),
    ]
