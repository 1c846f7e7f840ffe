"""Which samples the judge may have, as an engine that dies takes requests with it. Pure.

One engine serves both arms, so requests that a loss cost say nothing about the candidate. They
are in the samples before anybody knows of the loss, and still come in after it.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from math import inf

from services.rollout import steps
from services.rollout.evidence import (
    CounterSeries,
    RolloutEvidence,
    SampleWindow,
    crashes,
    newest,
    take,
)
from services.rollout.judge import Judge
from services.rollout.steps import EngineReport, RolloutState
from shared.registry.rollouts import AnalysisOutcome

CRASH_WAITS_S = 10.0
"""Seconds that a crash, and all after it, waits to be judged: its agent polls the engine every
second, and is asked at each look. Other failures do not wait."""


def span(
    evidence: RolloutEvidence,
    series: Iterable[CounterSeries],
    state: RolloutState,
    agents: Mapping[str, EngineReport],
    at: datetime,
) -> SampleWindow:
    """The part of a fetch that the judge may have, given what the agents said at the same look.

    A lost engine: nothing, for good. A silent one: nothing until it says something, or is taken
    for lost. A young crash: what was before it.
    """
    if steps.lost(state, agents, at):
        return SampleWindow(after=(at + timedelta(seconds=steps.LOSS_SHADOW_S)).timestamp())
    if steps.silent(state, agents):
        return SampleWindow(before=-inf)
    shadow = state.unjudged_until
    after = -inf
    if shadow is not None:
        after = max(shadow, at).timestamp() if state.weight == 0 else shadow.timestamp()
    series = list(series)
    # In Prometheus's time where it is ahead of ours, so that a crash never waits longer.
    now = max(at.timestamp(), newest(series, state))
    young = (
        one for one in crashes(evidence, series, state) if max(after, now - CRASH_WAITS_S) < one
    )
    return SampleWindow(after=after, before=min(young, default=inf))


def waits(
    evidence: RolloutEvidence,
    series: Iterable[CounterSeries],
    state: RolloutState,
    judge: Judge,
    rest: SampleWindow,
) -> str:
    """What crashes that wait would fail the candidate for; empty where they would not.

    `evidence` has all before `rest.before`. No step ends on the evidence that is left.
    """
    if not -inf < rest.before < inf:
        return ""
    ahead = take(evidence, series, state, judge, SampleWindow(after=rest.after))
    verdict = judge.verdict(ahead.judge, error_limit=state.error_limit)
    if verdict.outcome is not AnalysisOutcome.failed:
        return ""
    return f"crashes wait {CRASH_WAITS_S:g} s for the agents' word on the engine: {verdict.reason}"
