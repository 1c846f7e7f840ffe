"""Redactor: replaces e-mail addresses, phone numbers, payment cards and keys by a marker.

Nothing of what was found is kept, so it cannot be undone. Two prefilters, a few substrings and then
one pattern, decide for most texts that there is nothing to look for; they let through whatever the
patterns themselves could find.

Texts are anyone's, and they are redacted on event loops: every pattern takes time linear in the text,
whatever it says. So no pattern may read one run of characters again from each place in it, nor have
many ways to cut one run in parts (tests/unit/shared/test_redaction.py holds the texts that would tell).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_NUMBER = re.compile(r"\d[\d ().\-/]{5,}\d")
_NEEDED = ("@", "_", "-", ":", "=", "AKIA", "ASIA", "AIza", "eyJ")
"""A text with a secret or an address has one of these in it, if it is no `Bearer` one."""
_SUSPICIOUS = re.compile(
    r"@|\d[\d ().\-/]{5,}\d|(?:sk|pk|rk)[-_]|gh[pousr]_|xox[abps]-|AKIA|ASIA|AIza|eyJ|glpat-|hf_|npm_"
    r"|-----BEGIN|(?i:bearer )|(?i:password|passwd|secret|token|api[-_ ]?key)\s*[:=]",
)

_EMAIL = re.compile(r"[A-Za-z0-9._%+\-]{1,64}@(?:[A-Za-z0-9\-]{1,63}\.)+[A-Za-z]{2,24}\b")
_CARD = re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])")
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .\-/]?(?:\(\d{1,5}\)[ .\-/]?)?|\(\d{2,5}\)[ .\-/]?"
    r"|0\d{1,4}[ .\-/]|\d{3}[ .\-](?=\d{3}[ .\-]\d{4}\b))"
    r"\d{2,15}+(?:[ .\-/]\d{2,15}+){0,4}(?![\w-])"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_KEY = re.compile(
    r"\b(?:sk|pk|rk)[-_](?:live|test|proj|ant)?[-_A-Za-z0-9]{16,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bxox[abps]-[A-Za-z0-9-]{10,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bAIza[A-Za-z0-9_\-]{30,}|\bglpat-[A-Za-z0-9_\-]{16,}|\b(?:hf|npm)_[A-Za-z0-9]{20,}"
)
_JSON_WEB_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_\-])(?>[A-Za-z0-9_\-]*?\beyJ)[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]{8,}){2,}"
)
"""From the beginning of its run of characters, and by the first `eyJ` of that run or by none."""
_NAMED_SECRET = re.compile(
    r"(?P<name>\b(?:password|passwd|secret|token|api[-_ ]?key)\s*[:=]\s*)(?P<value>[^\s,;\"']{6,})"
    r"|(?P<bearer>\b[Bb]earer )(?P<credential>[A-Za-z0-9._~+/\-]{16,}=*)",
    re.IGNORECASE,
)

MIN_PHONE_DIGITS = 7
MAX_PHONE_DIGITS = 15


def _no_counts() -> dict[str, int]:
    return {}


@dataclass(frozen=True, slots=True)
class Redacted:
    """A redacted text, and the number of replacements of each kind."""

    text: str
    counts: dict[str, int] = field(default_factory=_no_counts)


class Redactor:
    """Redacts texts. Deterministic, and redacting twice changes nothing more."""

    def redact(self, text: str) -> Redacted:
        """The text with `[EMAIL]`, `[PHONE]`, `[CARD]` and `[KEY]` where those were."""
        if _harmless(text) or not _SUSPICIOUS.search(text):
            return Redacted(text)
        counts: dict[str, int] = {}

        def mark(kind: str) -> str:
            counts[kind] = counts.get(kind, 0) + 1
            return f"[{kind.upper()}]"

        text = _PRIVATE_KEY.sub(lambda _: mark("key"), text)
        text = _NAMED_SECRET.sub(
            lambda found: (
                (found["name"] or found["bearer"]) + mark("key")
                if not _marked(found["value"] or found["credential"])
                else found[0]
            ),
            text,
        )
        text = _JSON_WEB_TOKEN.sub(lambda _: mark("key"), text)
        text = _KEY.sub(lambda _: mark("key"), text)
        text = _EMAIL.sub(lambda _: mark("email"), text)
        text = _CARD.sub(lambda found: mark("card") if is_card(found[0]) else found[0], text)
        text = _PHONE.sub(lambda found: mark("phone") if is_phone(found[0]) else found[0], text)
        return Redacted(text, counts)

    def text(self, text: str) -> str:
        """The redacted text alone."""
        return self.redact(text).text


def is_card(number: str) -> bool:
    """Whether 13 to 19 digits pass the Luhn check (ISO/IEC 7812-1, annex B)."""
    digits = [int(char) for char in number if char.isdigit()]
    doubled = [sum(divmod(digit * 2, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and any(digits)


def is_phone(number: str) -> bool:
    """Whether it has as many digits as a phone number (ITU-T E.164) and is no date."""
    digits = sum(char.isdigit() for char in number)
    is_date = re.fullmatch(r"\d{4}[-/.]\d{2}[-/.]\d{2}|\d{2}[-/.]\d{2}[-/.]\d{4}", number)
    return MIN_PHONE_DIGITS <= digits <= MAX_PHONE_DIGITS and not is_date


def _harmless(text: str) -> bool:
    """Whether a text lacks what every pattern needs; a tenth of the cost of a pattern's search."""
    for needed in _NEEDED:
        if needed in text:
            return False
    return "bearer " not in text.lower() and not _NUMBER.search(text)


def _marked(value: str) -> bool:
    return value.startswith("[KEY]")
