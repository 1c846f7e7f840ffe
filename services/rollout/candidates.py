"""Candidates: which version may start a rollout, which one waits to, which may become stable."""

from __future__ import annotations

import structlog

from services.rollout import lifecycles
from services.rollout.agents import Agents
from services.rollout.decision_log import DecisionLog
from services.rollout.errors import Conflict, NotAllowed, Unknown
from services.rollout.strategy import Strategy
from shared.contracts.events.versions import Lifecycle, SettingsRecord
from shared.registry.versions import Registry, Version
from shared.validation import field_refusal

log = structlog.get_logger(__name__)


class Candidates:
    """Reads the registry and the decisions; decides nothing."""

    def __init__(self, registry: Registry, decision_log: DecisionLog, agents: Agents) -> None:
        self._registry = registry
        self._decision_log = decision_log
        self._agents = agents
        self._unverified: dict[str, tuple[str, dict[str, str]]] = {}

    def models(self) -> list[str]:
        """Models with a version, by name."""
        return sorted({version.record.model for version in self._registry.versions()})

    async def verified_firsts(self) -> dict[str, str]:
        """Each model without a stable version -> its oldest version that an engine has verified.

        A version that every engine refuses must not become stable: nothing could serve the model.
        """
        found: dict[str, str] = {}
        waiting = {
            model: [
                version.record.version
                for version in lifecycles.waiting(self._decision_log, self._registry, model)
            ]
            for model in self.models()
            if self._decision_log.routing.get(model) is None
        }
        # Asked once: the agents' deadline for each version would hold up all other models.
        reports = await self._agents.reports_of([name for of in waiting.values() for name in of])
        for model, names in waiting.items():
            for name in names:
                if any(report.candidate_ready for report in reports[name].values()):
                    found[model] = name
                    break
                details = {agent: report.detail for agent, report in reports[name].items()}
                if self._unverified.get(model) != (name, details):
                    self._unverified[model] = (name, details)
                    log.info("first_version.not_verified", version=name, agents=details)
        return found

    def waiting(self, model: str) -> str:
        """The oldest version whose rollout may begin now; empty where none, or one is under way.

        A version on another base than stable's is a person's to roll out: the engines change first.
        So is one whose data is `one_tenants`; neither holds up those behind it.
        """
        if self._decision_log.unfinished_of(model) is not None:
            return ""
        waiting = lifecycles.waiting(self._decision_log, self._registry, model)
        for version in waiting:
            name = version.record.version
            if not self._registry.on_another_base(version.record) and not self.one_tenants(name):
                return name
        return ""

    def one_tenants(self, candidate: str) -> str:
        """Who gave more than half of a version's data, where several gave some; empty: nobody.

        Once the version was in a rollout, or the one whose adapter it serves, a person has accepted
        it.
        """
        trained = self._registry.adapter(candidate)
        majority = trained.dataset.majority if trained else None
        if trained is None or majority is None:
            return ""
        if any(map(self._decision_log.was_candidate, {candidate, trained.version})):
            return ""
        tenant, share = majority
        return f"tenant {tenant} gave {share:.0%} of the rows it was trained on"

    def unevaluated(self, candidate: str, strategy: Strategy) -> str:
        """Why a strategy's requirement of a passed evaluation is not met; empty where it is.

        Trained versions have a gate of their own.
        """
        version = self._registry.get(candidate)
        if strategy.evaluation == "advice" or version is None:
            return ""
        if not isinstance(version.record, SettingsRecord):
            return ""
        if version.evaluation is None:
            return "it was not evaluated"
        routing = self._decision_log.routing.get(version.record.model)
        against = version.evaluation.against
        if routing is not None and routing.stable != against:
            return f"it was evaluated against {against}, and {routing.stable} is stable now"
        failed = [check for check in version.evaluation.gate.checks if not check.passed]
        return "; ".join(f"{check.name}: {check.detail}" for check in failed)

    def accepted(
        self, candidate: str, strategy: Strategy, *, unevaluated: bool, one_tenant: bool
    ) -> dict[str, str]:
        """What a person overrides who starts a rollout, by the name of the flag, for the record.

        Raises:
            NotAllowed: a flag is missing.

        """
        found: dict[str, str] = {}
        if lacking := self.unevaluated(candidate, strategy):
            found["unevaluated"] = lacking
            if not unevaluated:
                raise field_refusal(
                    NotAllowed,
                    "candidate",
                    f"strategy {strategy.name} requires a passed evaluation of "
                    f"{candidate}, and {lacking}",
                    "evaluate it (`ratchet versions evaluate "
                    f"{candidate}`), or say unevaluated: true (`ratchet rollout start "
                    "--unevaluated`)",
                )
        if majority := self.one_tenants(candidate):
            found["one_tenant"] = majority
            if not one_tenant:
                raise field_refusal(
                    NotAllowed,
                    "candidate",
                    f"{majority}, more than half",
                    "look at its data, then have an "
                    "approver's key say one_tenant: true (`ratchet rollout start --one-tenant`)",
                )
        return found

    def retirable(self, name: str) -> Version:
        """A version that a person may take out of the engines and of the queue.

        Raises:
            RolloutError: it is unknown, it gets traffic, or it was rejected.

        """
        version = self._registry.get(name)
        if version is None:
            raise field_refusal(
                Unknown, "version", f"{name} is no version", "GET /v1/versions lists them"
            )
        routing = self._decision_log.routing.get(version.record.model)
        unfinished = self._decision_log.unfinished_of(version.record.model)
        if routing is not None and routing.stable == name:
            rule, remedy = f"{name} is stable", "roll out another version first"
        elif unfinished is not None and unfinished.state.candidate == name:
            rule = f"{name} is in the unfinished rollout {unfinished.state.rollout_id}"
            remedy = "abort that (`ratchet rollout abort`)"
        elif routing is not None and routing.reference == name:
            rule = f"{name} is the reference of the holdout"
            remedy = "end that first (`ratchet rollout holdout clear`)"
        elif version.lifecycle is Lifecycle.rejected:
            rule, remedy = f"{name} was rejected", "nothing serves it, so there is nothing to do"
        else:
            return version
        raise field_refusal(Conflict, "version", rule, remedy)

    def check(self, model: str, candidate: str, *, again: bool) -> str:
        """The stable version that a candidate may be rolled out against.

        Raises:
            RolloutError: it may not, and why.

        """
        version = self._registry.get(candidate)
        if version is None or version.record.model != model:
            raise field_refusal(
                Unknown,
                "candidate",
                f"{candidate} is not a version of {model}",
                "GET /v1/versions lists them",
            )
        if not version.record.gate.released:
            raise field_refusal(
                NotAllowed,
                "candidate",
                f"{candidate} did not pass its gate",
                "train again, or register it with the audited gate override",
            )
        if version.lifecycle is Lifecycle.rejected and not again:
            why = version.state.reason if version.state else ""
            raise field_refusal(
                Conflict,
                "candidate",
                f"{candidate} was rejected ({why[:300]})",
                "to start it all the same say again: true (`ratchet rollout start --again`)",
            )
        routing = self._decision_log.routing.get(model)
        if routing is None:
            raise Conflict(f"model {model} has no stable version yet; its first one becomes it")
        if routing.stable == candidate:
            raise field_refusal(
                Conflict, "candidate", f"{candidate} is stable already", "roll out another version"
            )
        return routing.stable
