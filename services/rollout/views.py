"""JSON views of rollouts, decisions and versions for the API. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from services.rollout.counts import ArmCounts, JudgeState
from services.rollout.decision_log import RolloutHistory
from services.rollout.state import CONTROLLER, RolloutState
from services.rollout.strategy import Shadow
from services.rollout.verdict import Verdict
from services.rollout.voters import voter_shares
from shared.contracts.events.base import WEIGHT_SCALE
from shared.contracts.events.rollouts import Decision, DecisionKind, Phase
from shared.contracts.events.versions import VersionRecord
from shared.registry.deployments import Deployment
from shared.registry.routing import RoutingState
from shared.registry.versions import Version

SETTINGS = "settings"
"""How a version of prompts and settings came about, where others have their training method."""

RESULTS = {
    DecisionKind.complete: "promoted",
    DecisionKind.rollback: "rolled back; everybody is on stable",
    DecisionKind.abort: "aborted by a person; everybody is on stable",
    DecisionKind.supersede: "superseded by another candidate; everybody is on stable",
}
"""How a rollout ended, in an operator's words."""


def rollout_view(
    history: RolloutHistory, state: RolloutState, judged: JudgeState | None, verdict: Verdict | None
) -> dict[str, Any]:
    """One rollout. `judged` and `verdict` are the leader's newest; else the last on record."""
    last = history.last
    on_record = history.evidence()
    known = judged or JudgeState.model_validate(on_record[0]["judge"] if on_record else {})
    candidate, stable = known.totals.candidate, known.totals.stable
    results: list[dict[str, Any]] = (
        [result.to_dict() for result in verdict.results]
        if verdict is not None
        else _last_results(history)
    )
    return {
        "rollout_id": state.rollout_id,
        "model": state.model,
        "stable": state.stable,
        "candidate": state.candidate,
        "phase": state.phase.value,
        "result": RESULTS.get(last.kind, "") if state.phase.finished else "",
        "step": state.step,
        "step_name": state.step_name,
        "steps": len(state.strategy.steps),
        "weight": state.weight,
        "shadow": _shadow(state),
        "outcome": state.outcome.value if state.outcome else None,
        "reason": last.reason,
        "actor": last.actor,
        "actions": _actions(state),
        "on_behalf_of": last.on_behalf_of,
        "needs_person": state.needs_person,
        "paused_by": state.paused_by,
        "strategy": state.strategy.name,
        "config_sha256": state.strategy.sha256,
        "started_at": state.started_at.isoformat(),
        "step_started_at": state.step_started_at.isoformat(),
        "updated_at": state.updated_at.isoformat(),
        "ended_at": last.at.isoformat() if state.phase.finished else None,
        "requests": {"candidate": candidate.requests, "stable": stable.requests},
        "capped": {"candidate": candidate.capped, "stable": stable.capped},
        "failures": {"candidate": candidate.failures, "stable": stable.failures},
        "scores": {"candidate": _scores(candidate), "stable": _scores(stable)},
        "findings": results,
        "voters": voter_shares(known),
    }


def _shadow(state: RolloutState) -> dict[str, Any] | None:
    """The shadow step's answers, and the share that is mirrored now; None without such a step."""
    first = state.strategy.steps[0]
    if not isinstance(first, Shadow):
        return None
    tally = state.shadow.to_dict() if state.shadow else None
    return {"share": state.mirrored, "minimum": first.shadow.minimum, "answers": tally}


def _actions(state: RolloutState) -> list[str]:
    """The commands that its phase allows, in the order of their buttons."""
    if state.phase.finished:
        return ["retry"] if state.phase is Phase.degraded else []
    first = "resume" if state.phase is Phase.paused else "pause"
    return [first, *(["promote"] if state.weight or state.mirrored else []), "abort"]


def decision_view(decision: Decision) -> dict[str, Any]:
    """One decision as it is known, with its id and a sentence.

    Only the log has the slices of earlier ones, and their judges that leave one voter out.
    """
    return {
        "id": decision.decision_id,
        "sentence": sentence(decision),
        **decision.model_dump(mode="json"),
    }


def sentence(decision: Decision) -> str:
    """A decision in plain words, with its reason."""
    at, before = _percent(decision.weight), _percent(decision.weight_before)
    who = decision.actor
    if decision.on_behalf_of:
        who = f"{decision.on_behalf_of} (by {decision.actor})"
    words = {
        DecisionKind.stable_set: _outside(decision, who),
        DecisionKind.start: f"{who} started {decision.candidate}" + _accepted(decision),
        DecisionKind.weight: f"{decision.candidate} went from {before} to {at} of the users",
        DecisionKind.hold: f"held at {at}",
        DecisionKind.pause: f"{who} paused it at {at}"
        + (f", from {before}" if at != before else ""),
        DecisionKind.resume: f"{who} resumed it at {at}",
        DecisionKind.promote: f"{who} ended the step at {at}",
        DecisionKind.abort: f"{who} called {decision.candidate} off at {before}",
        DecisionKind.rollback: f"{decision.candidate} was taken back from {before}",
        DecisionKind.complete: f"{decision.candidate} became stable",
        DecisionKind.supersede: f"{decision.candidate} was superseded at {before}",
    }
    if decision.kind is DecisionKind.weight and decision.shadow:
        share = _percent(decision.shadow)
        return f"{decision.candidate} answers {share} of the live requests, seen by nobody"
    return f"{words[decision.kind]}: {decision.reason}" if decision.reason else words[decision.kind]


def _accepted(decision: Decision) -> str:
    """What whoever started a rollout accepted about the candidate's data."""
    majority = decision.evidence.get("one_tenant")
    return f", and accepted that {majority}" if majority else ""


def _outside(decision: Decision, who: str) -> str:
    """A decision outside of rollouts: the first stable version, or the holdout."""
    if decision.holdout:
        share, reference = _percent(decision.holdout), decision.holdout_reference
        return f"{who} holds {share} of the users out on {reference}"
    if decision.actor != CONTROLLER:
        return f"{who} ended the holdout"
    return f"{decision.stable} became stable"


def holdout_view(routing: RoutingState, decisions: Sequence[Decision]) -> dict[str, Any]:
    """The holdout; `set_by` is the decision that set it as it is, None before the first one."""
    present = (routing.holdout, routing.reference)
    set_by = next(
        (
            one
            for one in reversed(decisions)
            if one.actor != CONTROLLER and (one.holdout, one.holdout_reference) == present
        ),
        None,
    )
    return {
        "model": routing.model,
        "share": routing.holdout / 100,
        "reference": routing.reference,
        "set_by": decision_view(set_by) if set_by else None,
    }


def _percent(weight: int) -> str:
    return f"{weight * 100 / WEIGHT_SCALE:g} %"


def version_view(
    version: Version,
    deployments: Sequence[Deployment],
    *,
    waits_for: str = "",
    whole: bool = False,
) -> dict[str, Any]:
    """One version with when it got traffic, and why a person must start it; `whole`: its record."""
    record, state = version.record, version.state
    trained = record if isinstance(record, VersionRecord) else None
    waiting = not deployments and not (state and state.actor)
    view: dict[str, Any] = {
        "version": record.version,
        "model": record.model,
        "method": trained.algorithm or trained.method if trained else SETTINGS,
        "parent": record.parent,
        "base": record.base,
        "rebases": trained.rebases if trained else "",
        "state": version.lifecycle.value,
        "rollout": state.rollout if state else "",
        "reason": state.reason if state else "",
        "retired_by": state.actor if state else "",
        "waits_for": waits_for if record.gate.released and waiting else "",
        "tenants": trained.dataset.tenants if trained else {},
        "released": record.gate.released,
        "evaluated": version.evaluation.gate.passed if version.evaluation else None,
        "gate_overridden_by": record.gate.overridden_by,
        "erased_rows": version.marks.erased_rows if version.marks else 0,
        "metrics": trained.metrics if trained else {},
        "created_at": record.created_at.isoformat(),
        "gain": state.gain.model_dump() if state and state.gain else None,
        "moved_at": state.at.isoformat() if state else None,
        "deployments": [one.model_dump(mode="json") for one in deployments],
    }
    if whole:
        evaluation = version.evaluation
        view["record"] = record.model_dump(mode="json")
        view["evaluation"] = evaluation.model_dump(mode="json") if evaluation else None
    return view


def _scores(arm: ArmCounts) -> dict[str, float | None]:
    mean = arm.score_sum / arm.scores if arm.scores else None
    return {"count": arm.scores, "mean": mean}


def _last_results(history: RolloutHistory) -> list[dict[str, Any]]:
    for decision in reversed(history.all()):
        results = decision.evidence.get("findings")
        if isinstance(results, list):
            return cast("list[dict[str, Any]]", results)
    return []
