"""Clients of replicated routers and feedback services: they try nothing twice and count exactly.

A replica that is out of service gets no new call, as behind a Service of Kubernetes; what it was
asked before it still has to answer.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from shared.http.client import request_within
from tests.support.upgrade.replicas import FEEDBACKS, MODEL, ROUTERS

Given = dict[str, Any]
CALL_S = 30.0
AT_ONCE = 8
PAUSE_S = 0.2
"""Between two handfuls of actions of a load, so that it leaves room for the services."""
CORRECTED = "Parcel {0} left depot {0} at dawn, the driver has it on board, and by noon it is in your letter box."
"""Longer than the stub engine's answer: training leaves shorter ones out."""
KINDS = {"thumbs_up": 6, "thumbs_down": 2, "rating": 2, "comment": 1, "text_correction": 2}
ACTIONS = {
    "chat": 20,
    "at_once": 45,
    "twice": 5,
    "edited": 5,
    "withdrawn": 5,
    "early": 4,
    "late": 8,
    "vote": 8,
}


@dataclass
class UpgradeTally:
    """What clients were promised, each answer and feedback once; and what they still may do.

    `answers` by version, `feedback` by "version type", `votes` by choice; `unrated` are traces with
    their versions, `rated` are bodies of feedback that may be withdrawn.
    """

    answers: Counter[str] = field(default_factory=Counter)
    feedback: Counter[str] = field(default_factory=Counter)
    votes: Counter[str] = field(default_factory=Counter)
    withdrawn: int = 0
    unrated: list[tuple[str, str]] = field(default_factory=list)
    rated: list[Given] = field(default_factory=list)

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self:
        """The tally of its JSON."""
        counts = {name: Counter(stored[name]) for name in ("answers", "feedback", "votes")}
        unrated = [(trace, version) for trace, version in stored["unrated"]]
        return cls(**counts, withdrawn=stored["withdrawn"], unrated=unrated, rated=stored["rated"])


class UpgradeUsers:
    """Users with one API key. `problems` are calls that were not answered with success."""

    def __init__(self, urls: dict[str, str], key: str, *, seed: int, tally: UpgradeTally) -> None:
        self.tally = tally
        self.problems: list[str] = []
        self.out: set[str] = set()
        """Names of replicas that get no new call."""
        self._urls = urls
        self._key = key
        self._rng = random.Random(seed)
        self._run = f"{seed:x}-{uuid.uuid4().hex[:8]}"
        self._numbers = 0
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._does: dict[str, Callable[[], Awaitable[None]]] = {
            "chat": self._chat,
            "at_once": self._at_once,
            "twice": self._twice,
            "edited": self._edited,
            "withdrawn": self._withdrawn,
            "early": self._early,
            "late": self._late,
            "vote": self._vote,
        }

    async def __aenter__(self) -> Self:
        headers = {"authorization": f"Bearer {self._key}"}
        self._session = aiohttp.ClientSession(headers=headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def act(self, actions: int, *, kinds: tuple[str, ...] = tuple(ACTIONS)) -> None:
        """Do so many things of these kinds, some at a time; returns when all have ended."""
        drawn = self._rng.choices(kinds, [ACTIONS[kind] for kind in kinds], k=actions)
        await asyncio.gather(*(self._do(kind) for kind in drawn))

    async def keep_acting(self, stop: asyncio.Event) -> None:
        """Act until `stop`."""
        while not stop.is_set():
            await self.act(AT_ONCE)
            await asyncio.sleep(PAUSE_S)

    async def give_early(self, count: int) -> list[str]:
        """Feedback on answers that are still to come: their trace ids."""
        traces = [self._name("early") for _ in range(count)]
        for trace in traces:
            await self._give(self._feedback(trace))
        return traces

    async def ask_as(self, trace: str) -> None:
        """The answer under a client's own trace id; the feedback that came first now counts."""
        if (answered := await self._ask(trace)) is not None:
            self.tally.feedback[f"{answered[1]} thumbs_up"] += 1

    def feedback_of(self, count: int) -> list[Given]:
        """Feedback for the intake topic on answers that have none; it is counted as given."""
        found: list[Given] = []
        for _ in range(count):
            trace, version = self.tally.unrated.pop()
            found.append(body := self._feedback(trace))
            self._count(version, body)
        return found

    async def _do(self, kind: str) -> None:
        async with self._slots:
            try:
                await self._does[kind]()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.problems.append(f"{kind}: {type(error).__name__}: {error}")

    async def _chat(self) -> None:
        if (answered := await self._ask()) is not None:
            self.tally.unrated.append(answered)

    async def _at_once(self) -> None:
        if (answered := await self._ask()) is not None:
            await self._rate(*answered)

    async def _late(self) -> None:
        """Feedback on an answer of any age, also of before the upgrade."""
        if self.tally.unrated:
            place = self._rng.randrange(len(self.tally.unrated))
            await self._rate(*self.tally.unrated.pop(place))

    async def _twice(self) -> None:
        if (answered := await self._ask()) is not None and (body := await self._rate(*answered)):
            await self._give(body)

    async def _edited(self) -> None:
        if (answered := await self._ask()) is not None:
            trace, version = answered
            body = {**self._feedback(trace), "type": "rating", "value": 2}
            if await self._give(body):
                self._count(version, body)
                await self._give({**body, "value": 5, "revision": 1})

    async def _withdrawn(self) -> None:
        """Take back some feedback given earlier, also before the upgrade."""
        if not self.tally.rated:
            return
        body = self.tally.rated.pop(self._rng.randrange(len(self.tally.rated)))
        asked = {name: body[name] for name in ("trace_id", "type", "user_id")}
        url = f"{self._one(FEEDBACKS)}/v1/feedback/{body['feedback_id']}"
        if await self._call("DELETE", url, params={**asked, "revision": "2"}):
            self.tally.withdrawn += 1

    async def _early(self) -> None:
        (trace,) = await self.give_early(1)
        await self.ask_as(trace)

    async def _vote(self) -> None:
        self._numbers += 1
        user = f"u{self._rng.randrange(1000)}"
        question = [{"role": "user", "content": f"Where is parcel {self._numbers}?"}]
        body = {"model": MODEL, "messages": question, "user_id": user}
        place = self._one(FEEDBACKS, behind=ROUTERS)
        opened = await self._call("POST", f"{place}/v1/comparisons", json=body)
        if not opened:
            return
        choice = self._rng.choice(("left", "right", "tie"))
        path = f"/v1/comparisons/{opened['comparison_id']}/vote"
        vote = {"choice": choice, "user_id": user}
        voted = await self._call("POST", f"{self._one(FEEDBACKS)}{path}", json=vote)
        for version in voted.get("versions", {}).values():
            self.tally.answers[version] += 1
        if voted:
            self.tally.votes[choice] += 1

    async def _ask(self, trace: str = "") -> tuple[str, str] | None:
        """A chat completion: its trace and version."""
        self._numbers += 1
        body = {
            "model": MODEL,
            "user": f"u{self._rng.randrange(1000)}",
            "messages": [{"role": "user", "content": f"Where is parcel {self._numbers}?"}],
            "stream": self._rng.random() < 0.1,
        }
        headers = {"x-ratchet-trace-id": trace} if trace else {}
        url = f"{self._one(ROUTERS)}/v1/chat/completions"
        async with request_within(
            CALL_S, self._session, "POST", url, json=body, headers=headers
        ) as answer:
            text = await answer.text()
            if answer.status != 200:
                self.problems.append(f"{url}: {answer.status} {text[:200]}")
                return None
            found = answer.headers["x-ratchet-trace-id"], answer.headers["x-ratchet-version"]
        self.tally.answers[found[1]] += 1
        return found

    async def _rate(self, trace: str, version: str) -> Given | None:
        kind = self._rng.choices(list(KINDS), list(KINDS.values()))[0]
        body: Given = {**self._feedback(trace), "type": kind}
        match kind:
            case "rating":
                body["value"] = self._rng.randint(1, 5)
            case "comment":
                body["value"] = f"Remark {self._numbers}"
            case "text_correction":
                body["value"] = {"corrected": CORRECTED.format(self._numbers)}
            case _:
                pass
        if not await self._give(body):
            return None
        self._count(version, body)
        if kind in ("thumbs_up", "thumbs_down"):
            self.tally.rated.append(body)
        return body

    def _feedback(self, trace: str) -> Given:
        self._numbers += 1
        name = self._name("f")
        return {"feedback_id": name, "trace_id": trace, "type": "thumbs_up", "user_id": f"u-{name}"}

    def _count(self, version: str, body: Given) -> None:
        self.tally.feedback[f"{version} {body['type']}"] += 1

    async def _give(self, body: Given) -> bool:
        return bool(await self._call("POST", f"{self._one(FEEDBACKS)}/v1/feedback", json=body))

    async def _call(self, method: str, url: str, **arguments: Any) -> dict[str, Any]:
        """The answer's JSON; empty, and a problem noted, where it is no success."""
        async with request_within(CALL_S, self._session, method, url, **arguments) as answer:
            text = await answer.text()
            if answer.status < 300:
                return await answer.json()
        self.problems.append(f"{method} {url}: {answer.status} {text[:200]}")
        return {}

    def _one(self, names: tuple[str, ...], *, behind: tuple[str, ...] = ()) -> str:
        """URL of a replica in service, and of those `behind` (each before its own), too."""
        places = [
            name
            for at, name in enumerate(names)
            if name not in self.out and not (behind and behind[at] in self.out)
        ]
        return self._urls[self._rng.choice(places)]

    def _name(self, kind: str) -> str:
        self._numbers += 1
        return f"{kind}-{self._run}-{self._numbers}"
