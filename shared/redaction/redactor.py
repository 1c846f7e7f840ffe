"""Redactor: replaces personal data and secrets by a marker of their kind.

Nothing of what was found is kept, so it cannot be undone. A few substrings, which every pattern needs
one of, decide for most texts that there is nothing to look for. Where a pattern alone says too little,
a check decides: Luhn for cards, ISO 7064 for IBANs, each country's own for national ids,
`user:password` for Basic credentials, public addresses only for IPs.
Digits that letters or hyphens continue are part of an identifier and stay. Names go where a text
introduces them, addresses where they have a form (names.py, addresses.py).

Texts are anyone's, and they are redacted on event loops: every pattern takes time linear in the text,
whatever it says. So no pattern may read one run of characters again from each place in it, nor have
many ways to cut one run in parts (tests/unit/shared/test_redaction.py holds the texts that would tell).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import string
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from shared.redaction.addresses import address_patterns
from shared.redaction.names import has_one, is_name, name_patterns
from shared.redaction.national_ids import FISCAL_TAIL, NATIONAL_ID, is_national_id

_SPACE = r" \u00a0\u202f"
_NUMBER = re.compile(rf"\d(?:[\d{_SPACE}().\-/]{{5,}}\d|{FISCAL_TAIL})")
_NEEDED_SIGNS = ("@", "_", "-", ":", "=")
_NEEDED_WORDS = ("AKIA", "ASIA", "AIza", "eyJ", "asic ")
"""A text with a secret or an address has one of these in it, if it is no `Bearer` one."""
_PROSE = (string.ascii_letters + " .,;!?'\"()").encode()
"""ASCII without digits, and without the signs and line breaks of which most patterns need one."""
_SHORTEST_OF_LETTERS = 20
"""Characters of an AWS access key id, the shortest match that may have letters alone."""
_NAMED = r"(?:passw(?:or)?d|pwd|passphrase|secret|token|credential|(?:api|access|private)[-_ ]?key)"
_EMAIL = re.compile(r"[\w.%+\-]{1,64}@(?:[\w\-]{1,63}\.)+(?:xn--[a-z0-9\-]{2,59}|[^\W\d_]{2,24})\b")
_URL_CREDENTIALS = re.compile(r"(?<=://)[^\s/@:\[]{0,200}:[^\s/@]{1,200}(?=@)")
_CARD = re.compile(
    rf"(?<![\w.+-])[2-6](?:[{_SPACE}-]?\d){{12,18}}(?![\w-])"
    r"|(?<![\w.+-])[2-6]\d{3}(?:\.\d{4}){3}(?![\w.-]\d)"
)
_IBAN = re.compile(rf"(?<![A-Za-z0-9])[A-Z]{{2}}\d\d(?:[{_SPACE}]?[A-Z0-9]){{11,30}}")
_SOCIAL_SECURITY = re.compile(r"(?<![\w.-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])")
"""Number of US Social Security."""
_IPV4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f:]{0,5}:)[0-9A-Fa-f:]{4,39}(?![\w:])")
_PHONE = re.compile(
    rf"(?<![\w.+-])(?:\+\d{{1,3}}[{_SPACE}.\-/]?(?:\(\d{{1,5}}\)[{_SPACE}.\-/]?)?"
    rf"|\(\d{{2,5}}\)[{_SPACE}.\-/]?"
    rf"|0\d{{1,4}}[{_SPACE}.\-/]|\d{{3}}[{_SPACE}.\-](?=\d{{3}}[{_SPACE}.\-]\d{{4}}\b))"
    rf"\d{{2,15}}+(?:[{_SPACE}.\-/]\d{{2,15}}+){{0,4}}(?![\w-])"
)
_NAMED_PHONE = re.compile(
    r"\b((?:tele)?(?:phone|fon)|tel\b|call|cell|mobile?|fax|sms|text|whatsapp|dial|ring|reach|handy"
    r"|appel|llam|m[oó]vil|portable|my number)(?P<between>[^\d\n\[\]]{0,24}?)(?<![\w.+-])"
    r"[2-9]\d{2}[2-9]\d{6}(?![\w-]|\.\d)",
    re.IGNORECASE,
)
"""A number of the North American plan without separators, where a word before it says that it is one:
most bare numbers of ten digits are orders, invoices or seconds since 1970. No bracket lies between, so
that a marker never brings a word nearer."""
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
    rf"{_NAMED}(?:[_-]\w{{1,24}})?[\\\"']{{0,4}}\s*[:=]\s*"
    r"(?:\\{0,3}[\"'](?P<quoted>[^\"'\\\n]{4,})|(?P<value>[^\s,;\"'\\]{6,}))"
    r"|\bbearer (?P<credential>[A-Za-z0-9._~+/\-]{16,}=*)",
    re.IGNORECASE,
)
_BASIC = re.compile(r"(?<=[Bb]asic )[A-Za-z0-9+/]{6,}={0,2}")

_SECRET_WORDS = (
    "passw", "pwd", "passphrase", "secret", "token", "credential", "api", "access", "private",
    "bearer ",
)  # fmt: skip
_KEY_PREFIXES = (
    "sk-", "sk_", "pk-", "pk_", "rk-", "rk_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "xox", "AKIA",
    "ASIA", "AIza", "glpat-", "hf_", "npm_",
)  # fmt: skip
IBAN_LENGTHS = {
    entry[:2]: int(entry[2:])
    for entry in [
        "AD24",
        "AE23",
        "AL28",
        "AT20",
        "AZ28",
        "BA20",
        "BE16",
        "BG22",
        "BH22",
        "BI27",
        "BR29",
        "BY28",
        "CH21",
        "CR22",
        "CY28",
        "CZ24",
        "DE22",
        "DJ27",
        "DK18",
        "DO28",
        "EE20",
        "EG29",
        "ES24",
        "FI18",
        "FK18",
        "FO18",
        "FR27",
        "GB22",
        "GE22",
        "GI23",
        "GL18",
        "GR27",
        "GT28",
        "HR21",
        "HU28",
        "IE22",
        "IL23",
        "IQ23",
        "IS26",
        "IT27",
        "JO30",
        "KW30",
        "KZ20",
        "LB28",
        "LC32",
        "LI21",
        "LT20",
        "LU20",
        "LV21",
        "LY25",
        "MC27",
        "MD24",
        "ME22",
        "MK19",
        "MN20",
        "MR27",
        "MT31",
        "MU30",
        "NI28",
        "NL18",
        "NO15",
        "OM23",
        "PK24",
        "PL28",
        "PS29",
        "PT25",
        "QA29",
        "RO24",
        "RS22",
        "RU33",
        "SA24",
        "SC31",
        "SD18",
        "SE24",
        "SI19",
        "SK24",
        "SM27",
        "SO23",
        "ST25",
        "SV28",
        "TL23",
        "TN24",
        "TR26",
        "UA29",
        "VA22",
        "VG24",
        "XK20",
        "YE30",
    ]
}
"""Characters of an IBAN by country (SWIFT's registry of ISO 13616)."""
MIN_PHONE_DIGITS = 7
MAX_PHONE_DIGITS = 15


Check = Callable[[str], bool]


NO_COUNTS: Mapping[str, int] = MappingProxyType({})


class Redacted(NamedTuple):
    """A redacted text, and the number of replacements of each kind."""

    text: str
    counts: Mapping[str, int] = NO_COUNTS


class _Marks:
    """Puts markers in the place of what patterns find, and counts them by kind."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def mark(self, kind: str) -> str:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return f"[{kind.upper()}]"

    def replace(
        self, pattern: re.Pattern[str], kind: str, text: str, check: Check | None = None
    ) -> str:
        def marked(found: re.Match[str]) -> str:
            return self.mark(kind) if check is None or check(found[0]) else found[0]

        return pattern.sub(marked, text)


class Redactor:
    """Redacts texts. Deterministic, and redacting twice changes nothing more."""

    def redact(self, text: str) -> Redacted:
        """The text with `[KEY]`, `[EMAIL]`, `[IBAN]`, `[CARD]`, `[ID]`, `[IP]`, `[PHONE]`, `[NAME]`
        and `[ADDRESS]`.
        """
        prose = _is_prose(text)
        names = name_patterns(text)
        if prose and not names and _is_harmless_prose(text):
            return Redacted(text)
        marks = _Marks()
        for pattern in names:
            text = pattern.sub(lambda found: _without_name(found, marks), text)
        if not prose:
            # Before numbers, of which a postcode may look like one.
            for pattern in address_patterns(text):
                text = marks.replace(pattern, "address", text)
        if not _harmless(text):
            text = _without_forms(text, marks)
        return Redacted(text, marks.counts)

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


def is_iban(number: str) -> bool:
    """Whether letters and digits, without spaces, pass the check of ISO 7064 (MOD 97-10)."""
    return int("".join(str(int(char, 36)) for char in number[4:] + number[:4])) % 97 == 1


def is_basic(credentials: str) -> bool:
    """Whether it is base64 of `user:password` (RFC 7617)."""
    try:
        return b":" in base64.b64decode(credentials + "=" * (-len(credentials) % 4))
    except (binascii.Error, ValueError):
        return False


def is_public_address(address: str) -> bool:
    """Whether it is an IP address that may belong to a person: no loopback or private network's."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _without_forms(text: str, marks: _Marks) -> str:
    text = _without_secrets(text, marks)
    if "@" in text:
        text = marks.replace(_URL_CREDENTIALS, "key", text)
        text = marks.replace(_EMAIL, "email", text)
    if _NUMBER.search(text):
        text = _without_numbers(text, marks)
    if text.count(":") > 1:
        text = marks.replace(_IPV6, "ip", text, is_public_address)
    return text


def _without_secrets(text: str, marks: _Marks) -> str:
    if "-----BEGIN" in text:
        text = marks.replace(_PRIVATE_KEY, "key", text)
    if has_one(text.lower(), _SECRET_WORDS):
        text = _NAMED_SECRET.sub(lambda found: _without_value(found, marks), text)
    if "asic " in text:
        text = marks.replace(_BASIC, "key", text, is_basic)
    if "eyJ" in text:
        text = marks.replace(_JSON_WEB_TOKEN, "key", text)
    if has_one(text, _KEY_PREFIXES):
        text = marks.replace(_KEY, "key", text)
    return text


def _without_numbers(text: str, marks: _Marks) -> str:
    text = _IBAN.sub(lambda found: _without_iban(found[0], marks), text)
    text = marks.replace(_CARD, "card", text, is_card)
    text = NATIONAL_ID.sub(lambda found: _without_id(found, marks), text)
    if text.count("-") > 1:
        text = marks.replace(_SOCIAL_SECURITY, "id", text)
    if text.count(".") > 2:
        text = marks.replace(_IPV4, "ip", text, is_public_address)
    text = marks.replace(_PHONE, "phone", text, is_phone)
    return _NAMED_PHONE.sub(lambda found: found[1] + found["between"] + marks.mark("phone"), text)


def _without_value(found: re.Match[str], marks: _Marks) -> str:
    """A named secret without its value."""
    group = found.lastgroup
    assert group is not None
    if found[group].startswith("[KEY]"):
        return found[0]
    return found.string[found.start() : found.start(group)] + marks.mark("key")


def _without_name(found: re.Match[str], marks: _Marks) -> str:
    """An introduction without the name."""
    if not is_name(found["name"]):
        return found[0]
    start, end = found.start("name") - found.start(), found.end("name") - found.start()
    return found[0][:start] + marks.mark("name") + found[0][end:]


def _without_id(found: re.Match[str], marks: _Marks) -> str:
    return marks.mark("id") if is_national_id(found) else found[0]


def _without_iban(text: str, marks: _Marks) -> str:
    """A run of capitals and digits without the IBAN that it begins with, if it does."""
    length = IBAN_LENGTHS.get(text[:2], 0)
    places = [place for place, char in enumerate(text) if char.isalnum()]
    if not length or len(places) < length:
        return text
    end = places[length - 1] + 1
    rest = text[end:]
    if rest[:1].isalnum() or not is_iban("".join(text[place] for place in places[:length])):
        return text
    return marks.mark("iban") + rest


def _is_prose(text: str) -> bool:
    """Whether a text has nothing but what prose in ASCII is made of; one pass, for most texts."""
    return text.isascii() and not text.encode().translate(None, _PROSE)


def _is_harmless_prose(text: str) -> bool:
    """Whether prose lacks what every pattern of secrets needs."""
    if len(text) < _SHORTEST_OF_LETTERS and text.isalpha():
        return True
    return not has_one(text, _NEEDED_WORDS) and "bearer " not in text.lower()


def _harmless(text: str) -> bool:
    """Whether a text lacks what every pattern needs; a tenth of the cost of a pattern's search."""
    return (
        _is_harmless_prose(text) and not has_one(text, _NEEDED_SIGNS) and not _NUMBER.search(text)
    )
