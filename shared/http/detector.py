"""Detector of personal data: asks an analyzer that speaks Presidio's API (`POST /analyze`) about texts.

A request has a list of texts, a language, the entities that are looked for and a least score; the answer
has a list for each text, of `{entity_type, start, end, score}` in code points.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
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
from shared.observability.events import Unavailable
from shared.redaction.detection import DetectedSpan

log = structlog.get_logger(__name__)

PATH = "/analyze"
HTTP_OK = 200
MAX_TEXTS = 32
MAX_CHARACTERS = 32_000
"""Texts of one request, and characters of theirs where it is more than one text."""
MAX_ANSWER_BYTES = 8 * 1024 * 1024
MAX_WAITING = 1_024
"""Requests that wait for a turn; the texts of more are not checked."""
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


class Detector:
    """Asks the analyzer with a deadline, so many requests at a time, and remembers what it said."""

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
        self._turns = asyncio.Semaphore(policy.max_running)
        self._asking = 0
        self._failures = 0
        self._resume_at = 0.0
        self._said_at = float("-inf")
        self._remembered: OrderedDict[bytes, tuple[DetectedSpan, ...]] = OrderedDict()
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

    async def find(self, texts: Sequence[str]) -> list[tuple[DetectedSpan, ...] | None]:
        """What each text has; None where it could not be checked and is to be withheld.

        It takes no longer than the policy's deadline for each language, whatever the analyzer does.
        """
        keys = [blake2b(text.encode("utf-8", "replace"), digest_size=16).digest() for text in texts]
        known = {key: self._remembered[key] for key in keys if key in self._remembered}
        for key in known:
            self._remembered.move_to_end(key)
        new = [index for index, key in enumerate(keys) if key not in known]
        parts = list(_parts([texts[index] for index in new]))
        answers = await asyncio.gather(*(self._ask(part) for part in parts))
        found = (findings for answer in answers for findings in answer)
        for index, findings in zip(new, found, strict=True):
            if findings is not None:
                known[keys[index]] = self._remembered[keys[index]] = findings
        while len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return [known[key] if key in known else self.unchecked() for key in keys]

    def unchecked(self) -> tuple[DetectedSpan, ...] | None:
        """What takes the place of an answer about one text: as if nothing were found, or None."""
        self._unchecked.labels("text" if self._policy.fail_open else "marker").inc()
        return () if self._policy.fail_open else None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(self, texts: list[str]) -> list[tuple[DetectedSpan, ...] | None]:
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
        now = asyncio.get_running_loop().time()
        if now < self._resume_at:
            return PAUSED, None
        if self._asking >= MAX_WAITING:
            return BUSY, None
        self._asking += 1
        try:
            async with asyncio.timeout(self._policy.timeout_s), self._turns:
                began = perf_counter()
                answer = await self._post(texts, language)
        except TimeoutError:
            return self._failed(TIMEOUT, f"no answer in {self._policy.timeout_s:g} s"), None
        except (aiohttp.ClientError, CredentialsUnreadable, OSError, ValueError) as error:
            return self._failed(FAILED, str(error) or type(error).__name__), None
        finally:
            self._asking -= 1
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
        async with self._session.post(
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


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in requests of at most MAX_TEXTS and MAX_CHARACTERS, or of one text."""
    part: list[str] = []
    size = 0
    for text in texts:
        if part and (len(part) == MAX_TEXTS or size + len(text) > MAX_CHARACTERS):
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part
