"""Failure memory: what once went wrong, as cases that every later candidate is asked again.

A correction is a case, so is every pair whose worse answer came from a version that was rolled
back, and what a red-team run found. Cases are folded from topics that are kept for ever, so none is lost, and one whose feedback
was withdrawn or erased is gone. A person may retire a case; that is an event too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from shared.contracts.events.base import Event, Message
from shared.contracts.events.cases import CaseFound, CaseRetired
from shared.contracts.events.preferences import PairSource, PreferencePair, PreferenceRetracted
from shared.contracts.events.versions import Lifecycle
from shared.kafka.envelope import models_by_type
from shared.registry.versions import Registry

CASE_MODELS = models_by_type(PreferencePair, PreferenceRetracted, CaseFound, CaseRetired)
"""The events that the memory is folded from; a topic's other events are none of its."""
CaseKind = Literal["correction", "rollback", "redteam"]


@dataclass(frozen=True)
class FailureCase:
    """A prompt, the answer that was wrong and the one that was wanted."""

    case_id: str
    model: str
    kind: CaseKind
    version: str
    messages: tuple[Message, ...]
    good: str
    bad: str
    causes: tuple[str, ...]
    traces: tuple[str, ...]
    created_at: str
    retired: str = ""
    """Who retired it and why; empty while it counts."""


class FailureMemory:
    """The fold of preference pairs, cases found by a red team, and retirements."""

    def __init__(self) -> None:
        self._pairs: dict[str, PreferencePair] = {}
        self._found: dict[str, CaseFound] = {}
        self._retired: dict[str, CaseRetired] = {}

    def apply(self, event: Event) -> None:
        """Fold one event of `preferences.v1` or `cases.v1`."""
        match event:
            case PreferencePair() if _is_text(event):
                self._pairs[event.pair_id] = event
            case PreferenceRetracted():
                self._pairs.pop(event.pair_id, None)
            case CaseFound():
                self._found.setdefault(event.case_id, event)
            case CaseRetired():
                self._retired.setdefault(event.case_id, event)
            case _:
                pass

    def cases(self, rolled_back: Collection[str]) -> list[FailureCase]:
        """All cases, oldest first, the retired ones included.

        Args:
            rolled_back: Names of the versions that a rollout took back.

        """
        found = [
            _of_pair(pair, kind, self._retired.get(pair.pair_id))
            for pair in self._pairs.values()
            if (kind := _kind(pair, rolled_back)) is not None
        ]
        found += [
            _of_red_team(case, self._retired.get(case.case_id)) for case in self._found.values()
        ]
        return sorted(found, key=lambda case: (case.created_at, case.case_id))


def rolled_back(registry: Registry) -> frozenset[str]:
    """Names of the versions that a rollout took back."""
    return frozenset(
        version.record.version
        for version in registry.versions()
        if version.lifecycle is Lifecycle.rejected
    )


def _is_text(pair: PreferencePair) -> bool:
    return not (pair.reasons or pair.chosen_turn or pair.rejected_turn or pair.tools)


def _kind(pair: PreferencePair, rolled_back: Collection[str]) -> CaseKind | None:
    if pair.source is PairSource.synthetic:
        return None  # No person found the answer bad.
    if pair.source is PairSource.correction:
        return "correction"
    return "rollback" if pair.rejected_version in rolled_back else None


def _of_pair(pair: PreferencePair, kind: CaseKind, retired: CaseRetired | None) -> FailureCase:
    return FailureCase(
        case_id=pair.pair_id,
        model=pair.model,
        kind=kind,
        version=pair.rejected_version,
        messages=pair.messages,
        good=pair.chosen,
        bad=pair.rejected,
        causes=pair.causes,
        traces=pair.traces,
        created_at=pair.created_at.isoformat(),
        retired=_retired(retired),
    )


def _of_red_team(found: CaseFound, retired: CaseRetired | None) -> FailureCase:
    return FailureCase(
        case_id=found.case_id,
        model=found.model,
        kind="redteam",
        version=found.version,
        messages=found.messages,
        good=found.good,
        bad=found.bad,
        causes=(found.probe,),
        traces=(),
        created_at=found.at.isoformat(),
        retired=_retired(retired),
    )


def _retired(retired: CaseRetired | None) -> str:
    return f"{retired.actor}: {retired.reason}" if retired else ""
