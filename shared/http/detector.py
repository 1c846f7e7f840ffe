"""Detector of personal data: asks an analyzer that speaks Presidio's API (`POST /analyze`) about texts.

A request has a list of texts, a language, the entities that are looked for and a least score; the answer
has a list for each text, of `{entity_type, start, end, score}` in code points.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import ceil
from time import perf_counter
from typing import Any

import aiohttp
import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import BaseModel, TypeAdapter, ValidationError

from shared.credentials import CredentialsUnreadable
from shared.detector_settings import DetectorSettings
from shared.http.answers import read_json
from shared.http.client import request_within
from shared.observability.events import Unavailable
from shared.redaction.detection import DetectedSpan

log = structlog.get_logger(__name__)

PATH = "/analyze"
HTTP_OK = 200
MAX_TEXTS = 32
MAX_CHARACTERS = 32_000
"""Texts of one request, and characters of theirs where it is more than one text."""
MAX_ANSWER_BYTES = 8 * 1024 * 1024
MAX_OPEN = 32_768
"""Texts without an answer yet; more are not checked."""
REMEMBERED = 16_384
"""Texts whose findings are kept, by hash: a conversation comes again with each of its turns."""
FAILURES = 3
PAUSE_S = 5.0
"""After so many failures in a row nothing is asked for so long, so that nothing waits in vain."""
LOG_EVERY_S = 10.0
ANSWERED, TIMEOUT, FAILED, BUSY, PAUSED = OUTCOMES = (
    "answered",
    "timeout",
    "failed",
    "busy",
    "paused",
)


class _Analyzed(BaseModel):
    entity_type: str
    start: int
    end: int
    score: float


_ANSWER: TypeAdapter[list[list[_Analyzed]]] = TypeAdapter(list[list[_Analyzed]])
Findings = tuple[DetectedSpan, ...]
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class DetectorPolicy:
    """How the analyzer is asked, and what follows where it does not answer."""

    url: str
    languages: tuple[str, ...] = ("en",)
    """Each text is asked about in each; what any finds is redacted."""
    entities: tuple[str, ...] = ("PERSON", "LOCATION")
    """What is looked for; empty: everything that the analyzer knows."""
    allow: tuple[str, ...] = ()
    """Words that are never personal, such as a product's name."""
    score: float = 0.5
    timeout_s: float = 5.0
    max_running: int = 8
    fail_open: bool = False

    @classmethod
    def of(cls, settings: DetectorSettings) -> DetectorPolicy:
        """The policy of a service's settings."""
        return cls(
            url=settings.detector_url,
            languages=settings.detector_languages,
            entities=settings.detector_entities,
            allow=settings.detector_allow,
            score=settings.detector_score,
            timeout_s=settings.detector_timeout_s,
            max_running=settings.detector_running,
            fail_open=settings.detector_fails == "open",
        )


@dataclass(slots=True, eq=False)
class _Question:
    """A text that somebody asks about, by the hash that it is remembered by."""

    key: bytes
    text: str
    answer: asyncio.Future[Findings | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    taken: bool = False
    """Whether it waits for a turn no longer."""


class Detector:
    """Asks the analyzer with a deadline, so many requests at a time, and remembers what it said.

    Texts that wait for a turn go into one request, whoever asks: feedback comes a text at a time.
    """

    def __init__(
        self,
        policy: DetectorPolicy,
        headers: Callable[[], dict[str, str]],
        registry: CollectorRegistry,
    ) -> None:
        """`headers` gives those with the analyzer's key, as its file has it now."""
        self._policy = policy
        self._headers = headers
        self._session: aiohttp.ClientSession | None = None
        self._queue: deque[_Question] = deque()
        self._open: dict[bytes, _Question] = {}
        """Questions without an answer yet, those that wait for a turn among them."""
        self._asking: set[asyncio.Task[None]] = set()
        self._running = 0
        self._failures = 0
        self._resume_at = 0.0
        self._said_at = float("-inf")
        self._remembered: OrderedDict[bytes, Findings] = OrderedDict()
        self._requests = Counter(
            "ratchet_detector_requests",
            "Requests to the detector of personal data, by what came of them",
            ("outcome",),
            registry=registry,
        )
        self._seconds = Histogram(
            "ratchet_detector_seconds",
            "One answer of the detector of personal data.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
            registry=registry,
        )
        self._unchecked = Counter(
            "ratchet_texts_unchecked",
            "Texts that the detector could not check, by what was stored in their place",
            ("stored",),
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._requests.labels(outcome)
        self._unchecked.labels("marker" if not policy.fail_open else "text")

    async def find(self, texts: Sequence[str]) -> list[Findings | None]:
        """What each text has; None where it could not be checked and is to be withheld.

        A text waits for its turn for the policy's deadline at most, for each MAX_TEXTS that come with
        it, and for as long again for the answer in each language.
        """
        keys = [blake2b(text.encode("utf-8", "replace"), digest_size=16).digest() for text in texts]
        known: dict[bytes, Findings | None] = {}
        asked: dict[bytes, _Question] = {}
        for key, text in zip(keys, texts, strict=True):
            if key in self._remembered:
                self._remembered.move_to_end(key)
                known[key] = self._remembered[key]
            elif key not in asked:
                asked[key] = self._open.get(key) or _Question(key, text)
        known |= await self._answers(asked)
        found = (known[key] for key in keys)
        return [self.unchecked() if findings is None else findings for findings in found]

    def unchecked(self) -> Findings | None:
        """What takes the place of an answer about one text: as if nothing were found, or None."""
        self._unchecked.labels("text" if self._policy.fail_open else "marker").inc()
        return () if self._policy.fail_open else None

    async def close(self) -> None:
        """Close the connections; what still waits is not checked."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        for question in tuple(self._open.values()):
            self._settle(question, None)
        if self._session is not None:
            await self._session.close()

    async def _answers(self, asked: dict[bytes, _Question]) -> dict[bytes, Findings | None]:
        """Put questions that nobody asked yet into the queue, and wait for all."""
        new = [question for question in asked.values() if question.key not in self._open]
        if len(self._open) + len(new) > MAX_OPEN:
            self._requests.labels(BUSY).inc()
            return dict.fromkeys(asked)
        if not asked:
            return {}
        self._open.update((question.key, question) for question in new)
        self._queue.extend(new)
        for _ in range(min(len(new), self._policy.max_running - self._running)):
            self._running += 1
            task = asyncio.create_task(self._ask_all())
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        patience_s = self._policy.timeout_s * ceil(len(new) / MAX_TEXTS)
        late = asyncio.get_running_loop().call_later(patience_s, self._give_up, new)
        # Where this is cancelled, others may wait for the same: the questions stay.
        await asyncio.wait([question.answer for question in asked.values()])
        late.cancel()
        return {key: question.answer.result() for key, question in asked.items()}

    def _give_up(self, questions: Sequence[_Question]) -> None:
        """Answer those of some questions that still wait for a turn."""
        waiting = [question for question in questions if not question.taken]
        if waiting:
            self._requests.labels(BUSY).inc()
        for question in waiting:
            self._settle(question, None)

    def _settle(self, question: _Question, findings: Findings | None) -> None:
        if question.answer.done():
            return
        question.answer.set_result(findings)
        del self._open[question.key]
        if findings is not None:
            self._remembered[question.key] = findings
            if len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)

    def _part(self) -> list[_Question]:
        """The next questions: at most MAX_TEXTS of MAX_CHARACTERS, or one."""
        part: list[_Question] = []
        size = 0
        while self._queue and len(part) < MAX_TEXTS:
            size += len(self._queue[0].text)
            if part and size > MAX_CHARACTERS:
                break
            question = self._queue.popleft()
            if not question.answer.done():
                question.taken = True
                part.append(question)
        return part

    async def _ask_all(self) -> None:
        """Ask what waits, whoever waits for it, until nothing does."""
        part: list[_Question] = []
        try:
            while part := self._part():
                answer = await self._ask([question.text for question in part])
                for question, findings in zip(part, answer, strict=True):
                    self._settle(question, findings)
        except BaseException:
            for question in (*part, *self._queue):
                self._settle(question, None)
            raise
        finally:
            # At once, not when the task is seen to be done: what comes until then wants a turn.
            self._running -= 1

    async def _ask(self, texts: list[str]) -> Sequence[Findings | None]:
        """The findings of one request's texts in all languages; None for each where it failed."""
        found: list[list[DetectedSpan]] = [[] for _ in texts]
        for language in self._policy.languages:
            outcome, answer = await self._try(texts, language)
            self._requests.labels(outcome).inc()
            if answer is None:
                return [None] * len(texts)
            for findings, more in zip(found, answer, strict=True):
                findings.extend(more)
        return [tuple(findings) for findings in found]

    async def _try(
        self, texts: list[str], language: str
    ) -> tuple[str, list[list[DetectedSpan]] | None]:
        if asyncio.get_running_loop().time() < self._resume_at:
            return PAUSED, None
        began = perf_counter()
        try:
            answer = await self._post(texts, language)
        except TimeoutError:
            return self._failed(TIMEOUT, f"no answer in {self._policy.timeout_s:g} s"), None
        except (aiohttp.ClientError, CredentialsUnreadable, OSError, ValueError) as error:
            return self._failed(FAILED, str(error) or type(error).__name__), None
        self._failures = 0
        self._seconds.observe(perf_counter() - began)
        return ANSWERED, answer

    async def _post(self, texts: list[str], language: str) -> list[list[DetectedSpan]]:
        policy = self._policy
        body: dict[str, Any] = {
            "text": [_SURROGATE.sub("\ufffd", text) for text in texts],
            "language": language,
            "score_threshold": policy.score,
        }
        if policy.entities:
            body["entities"] = policy.entities
        if policy.allow:
            body["allow_list"] = policy.allow
        if self._session is None:
            # Its own bound would have requests wait for a connection beside our turns.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        async with request_within(
            policy.timeout_s,
            self._session,
            "POST",
            policy.url + PATH,
            data=orjson.dumps(body),
            headers={"content-type": "application/json", **self._headers()},
            allow_redirects=False,
        ) as answer:
            if answer.status != HTTP_OK:
                # What it says may hold the text, and this is logged.
                raise ValueError(f"it answered {answer.status}; ratchet doctor shows why")
            answered = findings_of(await read_json(answer, limit=MAX_ANSWER_BYTES), texts)
            return [[one for one in found if self._is_wanted(one)] for found in answered]

    def _is_wanted(self, one: DetectedSpan) -> bool:
        entities = self._policy.entities
        return one.score >= self._policy.score and (not entities or one.entity in entities)

    def _failed(self, outcome: str, why: str) -> str:
        """Take note of a failure, and say it; of many, one in LOG_EVERY_S."""
        now = asyncio.get_running_loop().time()
        self._failures += 1
        if self._failures >= FAILURES:
            self._resume_at = now + PAUSE_S
        if now - self._said_at >= LOG_EVERY_S:
            self._said_at = now
            log.warning(Unavailable.detector, url=self._policy.url, error=why)
        return outcome


def detector_of(settings: DetectorSettings, registry: CollectorRegistry) -> Detector | None:
    """The detector that a service's settings name; None without one."""
    if not settings.detector_url:
        return None
    return Detector(DetectorPolicy.of(settings), settings.detector_headers, registry)


def findings_of(value: object, texts: Sequence[str]) -> list[list[DetectedSpan]]:
    """An analyzer's answer, checked.

    Raises:
        ValueError: it is no answer to a request with these texts.

    """
    try:
        lists = _ANSWER.validate_python(value)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise ValueError(
            f"the answer: {place or 'it'} is not as POST {PATH} answers a list of texts: a list for "
            "each, of entity_type, start, end and score"
        ) from None
    if len(lists) != len(texts):
        raise ValueError(f"the answer: has {len(lists)} lists for {len(texts)} texts")
    found = [
        [DetectedSpan(one.entity_type, one.start, one.end, one.score) for one in listed]
        for listed in lists
    ]
    for listed, text in zip(found, texts, strict=True):
        for one in listed:
            if not 0 <= one.start < one.end <= len(text):
                raise ValueError(
                    f"the answer: {one.start} to {one.end} is not in a text of {len(text)} characters"
                )
    return found
