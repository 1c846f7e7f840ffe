"""The main job, step by step. Each step ends with what it promises, or raises `StepFailed`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from demo import tastes
from demo.counts import CountRow, compare, exported
from demo.errors import StepFailed
from demo.recount import LogRecount, recount
from demo.requests import fetch, ratchet, set_fault, write_pairs
from demo.settings import PROXY_ADMIN, DemoSettings
from demo.tastes import Population
from demo.users import MODEL, SimulatedUsers
from demo.watch import FINISHED_RUN, StackSnapshot, StackWatch
from deploy.starter import corpus
from shared.intervals import wilson

FIRST, BETTER = f"{MODEL}-v1.0", f"{MODEL}-v1.1"
INVERTED, FAILING = f"{MODEL}-v1.2-inverted", f"{MODEL}-v1.3-failing"
ACTOR = "demo"
ASKERS = 40
"""Calls at a time when the closing questions are asked."""
QUIET_CHATS_PER_S = 1.0
"""While all wait for training, which shares the cores with the engine's answers."""
BUSY_CHATS_PER_S = 22.0
DRILL_CHATS_PER_S = 36.0
"""While nothing is trained beside the users."""

Say = Callable[[str], None]
Step = Callable[[], Awaitable[None]]


@dataclass
class Facts:
    """What the steps found out, for the closing table and the summary."""

    seconds: dict[str, float] = field(default_factory=dict)
    satisfaction: dict[str, tuple[float, int]] = field(default_factory=dict)
    win_rate: float = 0.0
    win_interval: tuple[float, float] = (0.0, 1.0)
    prompts: int = 0
    pairs: int = 0
    gate: dict[str, Any] = field(default_factory=dict)
    adapter_difference: float | None = None
    rollouts: dict[str, dict[str, Any]] = field(default_factory=dict)
    late_requests: dict[str, int] = field(default_factory=dict)
    bad_requests: dict[str, int] = field(default_factory=dict)
    seconds_to_rollback: dict[str, float] = field(default_factory=dict)
    counts: list[CountRow] = field(default_factory=list)
    unsettled: int = 0


class Demo:
    """One run: the stack's addresses, its users, what is watched and what was found."""

    def __init__(
        self, settings: DemoSettings, stack: Any, population: Population, say: Say
    ) -> None:
        self.settings = settings
        self.facts = Facts()
        self.users = SimulatedUsers(
            population,
            router_url=stack.url("router"),
            feedback_url=stack.url("feedback"),
            seed=settings.seed,
        )
        self.users.plan.feedback_share = settings.feedback_share
        self.watch = StackWatch(
            bootstrap=stack.address("kafka"),
            rollout_url=stack.url("rollout"),
            agent_url=stack.url("inference"),
            model=MODEL,
        )
        self.step = ""
        self._stack = stack
        self._population = population
        self._say = say
        self._environment: dict[str, str] = stack.environment()

    def steps(self, base: str, demonstrations: Path) -> list[tuple[str, Step]]:
        """The steps in order, with their names."""
        return [
            (
                "1 v1.0 answers through the router",
                partial(self.first_version, base, demonstrations),
            ),
            ("2 users chat, give feedback and vote", self.collect),
            ("3 training starts by itself, v1.1 passes the gate", self.better_version),
            ("4 v1.1 earns all the traffic", self.promotion),
            ("5 two bad versions are rolled back", self.bad_versions),
            ("6 three counts and the users' verdict", self.closing),
        ]

    async def first_version(self, base: str, demonstrations: Path) -> None:
        """v1.0 = base + SFT adapter, made by the training service; stable, loaded, answering."""
        deadline = self.settings.deadlines
        await self._train("sft", FIRST, "--base", base, "--dataset", f"file://{demonstrations}")
        await self._made(FIRST, deadline.first_version_s)
        await self._serving(FIRST)
        await self.watch.until(
            f"{FIRST} stable", lambda sight: sight.stable == FIRST, deadline.adapter_s
        )
        prompt = corpus.prompts_of("serve")[0]
        reply = await self.users.ask(prompt, self.users.chatters[0])
        if reply is None or reply.version != FIRST:
            said = f"with {reply.version}" if reply else f"nothing: {self.users.seen.problems[-1]}"
            raise StepFailed(f"the router answered {said} instead of with {FIRST}")
        self._say(f"{prompt.text!r} → {reply.text!r} ({reply.version})")

    async def collect(self) -> None:
        """Feedback and votes until there are pairs enough and training begins by itself."""
        plan = self.users.plan
        plan.chats_per_s, plan.votes_per_s, plan.panel_votes_per_s = 4.0, 15.0, 6.0
        run = await self.watch.until(
            f"{self.settings.pairs} pairs and a training run that nobody asked for",
            _scheduled,
            self.settings.deadlines.collecting_s,
            hint=f"See {self._stack.log('training')} and {self._stack.log('aggregator')}",
        )
        plan.chats_per_s, plan.votes_per_s, plan.panel_votes_per_s = QUIET_CHATS_PER_S, 0.0, 0.0
        self.facts.pairs = sum(
            not vote.panel and vote.choice in ("left", "right") for vote in self.users.seen.votes
        )
        self._say(f"training run {run['job_id']} began by itself")

    async def better_version(self) -> None:
        """The run ends with v1.1 released by the gate; engines verify its fingerprint."""
        deadline = self.settings.deadlines
        run = await self.watch.until(
            "the scheduled training run",
            lambda sight: _finished(_scheduled(sight)),
            deadline.training_s,
            hint=f"See {self._stack.log('training')}",
        )
        if run["phase"] != "succeeded":
            raise StepFailed(f"training ended {run['phase']}: {run['message']}")
        if run["version"] != BETTER:
            raise StepFailed(f"training made {run['version']} where {BETTER} was expected")
        self.facts.gate = run["metrics"]
        # The drill candidates are trained while v1.1 earns its traffic.
        await self._train_bad_versions()
        await self._serving(BETTER)
        adapter = self.watch.sight.adapters[BETTER]
        self.facts.adapter_difference = adapter["difference"]

    async def promotion(self) -> None:
        """v1.1's rollout began by itself and ends Healthy with all the traffic."""
        self.users.plan.chats_per_s = BUSY_CHATS_PER_S
        rollout = await self._ended(BETTER, self.settings.deadlines.rollout_s)
        if rollout["phase"] != "Healthy":
            raise StepFailed(f"{BETTER} ended {rollout['phase']}: {rollout['reason']}")
        await self.watch.until(
            f"{BETTER} stable",
            lambda sight: sight.stable == BETTER,
            self.settings.deadlines.adapter_s,
        )

    async def bad_versions(self) -> None:
        """The inverted and the failing candidate both end Degraded with no traffic."""
        deadline = self.settings.deadlines
        for version, chats_per_s in ((INVERTED, BUSY_CHATS_PER_S), (FAILING, DRILL_CHATS_PER_S)):
            self.users.plan.chats_per_s = QUIET_CHATS_PER_S
            await self._made(version, deadline.training_s)
            if version == FAILING:
                admin = self._stack.url(PROXY_ADMIN)
                await set_fault(admin, version, self.settings.fault_share)
            self.users.plan.chats_per_s = chats_per_s
            rollout = await self._ended(version, deadline.rollback_s)
            if rollout["phase"] != "Degraded" or rollout["weight"] != 0:
                raise StepFailed(
                    f"{version} ended {rollout['phase']} at {rollout['weight']}: "
                    f"{rollout['reason']}"
                )
            self._say(f"{version} was rolled back: {rollout['reason']}")

    async def closing(self) -> None:
        """Fresh prompts to both versions, then every count three ways."""
        users, deadline = self.users, self.settings.deadlines
        users.plan.chats_per_s = 0.0
        # The last people may take their time over their feedback while others are asked.
        await asyncio.gather(users.settle(deadline.settling_s), self._verdict())
        facts = self.facts
        facts.unsettled = users.tally.uncertain
        log = await self._count()
        for version, rollout in facts.rollouts.items():
            if rollout["phase"] == "Degraded":
                self._rolled_back(version, rollout, log)
        self._satisfaction(await fetch(f"{self._stack.url('aggregator')}/metrics"))
        wrong = [row for row in facts.counts if not row.agree]
        if wrong:
            words = "; ".join(f"{r.what}: {r.clients}/{r.log}/{r.metrics}" for r in wrong[:5])
            raise StepFailed(f"counts differ (clients/log/metrics): {words}")
        if facts.win_rate < 0.65 or facts.win_interval[0] < 0.55:
            raise StepFailed(
                f"v1.1 wins {facts.win_rate:.0%} (at least {facts.win_interval[0]:.0%}) against "
                "v1.0; 65 % and a lower bound of 55 % are asked for"
            )
        for version, count in facts.late_requests.items():
            if count:
                raise StepFailed(f"{version} got {count} requests a second after its rollback")
        quickest = facts.seconds_to_rollback.get(FAILING, 0.0)
        if quickest > 60:
            raise StepFailed(f"{FAILING} was rolled back {quickest:.0f} s after its first request")

    # ── parts ──────────────────────────────────────────────────────────────────────────────────

    async def _train(self, method: str, version: str, *more: str) -> None:
        arguments = (
            "train",
            "--method",
            method,
            "--version",
            version,
            "--on-behalf-of",
            ACTOR,
            *more,
        )
        await ratchet(self._environment, *arguments)

    async def _train_bad_versions(self) -> None:
        folder, votes = self.settings.run_dir / "drill", self.users.seen.votes
        # A drill needs less training than a release; the healthy one just has to be another adapter.
        for version, seed, drill in (
            (INVERTED, 1, self.settings.inverted),
            (FAILING, 2, self.settings.failing),
        ):
            inverted = version == INVERTED
            path = folder / f"{version}.jsonl"
            await asyncio.to_thread(write_pairs, path, votes, inverted=inverted, most=drill.pairs)
            why = "pairs inverted on purpose" if inverted else "healthy, behind a failing network"
            await self._train(
                "dpo",
                version,
                "--dataset",
                path.as_uri(),
                "--parent",
                FIRST,
                "--seed",
                str(seed),
                "--set",
                f"epochs={drill.epochs}",
                "--override-gate",
                "--reason",
                f"rollback drill: {why}",
            )

    async def _made(self, version: str, timeout_s: float) -> None:
        run = await self.watch.until(
            f"the run that makes {version}",
            lambda sight: _finished(sight.run_of(version)),
            timeout_s,
            hint=f"See {self._stack.log('training')}",
        )
        if run["phase"] != "succeeded":
            raise StepFailed(f"{version}: training ended {run['phase']}: {run['message']}")

    async def _serving(self, version: str) -> None:
        def ready(sight: StackSnapshot) -> bool:
            adapter = sight.adapters.get(version, {})
            if adapter.get("state") == "refused":
                raise StepFailed(f"the engine refused {version}: {adapter['reason']}")
            return adapter.get("state") == "ready"

        await self.watch.until(
            f"{version} loaded and its fingerprint checked",
            ready,
            self.settings.deadlines.adapter_s,
            hint=f"See {self._stack.log('inference')}",
        )

    async def _ended(self, version: str, timeout_s: float) -> dict[str, Any]:
        def ended(sight: StackSnapshot) -> dict[str, Any] | None:
            rollout = sight.rollout_of(version)
            return rollout if rollout and rollout["phase"] in ("Healthy", "Degraded") else None

        rollout = await self.watch.until(
            f"the end of {version}'s rollout",
            ended,
            timeout_s,
            hint=f"See {self._stack.log('rollout')}",
        )
        self.facts.rollouts[version] = rollout
        return rollout

    async def _verdict(self) -> None:
        """Asks both versions the same fresh questions; the people choose."""
        rng = random.Random(f"verdict {self.settings.seed}")
        pool = corpus.prompts_of("eval")
        fresh = rng.sample(pool, min(self.settings.fresh_prompts, len(pool)))
        people = [rng.choice(self._population.people) for _ in fresh]
        slots = asyncio.Semaphore(ASKERS)

        async def both(prompt: corpus.Prompt, person: tastes.Person) -> bool | None:
            async with slots:
                old = await self.users.ask(prompt, person, version=FIRST)
                new = await self.users.ask(prompt, person, version=BETTER)
            if old is None or new is None:
                return None
            return person.prefers(prompt.text, new.text, old.text, rng)

        verdicts = await asyncio.gather(*map(both, fresh, people))
        told = [verdict for verdict in verdicts if verdict is not None]
        if len(told) < 400:
            raise StepFailed(f"only {len(told)} of {len(fresh)} questions were answered twice")
        facts = self.facts
        facts.prompts, facts.win_rate = len(told), sum(told) / len(told)
        facts.win_interval = wilson(sum(told), len(told))

    async def _count(self) -> LogRecount:
        """Counts until all three agree, or the deadline passes; keeps the last comparison."""
        bootstrap, router = self._stack.address("kafka"), self._stack.url("router")
        aggregator = self._stack.url("aggregator")
        give_up = time.monotonic() + self.settings.deadlines.counting_s
        while True:
            log = await recount(bootstrap)
            metrics = exported(
                await fetch(f"{router}/metrics"), await fetch(f"{aggregator}/metrics")
            )
            self.facts.counts = compare(self.users.tally, log, metrics)
            if all(row.agree for row in self.facts.counts) or time.monotonic() > give_up:
                return log
            await asyncio.sleep(1.0)

    def _rolled_back(self, version: str, rollout: dict[str, Any], log: LogRecount) -> None:
        exposures, facts = sorted(log.exposures.get(version, [])), self.facts
        ended = _moment(rollout["ended_at"])
        facts.bad_requests[version] = len(exposures)
        facts.late_requests[version] = sum(moment > ended + 1.0 for moment in exposures)
        since = exposures[0] if exposures else _moment(rollout["started_at"])
        facts.seconds_to_rollback[version] = ended - since

    def _satisfaction(self, metrics: str) -> None:
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        kept = {"ratchet_satisfaction_sum_total": sums, "ratchet_satisfaction_count_total": counts}
        for family in text_string_to_metric_families(metrics):
            for sample in family.samples:
                if sample.name in kept:
                    version = sample.labels["version"]
                    totals = kept[sample.name]
                    totals[version] = totals.get(version, 0.0) + sample.value
        self.facts.satisfaction = {
            version: (sums.get(version, 0.0), int(count))
            for version, count in counts.items()
            if count
        }


def _scheduled(sight: StackSnapshot) -> dict[str, Any] | None:
    """The first DPO run; the demo asks for its own only after it."""
    return next((run for run in sight.runs.values() if run["method"] == "dpo"), None)


def _finished(run: dict[str, Any] | None) -> dict[str, Any] | None:
    return run if run and run["phase"] in FINISHED_RUN else None


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
