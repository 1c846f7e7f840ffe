"""Seal: HMAC-SHA-256 over what is kept in Redis, by a secret that Redis does not know.

Who can write to Redis but has no secret can neither move routers nor change the texts of a
comparison; what an intruder recorded and puts back is as old as it says. Pure.
"""

from __future__ import annotations

import hmac
import re

MIN_SECRET = 32
"""Least length of a secret in bytes."""
_MARK = re.compile("[0-9a-f]{64}")


class Seal:
    """Signs texts by its first secret, and opens what any of its secrets signed.

    So a secret is replaced in three steps: the new one second everywhere, then first, then alone.
    Without secrets texts are neither signed nor verified: a process that has none yet reads what
    those sign that do.
    """

    __slots__ = ("_secrets",)

    def __init__(self, *secrets: bytes) -> None:
        self._secrets = secrets

    def __bool__(self) -> bool:
        """Whether it signs and verifies."""
        return bool(self._secrets)

    def close(self, place: str, text: str) -> str:
        """A text signed for its place, such as a key: it opens nowhere else."""
        return f"{_mark(self._secrets[0], place, text)}:{text}" if self._secrets else text

    def open(self, place: str, signed: bytes | str) -> str | None:
        """The text; None where no secret signed it for this place."""
        try:
            whole = signed.decode() if isinstance(signed, bytes) else signed
        except UnicodeDecodeError:
            return None
        mark, _, text = whole.partition(":")
        if not self._secrets:
            return text if _MARK.fullmatch(mark) else whole
        fits = [
            hmac.compare_digest(mark.encode(), _mark(one, place, text).encode())
            for one in self._secrets
        ]
        return text if any(fits) else None


def _mark(secret: bytes, place: str, text: str) -> str:
    # Without the length a text could take part of its place.
    named = f"{len(place)}:{place}:{text}"
    return hmac.digest(secret, named.encode(), "sha256").hex()


UNSEALED = Seal()
"""No secret: texts are as they come."""
