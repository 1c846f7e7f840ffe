"""Observation of a rollout: samples from Prometheus, engine reports from the agents."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from services.rollout import engine_loss
from services.rollout.agents import Agents
from services.rollout.counters import CounterSeries, breakers_open, copies, newest, spoiled
from services.rollout.errors import EvidenceUnavailable
from services.rollout.evidence import RolloutEvidence, SampleWindow, query, window_s
from services.rollout.intervals import proven
from services.rollout.judge import Judge
from services.rollout.prometheus import Prometheus
from services.rollout.shadow_results import ShadowResults
from services.rollout.state import EngineReport, Observation, RolloutState
from shared.clock import Clock
from shared.observability.events import Unavailable

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RawObservation:
    """Result of one observation. `series` is empty where `error` holds the reason."""

    asked: str
    series: Sequence[CounterSeries]
    zeros_missing: str
    error: str
    agents: dict[str, EngineReport]

    def evidence(self, seen: Observation) -> dict[str, Any]:
        """What a decision that follows rests on, beside the evidence."""
        results = seen.verdict.results if seen.verdict else ()
        return {
            "query": self.asked,
            "error": seen.error,
            **({"copies": list(seen.copies)} if seen.copies else {}),
            "silent_s": round(max(0.0, seen.silent_s), 3),
            "findings": [result.to_dict() for result in results],
            "agents": {
                url: {
                    "ready": report.ready,
                    "generation": report.generation,
                    "candidate_ready": report.candidate_ready,
                    "detail": report.refused or report.detail,
                }
                for url, report in self.agents.items()
            },
        }


class Observer:
    """Asks Prometheus and the agents; what either cannot say is part of the answer."""

    def __init__(
        self,
        prometheus: Prometheus,
        agents: Agents,
        shadow_results: ShadowResults,
        clock: Clock,
        no_data_after_s: float,
    ) -> None:
        self._prometheus = prometheus
        self._agents = agents
        self._shadow_results = shadow_results
        self._clock = clock
        self._no_data_after_s = no_data_after_s

    async def look(self, state: RolloutState, evidence: RolloutEvidence) -> RawObservation:
        """Everything there is to see of a rollout since its evidence was last brought up to date."""
        asked = query(state.rollout_id, window_s(evidence, self._clock.now().timestamp()))
        (series, error), (zeros, other), reports = await asyncio.gather(
            self._series(asked), self._zeros(state), self._agents.reports(state.candidate)
        )
        return RawObservation(asked, series, zeros, error or other, reports)

    def observation(
        self,
        raw: RawObservation,
        state: RolloutState,
        evidence: RolloutEvidence,
        judge: Judge,
        window: SampleWindow,
    ) -> Observation:
        """What `steps.look` decides on; `evidence` has taken the fetched series within `window`."""
        now = self._clock.now()
        since = state.weight_set_at.timestamp() if state.weight_set_at else now.timestamp()
        return Observation(
            at=now,
            agents=raw.agents,
            zeros_missing=raw.zeros_missing,
            verdict=judge.verdict(evidence.judge, error_limit=state.error_limit),
            error=raw.error or spoiled(raw.series, state),
            copies=tuple(copies(raw.series, state)),
            breakers=tuple(breakers_open(raw.series, state)),
            withheld=engine_loss.withheld(evidence, raw.series, state, judge, window),
            # Samples that wait to be judged are no silence.
            silent_s=now.timestamp()
            - max(evidence.sampled_until, newest(raw.series, state), since),
            idle_s=now.timestamp() - max(evidence.candidate_at, since),
            candidate_at=evidence.candidate_at,
            no_data_after_s=state.strategy.no_data_after or self._no_data_after_s,
            candidate=evidence.judge.totals.candidate,
            proven=proven(state.strategy.judge, evidence.judge),
            shadow=self._shadow_results.of(state),
        )

    async def _series(self, asked: str) -> tuple[list[CounterSeries], str]:
        try:
            return await self._prometheus.samples(asked), ""
        except EvidenceUnavailable as error:
            log.warning(Unavailable.prometheus, during="evidence", error=str(error))
            return [], str(error)

    async def _zeros(self, state: RolloutState) -> tuple[str, str]:
        """What the first weight waits for, and an error; asked only before the first weight."""
        if state.weight > 0:
            return "", ""
        try:
            return await self._prometheus.zeros_missing(state.rollout_id), ""
        except EvidenceUnavailable as error:
            return "the routers' zeros could not be looked up", str(error)
