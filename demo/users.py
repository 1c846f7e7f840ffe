"""Simulated users at the public doors: the official openai client, and plain HTTP for feedback.

They chat at a set pace, some of them say what they thought of the answer (late, now and then
twice or in contradiction), others vote on blind comparisons. What they got is in their tally.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import openai

from demo.tally import Tally
from demo.tastes import Person, Population
from deploy.starter import corpus
from deploy.starter.model import REPLY_TOKENS, TEMPERATURE
from shared.http.client import request_within

MODEL = "assistant"
CALL_TIMEOUT_S = 30.0
PATIENCE_S = 30.0
"""Longest a client keeps sending what was not taken."""
RETRY_PAUSE_S = 0.5
"""Between two tries where the answer names no time (Retry-After)."""
AWAY = (429, 502, 503, 504)
STREAMED_SHARE = 0.1
LATE_SHARE = 0.1
"""Share of feedback that comes seconds after the answer instead of at once."""
LATEST_S = 12.0
PANEL_PART = 4
"""Every fourth person is a rater of the judge's panel and does nothing else."""
RECENT = 600


@dataclass(frozen=True)
class ChatReply:
    """One answer as a client saw it."""

    trace_id: str
    version: str
    arm: str
    text: str


@dataclass(frozen=True)
class Opinion:
    """What a person sends about a reply: a type, its value, and perhaps an afterthought."""

    kind: str
    value: Any = None
    revised: Any = None
    second: str = ""
    withdrawn: bool = False


@dataclass
class UserPaces:
    """How busy the users are. Changed while they run."""

    chats_per_s: float = 0.0
    votes_per_s: float = 0.0
    panel_votes_per_s: float = 0.0
    feedback_share: float = 0.30

    def paces(self) -> dict[str, float]:
        """Actions a second by kind."""
        return {
            "chat": self.chats_per_s,
            "vote": self.votes_per_s,
            "panel": self.panel_votes_per_s,
        }


@dataclass(frozen=True)
class Vote:
    """A vote with its texts, as the voter saw them."""

    prompt: str
    left: str
    right: str
    choice: str
    panel: str


@dataclass
class RecentEvents:
    """What the live table shows beside the tally."""

    liked: deque[tuple[str, bool]] = field(default_factory=lambda: deque(maxlen=RECENT))
    votes: list[Vote] = field(default_factory=list)
    problems: deque[str] = field(default_factory=lambda: deque(maxlen=20))


class SimulatedUsers:
    """The people of one population, acting through one HTTP session and one openai client."""

    def __init__(
        self,
        population: Population,
        *,
        router_url: str,
        feedback_url: str,
        seed: int,
        concurrency: int = 16,
        patience_s: float = PATIENCE_S,
    ) -> None:
        people = population.people
        self.chatters = [who for place, who in enumerate(people) if place % PANEL_PART]
        self.panel = people[::PANEL_PART]
        self.plan = UserPaces()
        self.tally = Tally()
        self.seen = RecentEvents()
        self._rng = random.Random(f"users {seed}")
        self._prompts = {name: corpus.prompts_of(name) for name in ("serve", "judge")}
        self._feedback_url = feedback_url.rstrip("/")
        self._patience_s = patience_s
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        self._client = openai.AsyncOpenAI(
            base_url=f"{router_url.rstrip('/')}/v1",
            api_key="local",
            max_retries=0,
            timeout=CALL_TIMEOUT_S,
        )
        self._http = aiohttp.ClientSession()

    async def close(self) -> None:
        """Drops what is under way and closes the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()
        await self._http.close()

    async def run(self, stop: asyncio.Event) -> None:
        """Acts at the plan's pace until `stop`; a call in the way delays, never piles up."""
        due = dict.fromkeys(self.plan.paces(), 0.0)
        loop = asyncio.get_running_loop()
        last = loop.time()
        while not stop.is_set():
            await asyncio.sleep(0.02)
            now = loop.time()
            passed, last = min(now - last, 0.5), now
            for kind, pace in self.plan.paces().items():
                due[kind] += passed * pace
                for _ in range(int(due[kind])):
                    await self._slots.acquire()
                    self._spawn(self._act(kind))
                due[kind] %= 1.0

    async def settle(self, timeout_s: float) -> None:
        """Waits until everything begun has ended, late feedback too.

        Raises:
            TimeoutError: something is still under way after `timeout_s`.

        """
        async with asyncio.timeout(timeout_s):
            while self._tasks:
                await asyncio.wait(set(self._tasks))

    async def ask(
        self, prompt: corpus.Prompt, person: Person, *, version: str = "", stream: bool = False
    ) -> ChatReply | None:
        """One chat call; None where the router gave no answer. The tally has it either way."""
        headers = {"x-ratchet-purpose": "evaluation"} if version else {}
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=version or MODEL,
                messages=[{"role": "user", "content": prompt.text}],
                max_tokens=REPLY_TOKENS,
                temperature=TEMPERATURE,
                user=person.name,
                metadata={"category": prompt.category},
                stream=stream,
                extra_headers=headers,
            )
            parsed: Any = raw.parse()
            if stream:
                pieces = [
                    chunk.choices[0].delta.content or "" async for chunk in parsed if chunk.choices
                ]
                text = "".join(pieces)
            else:
                text = parsed.choices[0].message.content or ""
        except openai.APIStatusError as error:
            answered = error.response.headers.get("x-ratchet-version", "")
            self.tally.answered(answered, str(error.status_code))
            self.seen.problems.append(f"chat: {error.status_code} {error.message[:120]}")
            return None
        except (openai.APIError, aiohttp.ClientError) as error:
            self.tally.lost()
            self.seen.problems.append(f"chat: {type(error).__name__}: {error}"[:160])
            return None
        answered = raw.headers["x-ratchet-version"]
        self.tally.answered(answered)
        return ChatReply(
            trace_id=raw.headers["x-ratchet-trace-id"],
            version=answered,
            arm=raw.headers.get("x-ratchet-arm", ""),
            text=text.strip(),
        )

    async def _act(self, kind: str) -> None:
        try:
            if kind == "chat":
                await self._chat()
            else:
                await self._vote("judge" if kind == "panel" else "")
        finally:
            self._slots.release()

    async def _chat(self) -> None:
        rng = self._rng
        person, prompt = rng.choice(self.chatters), rng.choice(self._prompts["serve"])
        reply = await self.ask(prompt, person, stream=rng.random() < STREAMED_SHARE)
        if reply is not None and rng.random() < self.plan.feedback_share:
            self._spawn(self._tell(person, prompt, reply))

    async def _tell(self, person: Person, prompt: corpus.Prompt, reply: ChatReply) -> None:
        rng = self._rng
        opinion = form_opinion(person, prompt, reply.text, rng)
        if opinion.kind in ("thumbs_up", "thumbs_down"):
            self.seen.liked.append((reply.version, opinion.kind == "thumbs_up"))
        if rng.random() < LATE_SHARE:
            await asyncio.sleep(rng.uniform(1.0, LATEST_S))
        body = {
            "trace_id": reply.trace_id,
            "type": opinion.kind,
            "value": opinion.value,
            "feedback_id": _identity(rng),
            "user_id": person.name,
            "metadata": {"category": prompt.category},
        }
        if not await self._submit(body):
            return
        self.tally.gave(reply.version, opinion.kind)
        if rng.random() < 0.03:
            await self._submit(body)  # A client that never saw its 202 sends again.
        if opinion.revised is not None:
            await self._submit({**body, "value": opinion.revised, "revision": 1})
        if opinion.withdrawn:
            await self._withdraw(body)
        if opinion.second:
            other = {**body, "type": opinion.second, "feedback_id": _identity(rng)}
            if await self._submit(other):
                self.tally.gave(reply.version, opinion.second)

    async def _vote(self, panel: Literal["", "judge"]) -> None:
        rng = self._rng
        person = rng.choice(self.panel if panel else self.chatters)
        prompt = rng.choice(self._prompts["judge" if panel else "serve"])
        opened = await self._post(
            "/v1/comparisons",
            again=False,  # A second try would ask the router twice more.
            body={
                "model": MODEL,
                "messages": [{"role": "user", "content": prompt.text}],
                "user_id": person.name,
                "metadata": {"category": prompt.category},
                "panel": panel,
                "max_tokens": REPLY_TOKENS,
                "temperature": TEMPERATURE,
            },
        )
        if opened is None:
            # Its two calls to the router may have been answered all the same.
            self.tally.lost()
            return
        left, right = opened["left"]["text"], opened["right"]["text"]
        choice = person.compare(prompt.text, left, right, rng)
        path = f"/v1/comparisons/{opened['comparison_id']}/vote"
        voted = await self._post(path, {"choice": choice, "user_id": person.name})
        if voted is None:
            self.tally.lost()
            return
        versions = voted["versions"]
        self.tally.answered(versions["left"])
        self.tally.answered(versions["right"])
        self.tally.voted(versions["left"], versions["right"], choice)
        self.seen.votes.append(Vote(prompt.text, left, right, choice, panel))

    async def _submit(self, body: dict[str, Any]) -> bool:
        return await self._post("/v1/feedback", body) is not None

    async def _withdraw(self, body: dict[str, Any]) -> None:
        query = {name: body[name] for name in ("trace_id", "type", "user_id")}
        await self._call(
            "DELETE", f"/v1/feedback/{body['feedback_id']}", params={**query, "revision": "2"}
        )

    async def _post(
        self, path: str, body: dict[str, Any], *, again: bool = True
    ) -> dict[str, Any] | None:
        return await self._call("POST", path, again=again, json=body)

    async def _call(
        self, method: str, path: str, *, again: bool = True, **arguments: Any
    ) -> dict[str, Any] | None:
        """A call, tried again while the service is unavailable; None where it never worked."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._patience_s
        while True:
            pause_s = RETRY_PAUSE_S
            try:
                async with request_within(
                    CALL_TIMEOUT_S, self._http, method, self._feedback_url + path, **arguments
                ) as answer:
                    if answer.status < 300:
                        return await answer.json()
                    problem = f"{path}: {answer.status} {(await answer.text())[:160]}"
                    if answer.status not in AWAY:
                        break
                    pause_s = float(answer.headers.get("retry-after", RETRY_PAUSE_S))
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = f"{path}: {type(error).__name__} {error}"
            if not again or loop.time() + pause_s > give_up:
                break
            await asyncio.sleep(pause_s)
        self.seen.problems.append(problem)
        return None

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.seen.problems.append(f"user: {type(error).__name__}: {error}"[:200])
            self.tally.lost()


def form_opinion(person: Person, prompt: corpus.Prompt, text: str, rng: random.Random) -> Opinion:
    """What a person says of an answer: mostly thumbs, some ratings, corrections and comments."""
    draw = rng.random()
    if draw < 0.15:
        revised = person.rates(prompt.text, text, rng) if rng.random() < 0.1 else None
        return Opinion("rating", person.rates(prompt.text, text, rng), revised=revised)
    liked = person.likes(prompt.text, text, rng)
    if draw < 0.18:
        return Opinion("comment", "I liked that." if liked else "Not what I hoped for.")
    if draw < 0.28 and not liked and not person.careless:
        return Opinion("text_correction", {"corrected": better(person, prompt, rng)})
    kind, opposite = ("thumbs_up", "thumbs_down") if liked else ("thumbs_down", "thumbs_up")
    second = opposite if rng.random() < 0.02 else ""
    return Opinion(kind, second=second, withdrawn=not second and rng.random() < 0.02)


def better(person: Person, prompt: corpus.Prompt, rng: random.Random) -> str:
    """What the person would have written: the best of a few answers anyone at the desk gives."""
    tries = [corpus.answer(prompt, corpus.SFT_MIX, rng) for _ in range(6)]
    return max(tries, key=lambda text: person.taste.utility(prompt.text, text))


def _identity(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
