"""Bounds of one request to an engine: how many answers it may ask for, and how long ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from services.router.errors import InvalidRequest
from services.router.fields import Endpoint
from shared.contracts.events.api_keys import KeyLimits

CHOICE_FIELDS = ("n", "best_of")
TOKEN_FIELDS: dict[Endpoint, tuple[str, ...]] = {
    "chat": ("max_tokens", "max_completion_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "embeddings": (),
    "messages": ("max_tokens",),
}
"""Where a request says how long its answer may be; the first is set where none does."""


class AnswerBounds(NamedTuple):
    """Bounds of each request; 0 is none."""

    max_choices: int = 0
    """Answers that an engine generates for a request: prompts times `n` or `best_of`."""
    max_tokens: int = 0
    """Tokens of one answer."""

    def of(self, own: KeyLimits) -> AnswerBounds:
        """Those of a key, where it has its own."""
        if own.max_choices is None and own.max_tokens is None:
            return self
        return AnswerBounds(
            self.max_choices if own.max_choices is None else own.max_choices,
            self.max_tokens if own.max_tokens is None else own.max_tokens,
        )

    def apply(self, endpoint: Endpoint, payload: dict[str, Any]) -> None:
        """Check a request's fields; one that names no length gets the bound as its length.

        Raises:
            InvalidRequest: a field is over the bound, or no whole number.

        """
        if self.max_choices:
            prompts = _prompts(payload.get("prompt"))
            for name in CHOICE_FIELDS:
                value = _whole(payload, name)
                if (value or 1) * prompts > self.max_choices:
                    param = "prompt" if prompts > 1 else name
                    raise InvalidRequest(
                        f"{param}: at most {self.max_choices} answers a request; send several",
                        param=param,
                    )
        if self.max_tokens:
            names = TOKEN_FIELDS[endpoint]
            given = {name: _whole(payload, name) for name in names}
            for name, value in given.items():
                if value is not None and value > self.max_tokens:
                    raise InvalidRequest(
                        f"{name}: at most {self.max_tokens}; send that or less", param=name
                    )
            if names and not any(value is not None for value in given.values()):
                payload[names[0]] = self.max_tokens


def _whole(payload: Mapping[str, Any], name: str) -> int | None:
    # Engines take "9" and 9.0 for 9, which would pass by a bound unseen.
    value = payload.get(name)
    if value is None or type(value) is int:
        return value
    raise InvalidRequest(f"{name}: must be a whole number; send one, such as 256", param=name)


def _prompts(prompt: object) -> int:
    """How many prompts a completion asks for at once."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1
