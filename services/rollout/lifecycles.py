"""Lifecycle states that versions should have, derived from the decisions. Pure.

Version states follow from the decisions, so a controller that died between the two writes is
made good by its successor.
"""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.rollout.counts import JudgeState
from services.rollout.decision_log import DecisionLog, RolloutHistory
from services.rollout.intervals import difference
from shared.contracts.events.rollouts import DecisionKind
from shared.contracts.events.versions import Lifecycle, VersionGain
from shared.registry.versions import Registry, Version

RESTING = (Lifecycle.stable, Lifecycle.canary, Lifecycle.shadow)
"""States that only a present decision upholds."""


@dataclass(frozen=True, slots=True)
class LifecycleChange:
    """A version whose state is not what was decided."""

    version: str
    model: str
    state: Lifecycle
    rollout: str
    reason: str
    holdout: bool = False
    gain: VersionGain | None = None


def changes(decision_log: DecisionLog, registry: Registry, model: str) -> list[LifecycleChange]:
    """What has to be written for a model, in this order: it is never without a stable version."""
    found = list(_changes(decision_log, registry, model))
    return sorted(found, key=lambda change: change.state is not Lifecycle.stable)


def _changes(
    decision_log: DecisionLog, registry: Registry, model: str
) -> Iterator[LifecycleChange]:
    routing = decision_log.routing.get(model)
    if routing is None:
        return
    unfinished = decision_log.unfinished_of(model)
    for version in registry.versions(model):
        name = version.record.version
        history = _last_of(decision_log, model, name)
        rollout = history.state.rollout_id if history else ""
        reason = history.last.reason if history else ""
        if name == routing.stable:
            wanted = Lifecycle.stable
        elif unfinished is not None and name == unfinished.state.candidate:
            shadowed = unfinished.state.shadow_step is not None
            wanted = Lifecycle.shadow if shadowed else Lifecycle.canary
        elif version.lifecycle is Lifecycle.stable:
            wanted, reason = Lifecycle.retired, f"{routing.stable} is stable now"
        elif version.lifecycle in RESTING:
            wanted = _after_failure(history)
        else:
            wanted = version.lifecycle
        holdout = name == routing.reference
        held = version.state is not None and version.state.holdout
        if wanted is not version.lifecycle or holdout is not held:
            gain = version.state.gain if version.state else None
            if history is not None and wanted not in (Lifecycle.canary, Lifecycle.shadow):
                gain = _gain(history) or gain
            yield LifecycleChange(name, model, wanted, rollout, reason[:2000], holdout, gain)


def waiting(decision_log: DecisionLog, registry: Registry, model: str) -> Iterator[Version]:
    """Released versions that were registered and never had a rollout, oldest first."""
    routing = decision_log.routing.get(model)
    for version in registry.versions(model):
        if version.lifecycle is not Lifecycle.registered or not version.record.gate.released:
            continue
        name = version.record.version
        if routing is not None and name == routing.stable:
            continue
        if _last_of(decision_log, model, name) is None:
            yield version


def _last_of(decision_log: DecisionLog, model: str, version: str) -> RolloutHistory | None:
    return next(
        (one for one in reversed(decision_log.histories(model)) if one.state.candidate == version),
        None,
    )


def _gain(history: RolloutHistory) -> VersionGain | None:
    """The gain of a rollout's candidate in satisfaction; None where an arm had no score."""
    judged = history.judged()
    if not judged:
        return None
    totals = JudgeState.model_validate(judged[-1][1]).totals
    if not totals.least("scores"):
        return None
    alpha = history.state.strategy.judge.alpha
    arms = [
        (arm.scores, min(max(arm.score_sum, 0.0), arm.scores))
        for arm in (totals.candidate, totals.stable)
    ]
    found = difference(arms[0], arms[1], alpha)
    return VersionGain(
        over=history.state.stable,
        difference=found["difference"],
        low=found["low"],
        high=found["high"],
        confidence=1 - alpha,
        scores=found["candidate_n"],
        scores_over=found["stable_n"],
    )


def _after_failure(history: RolloutHistory | None) -> Lifecycle:
    """Rejected; but a version that served before and was only called off stays deployable."""
    called_off = (DecisionKind.abort, DecisionKind.supersede)
    if (
        history is not None
        and history.state.came_from is Lifecycle.retired
        and history.last.kind in called_off
    ):
        return Lifecycle.retired
    return Lifecycle.rejected
