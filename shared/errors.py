"""Base class of every error that reaches a caller, with its HTTP status and code.

RatchetError              status, code, title, detail, fields
├── Unauthenticated       shared.keys
├── Forbidden             shared.keys
├── BodyTooLarge …        shared.http.body
├── NotScored             shared.http.reward_scores
└── FeedbackError, RolloutError, InferenceError, RouterError: one base a service
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

MAX_FIELD_ERRORS = 20
"""Bad fields named in one response."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field, the rule it breaks, and what to do."""

    field: str
    rule: str
    remedy: str

    def as_dict(self) -> dict[str, str]:
        """The field as it stands in a problem."""
        return {"field": self.field, "rule": self.rule, "remedy": self.remedy}


class RatchetError(Exception):
    """A request was refused or failed.

    The detail says what was wrong and, behind a semicolon, what to do: `field: rule; remedy` where a
    field of the request is at fault.
    """

    status: ClassVar[int] = 500
    """HTTP status."""
    code: ClassVar[str] = "internal"
    """Stable name for programs, from a closed set a service."""
    title: ClassVar[str] = "Internal error"
    """Short name for people; the same for every error of the class."""
    retry_after_s: int | None = None
    """Seconds after which the same request may succeed; None where that is unknown."""

    def __init__(
        self,
        detail: str,
        fields: Sequence[FieldError] = (),
        *,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = tuple(fields)
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    def problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.fields:
            body["errors"] = [field.as_dict() for field in self.fields[:MAX_FIELD_ERRORS]]
        return body
