"""Who asks: the user and the session of a request, from its body and its headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from services.router.errors import InvalidRequest
from shared.contracts.events.base import MAX_ID

BODY_SOURCES = frozenset(("user", "safety_identifier", "prompt_cache_key"))
"""Sources of the user that are fields of the body; every other one is a header."""
USER_SOURCES = (
    "user",
    "safety_identifier",
    "x-ratchet-user",
    "x-openwebui-user-id",
    "prompt_cache_key",
)
NOBODY = ("none", "null", "undefined", "anonymous")
"""What clients send where they have no user: with one of these as a key, everybody would be one."""
SESSION_HEADER = b"x-ratchet-session"


class IdentityRules:
    """Reads the user from the first source that names one."""

    __slots__ = ("_nobody", "_sources", "fields")

    def __init__(
        self, sources: Iterable[str] = USER_SOURCES, nobody: Iterable[str] = NOBODY
    ) -> None:
        """`sources` in order of precedence; `nobody`: values that mean no one, in any case."""
        self._sources = tuple(
            (name, None if name in BODY_SOURCES else name.lower().encode()) for name in sources
        )
        self._nobody = frozenset(("", *(value.casefold() for value in nobody)))
        self.fields = frozenset(name for name, header in self._sources if header is None)

    def user(self, payload: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> str:
        """The user, or "" where no source names one.

        Raises:
            InvalidRequest: the source's value is no string, or may not stand in an event.

        """
        for name, header in self._sources:
            if header is None:
                value = payload.get(name)
                if value is None or value == "":
                    continue
                if type(value) is not str:
                    raise InvalidRequest(
                        f"{name}: must be a string; send the user's id as text", param=name
                    )
            else:
                raw = headers.get(header)
                if not raw:
                    continue
                value = _text(raw)
            if value := self._somebody(value):
                return check_identifier(name, value)
        return ""

    def session(self, headers: Mapping[bytes, bytes]) -> str:
        """The session that a header names, or "".

        Raises:
            InvalidRequest: the value may not stand in an event.

        """
        raw = headers.get(SESSION_HEADER)
        if not raw:
            return ""
        return check_identifier(SESSION_HEADER.decode(), self._somebody(_text(raw)))

    def _somebody(self, value: str) -> str:
        return "" if value.strip().casefold() in self._nobody else value


def check_identifier(name: str, value: str) -> str:
    """The value, when it may stand in an event.

    Raises:
        InvalidRequest: longer than 200 characters, or with a control character.

    """
    if len(value) > MAX_ID or (not value.isprintable() and _has_control(value)):
        raise InvalidRequest(
            f"{name}: is longer than {MAX_ID} characters or has a control character; "
            "send a shorter text in one line",
            param=name,
        )
    return value


def _has_control(value: str) -> bool:
    return any(char < " " or char == "\x7f" for char in value)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
