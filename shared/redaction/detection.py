"""Detection: what a detector finds in a text that no rule can tell, beside the rules. No I/O.

An event is built from texts by a pure function that is given how to redact. With a detector the event
is built a first time to see which texts it has, the detector is asked for these at once, and it is built
again with what was found (`redacted`). So rules and detector go through the same places, whatever is
built. What the detector could not check is withheld: UNCHECKED stands in its place.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from shared.redaction.redactor import Redacted, Redactor
from shared.withheld import UNCHECKED

Redact = Callable[[str], str]
Unchecked = Callable[[], Sequence["DetectedSpan"] | None]
"""What takes the place of an answer about a text that was not checked: findings, or None to withhold it."""
T = TypeVar("T")

UNCHECKED_KIND = "unchecked"
BUILDS_A_TURN = 32
ROUNDS = 3
"""Times that new texts are asked about: an event that is cut shorter may have other pieces."""
KINDS = {
    "PERSON": "name",
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "IP_ADDRESS": "ip",
}
"""Presidio's names of what the rules find as well; any other has its own name in small letters."""
MARKER = re.compile(
    r"\[(?:KEY|EMAIL|IBAN|CARD|ID|IP|PHONE|NAME|ADDRESS|LOCATION|NRP|ORGANIZATION|UNCHECKED)\]"
)
_ENTITY = re.compile(r"[A-Z][A-Z0-9_]{0,39}")
_OTHER_ENTITY = "PII"
_BETWEEN = " \t\r\n,;:"
_MACHINE_WORD = re.compile(r"[!-@\[-~][!-~]*")
"""One ASCII word that begins with no capital, such as an id, a setting or a field's name."""


class DetectedSpan(NamedTuple):
    """Personal data in a text, from `start` to before `end`, in code points."""

    entity: str
    start: int
    end: int
    score: float


class TextDetector(Protocol):
    """Finds personal data in texts."""

    async def find(self, texts: Sequence[str]) -> Sequence[Sequence[DetectedSpan] | None]:
        """What each text has; None where it could not be checked and is to be withheld."""
        ...

    def unchecked(self) -> Sequence[DetectedSpan] | None:
        """The same for one text about which it is too late to ask; it counts these."""
        ...


class Redaction:
    """Rules, and a detector where there is one: what services redact by. Build with `redacted`.

    Called directly it cannot ask, so that it withholds what the detector would have to check.
    """

    def __init__(self, detector: TextDetector | None = None, rules: Redact | None = None) -> None:
        self.detector = detector
        self.rules = rules or Redactor().text

    def __call__(self, text: str) -> str:
        """The text by rules, or its marker."""
        cleaned = self.rules(text)
        if self.detector is None or not needs_check(cleaned):
            return cleaned
        return UNCHECKED if self.detector.unchecked() is None else cleaned


class Review:
    """A redactor that knows what was found in the texts asked about, and notes the others."""

    def __init__(self, rules: Redact) -> None:
        self._rules = rules
        self._by_rules: dict[str, str] = {}
        self._findings: dict[str, Sequence[DetectedSpan] | None] = {}
        self._closed: Unchecked | None = None
        self.unasked: dict[str, None] = {}
        """Texts that nobody was asked about yet, in order."""

    def __call__(self, text: str) -> str:
        """The text as it is stored, as far as is known by now."""
        return self.check(self.rules(text)).text

    def rules(self, text: str) -> str:
        """The text as the rules alone leave it."""
        cleaned = self._by_rules.get(text)
        if cleaned is None:
            cleaned = self._by_rules[text] = self._rules(text)
        return cleaned

    def check(self, cleaned: str) -> Redacted:
        """A text that went through the rules without what was found in it."""
        if not needs_check(cleaned):
            return Redacted(cleaned)
        if cleaned not in self._findings:
            if self._closed is None:
                self.unasked[cleaned] = None
                return Redacted(cleaned)
            self._findings[cleaned] = self._closed()
        findings = self._findings[cleaned]
        if findings is None:
            return Redacted(UNCHECKED, {UNCHECKED_KIND: 1})
        return masked(cleaned, findings)

    def withhold(self, unchecked: Unchecked) -> None:
        """From now on treat what nobody was asked about as texts that could not be checked."""
        self._closed = unchecked

    async def ask(self, detector: TextDetector) -> bool:
        """Ask about what is not asked yet; tells whether any of these texts changes by it."""
        texts = list(self.unasked)
        self.unasked.clear()
        found = dict(zip(texts, await detector.find(texts), strict=True))
        self._findings.update(found)
        return any(findings is None or findings for findings in found.values())


class Shortened:
    """A redactor whose texts have at most `limit` characters."""

    def __init__(self, redact: Redact, limit: int) -> None:
        self._redact = redact
        self._limit = limit

    def __call__(self, text: str) -> str:
        """The redacted text."""
        return self._redact(text)[: self._limit]

    def rules(self, text: str) -> str:
        """The text as the rules alone leave it."""
        return by_rules(self._redact)(text)[: self._limit]


async def redacted(redact: Redact, build: Callable[[Redact], T]) -> T:
    """What `build` makes of a redactor: by rules alone, or by rules and detector.

    Args:
        redact: Rules, or a `Redaction` with a detector.
        build: Pure; called once, and again where the detector finds something.

    """
    if not isinstance(redact, Redaction) or redact.detector is None:
        return build(by_rules(redact))
    return await reviewed(redact.detector, Review(redact.rules), build)


async def reviewed(detector: TextDetector, review: Review, build: Callable[[Review], T]) -> T:
    """What `build` makes of a review, once the detector was asked about every text of it."""
    for _ in range(ROUNDS):
        built = build(review)
        if not review.unasked or not await review.ask(detector):
            return built
    review.withhold(detector.unchecked)
    return build(review)


async def primed(redact: Redact, builds: Iterable[Callable[[Redact], object]]) -> Redact:
    """A redactor that knows what is in the texts of many builds, about which it asks at once.

    The event loop has its turn between builds. What these builds had not is withheld later.
    """
    if not isinstance(redact, Redaction) or redact.detector is None:
        return by_rules(redact)
    review = Review(redact.rules)
    for number, build in enumerate(builds, 1):
        build(review)
        if number % BUILDS_A_TURN == 0:
            await asyncio.sleep(0)
    await review.ask(redact.detector)
    review.withhold(redact.detector.unchecked)
    return review


def by_rules(redact: Redact) -> Redact:
    """The rules of a redactor alone, for identifiers, which no detector may take for a name."""
    return getattr(redact, "rules", redact)


def needs_check(cleaned: str) -> bool:
    """Whether a detector could find anything: no markers alone, nor one word as machines have them."""
    if _MACHINE_WORD.fullmatch(cleaned) and not cleaned.startswith("["):
        return False
    rest = MARKER.sub("", cleaned) if "[" in cleaned else cleaned
    return any(map(str.isalpha, rest))


def masked(text: str, findings: Sequence[DetectedSpan]) -> Redacted:
    """A text with a marker of its kind for each finding; of those that overlap the likeliest names it.

    Markers of the rules stay whole: only what a finding has beside them is replaced.
    """
    if not findings:
        return Redacted(text)
    pieces: list[str] = []
    counts: dict[str, int] = {}
    at = 0
    for entity, start, end in _places(text, findings):
        kind = KINDS.get(entity, entity.lower())
        counts[kind] = counts.get(kind, 0) + 1
        pieces += text[at:start], f"[{kind.upper()}]"
        at = end
    return Redacted("".join((*pieces, text[at:])), counts)


def _places(text: str, findings: Sequence[DetectedSpan]) -> Iterator[tuple[str, int, int]]:
    """Entity and ends of what is replaced, in order and apart from each other."""
    markers = [found.span() for found in MARKER.finditer(text)]
    first = 0
    for whole in _merged(findings):
        entity = whole.entity if _ENTITY.fullmatch(whole.entity) else _OTHER_ENTITY
        at = whole.start
        while first < len(markers) and markers[first][1] <= at:
            first += 1
        last = first
        while last < len(markers) and markers[last][0] < whole.end:
            last += 1
        for start, end in (*markers[first:last], (whole.end, whole.end)):
            piece = text[at:start]
            if any(map(str.isalnum, piece)):
                left = at + len(piece) - len(piece.lstrip(_BETWEEN))
                yield entity, left, left + len(piece.strip(_BETWEEN))
            at = max(at, end)


def _merged(findings: Sequence[DetectedSpan]) -> list[DetectedSpan]:
    """Findings that overlap as one, which has the entity of the likeliest of them."""
    merged: list[DetectedSpan] = []
    for one in sorted(findings, key=lambda found: (found.start, -found.end)):
        if merged and one.start < merged[-1].end:
            last = merged[-1]
            best = max(last, one, key=lambda found: found.score)
            merged[-1] = best._replace(start=last.start, end=max(last.end, one.end))
        else:
            merged.append(one)
    return merged


def withheld(counts: Mapping[str, int]) -> bool:
    """Whether a text of an event was withheld, by what its redaction counted."""
    return UNCHECKED_KIND in counts
