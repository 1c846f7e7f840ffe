"""Engine loss: when it takes the candidate's weight, and which samples it excludes. Pure.

One engine serves both arms. Its loss stops the rollout, and requests that it cost say nothing
about the candidate: they are in the samples before anybody knows of the loss, and still come in
after it, so samples around a loss are excluded from the evidence.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from math import inf

from services.rollout.counters import CounterSeries, newest
from services.rollout.evidence import RolloutEvidence, SampleWindow, crashes, take
from services.rollout.judge import Judge
from services.rollout.state import EngineMark, EngineReport, Move, Observation, RolloutState, ended
from shared.contracts.events.rollouts import AnalysisOutcome, DecisionKind, Phase

MAX_LOSSES = 2
"""Engine losses with the candidate loaded that fail a rollout."""
AGENT_SILENT_S = 15.0
"""Seconds after which an agent that does not answer has everybody put on stable, like a loss."""
LOSS_EXCLUDES_S = 15.0
"""Seconds after a loss whose samples are judged no more than those before: three scrapes of 5 s."""
CRASH_WAITS_S = 10.0
"""Seconds that a crash, and all after it, waits to be judged: its agent polls the engine every
second, and is asked at each look. Other failures do not wait."""


def observed(state: RolloutState, seen: Observation) -> RolloutState:
    """The state with each engine's mark after a look; at weight 0 the exclusion goes on."""
    state = state.but(engines=_marks(state.engines, seen.agents, seen.at))
    if state.weight == 0 and state.unjudged_until is not None:
        state = state.but(unjudged_until=max(state.unjudged_until, seen.at))
    return state


def stop(before: RolloutState, state: RolloutState, seen: Observation) -> Move | None:
    """Weight 0 where an engine is lost, else None. A second loss fails the candidate.

    One engine serves both arms, so only a second loss is held against the candidate. Silence takes
    the weight too, but is no loss: no data never decides. What the agent says when it answers again
    tells whether its engine was lost. `before` has the marks from before the look, `state` those
    from after it.
    """
    if not lost(before, seen.agents, seen.at):
        return None
    gone = _gone(before.engines, seen.agents)
    losses = state.losses + bool(gone)
    if losses >= MAX_LOSSES:
        state = state.but(losses=losses, outcome=AnalysisOutcome.failed)
        return ended(
            state,
            DecisionKind.rollback,
            f"EngineLost: {', '.join(sorted(gone))} was lost again with the candidate loaded",
        )
    by_person = state.phase is Phase.paused and state.paused_by == "person"
    waits = state.strategy.engine_lost == "wait"
    after = state.but(
        phase=Phase.paused,
        paused_by="person" if by_person else "engine",
        paused_at=state.paused_at or seen.at,
        weight=0,
        weight_set_at=seen.at,
        step=state.strategy.weight_step(min(state.step, len(state.strategy.steps) - 1)),
        losses=losses,
        unjudged_until=seen.at + timedelta(seconds=LOSS_EXCLUDES_S),
        outcome=AnalysisOutcome.inconclusive,
        needs_person=waits,
    )
    engines = (
        ", ".join(sorted(gone))
        if gone
        else f"{', '.join(silent(before, seen.agents))} did not answer for {AGENT_SILENT_S:g} s"
    )
    follows = "a person has to resume" if waits else "goes on once the candidate is served again"
    return Move(
        DecisionKind.pause,
        after,
        state.weight,
        f"EngineLost: {engines}; everybody is on stable; {follows}",
    )


def resumes_by_itself(state: RolloutState) -> bool:
    """Whether a rollout that a loss paused goes on without a person."""
    return state.paused_by == "engine" and state.strategy.engine_lost == "resume"


def judged_window(
    evidence: RolloutEvidence,
    series: Iterable[CounterSeries],
    state: RolloutState,
    agents: Mapping[str, EngineReport],
    at: datetime,
) -> SampleWindow:
    """The samples of a fetch that the judge may have, given what the agents said at the same look.

    A lost engine: nothing, for good. A silent one: nothing until it says something, or is taken
    for lost. A young crash: what was before it.
    """
    if lost(state, agents, at):
        return SampleWindow(after=(at + timedelta(seconds=LOSS_EXCLUDES_S)).timestamp())
    if silent(state, agents):
        return SampleWindow(before=-inf)
    excluded = state.unjudged_until
    after = -inf
    if excluded is not None:
        after = max(excluded, at).timestamp() if state.weight == 0 else excluded.timestamp()
    series = list(series)
    # In Prometheus's time where it is ahead of ours, so that a crash never waits longer.
    now = max(at.timestamp(), newest(series, state))
    young = (
        one for one in crashes(evidence, series, state) if max(after, now - CRASH_WAITS_S) < one
    )
    return SampleWindow(after=after, before=min(young, default=inf))


def withheld(
    evidence: RolloutEvidence,
    series: Iterable[CounterSeries],
    state: RolloutState,
    judge: Judge,
    window: SampleWindow,
) -> str:
    """What crashes that wait would fail the candidate for; empty where they would not.

    `evidence` has all before `window.before`. No step ends on the evidence that is left.
    """
    if not -inf < window.before < inf:
        return ""
    ahead = take(evidence, series, state, judge, SampleWindow(after=window.after))
    verdict = judge.verdict(ahead.judge, error_limit=state.error_limit)
    if verdict.outcome is not AnalysisOutcome.failed:
        return ""
    return f"crashes wait {CRASH_WAITS_S:g} s for the agents' word on the engine: {verdict.reason}"


def lost(state: RolloutState, reports: Mapping[str, EngineReport], at: datetime) -> bool:
    """Whether everybody has to be put on stable, as an engine with the candidate is gone.

    That an agent is silent for AGENT_SILENT_S seconds is enough.
    """
    since = (state.engines[url].silent_since for url in silent(state, reports))
    overdue = any(one and (at - one).total_seconds() >= AGENT_SILENT_S for one in since)
    return overdue or bool(_gone(state.engines, reports))


def silent(state: RolloutState, reports: Mapping[str, EngineReport]) -> list[str]:
    """Agents that do not answer while users are on the candidate that their engine had loaded."""
    return [
        url
        for url, report in sorted(reports.items())
        if state.weight > 0
        and report.ready is None
        and url in state.engines
        and state.engines[url].up
        and state.engines[url].loaded
    ]


def _gone(marks: Mapping[str, EngineMark], reports: Mapping[str, EngineReport]) -> list[str]:
    """Agents that say themselves that the engine which had the candidate is gone."""
    return [
        url
        for url, report in reports.items()
        if report.ready is not None
        and (mark := marks.get(url)) is not None
        and mark.up
        and mark.loaded
        and (not report.ready or report.generation != mark.generation)
    ]


def _marks(
    marks: Mapping[str, EngineMark], reports: Mapping[str, EngineReport], at: datetime
) -> dict[str, EngineMark]:
    """What is known of each engine after a look. A silent agent's is what it was."""
    updated = dict(marks)
    for url, report in reports.items():
        if report.ready is not None:
            updated[url] = EngineMark(
                generation=report.generation, up=report.ready, loaded=report.candidate_ready
            )
        elif url in marks and marks[url].silent_since is None:
            updated[url] = marks[url].model_copy(update={"silent_since": at})
    return updated
