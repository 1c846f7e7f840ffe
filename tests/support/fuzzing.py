"""Mutations of valid requests and records, by a fixed seed: what anyone might send."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_ATOMS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 2**63, 2**64, -(2**70), 1e308, float("nan"), float("inf"), "",
    " ", "0", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "null", "\x00", "a\x00b", "\r\n", "\x7f", "\ud800", "\u202e", "😀", "é" * 300,
    "x" * 5_000, "../../etc/passwd", "%00", "${jndi:x}", "' OR 1=1 --", "<script>", "[KEY]",
    "4111 1111 1111 1111", "a@b.co " * 50, [], {}, [[]], [None], [{}], {"": ""}, {"a": {"b": []}},
    ["x"] * 200, {str(number): number for number in range(100)},
)  # fmt: skip
_NAMES = (
    "model", "messages", "prompt", "stream", "stream_options", "user", "metadata", "n", "max_tokens",
    "trace_id", "type", "value", "user_id", "revision", "timestamp", "feedback_id", "items",
    "reason", "strategy", "candidate", "tools", "response_format", "chat_template_kwargs", "x",
)  # fmt: skip
_HEADERS = (
    "authorization", "traceparent", "idempotency-key", "x-ratchet-session", "x-ratchet-user",
    "x-ratchet-purpose", "content-type", "accept", "origin", "x-openwebui-user-id", "x-any",
)  # fmt: skip
_VALUES = (
    b"", b"Bearer", b"Bearer rk_x", b"Basic eDp5", b"\xff\xfe", b"\xc3\xa9", b"x" * 4_000,
    b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"evaluation", b"text/plain", b"null",
)  # fmt: skip


class Mutations:
    """The same seed gives the same mutations."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def value(self, valid: Any) -> Any:
        """A copy of a JSON value with up to three changes in random places."""
        root = [copy.deepcopy(valid)]
        for _ in range(self.rng.randint(0, 3)):
            self._change(root)
        return root[0]

    def body(self, valid: Any) -> bytes:
        """A request's body or a record's value: mutated JSON, now and then no JSON at all."""
        data = json.dumps(self.value(valid)).encode()
        match self.rng.randrange(12):
            case 0:
                return data[: self.rng.randrange(len(data) + 1)]
            case 1:
                place = self.rng.randrange(len(data) + 1)
                return data[:place] + self.rng.randbytes(4) + data[place:]
            case 2:
                return b"[" * self.rng.choice((10, 500, 20_000))
            case 3:
                return b'{"a":' * self.rng.choice((10, 500, 20_000))
            case 4:
                return self.rng.choice((b"", b"\xef\xbb\xbf{}", b"null", b"0", b'"x"', b"\x00"))
            case _:
                return data

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Up to three headers."""
        return [
            (self.rng.choice(_HEADERS).encode(), self.rng.choice(_VALUES))
            for _ in range(self.rng.randint(0, 3))
        ]

    def _change(self, root: list[Any]) -> None:
        parent: Any = root
        key: Any = 0
        while isinstance(child := parent[key], (dict, list)) and child and self.rng.random() < 0.75:
            parent = child
            key = self.rng.choice(list(child)) if isinstance(child, dict) else self._index(child)
        match self.rng.randrange(4):
            case 0 if parent is not root:
                del parent[key]
            case 1 if isinstance(parent[key], dict):
                parent[key][self.rng.choice(_NAMES)] = copy.deepcopy(self.rng.choice(_ATOMS))
            case 2:
                parent[key] = [parent[key]]
            case _:
                parent[key] = copy.deepcopy(self.rng.choice(_ATOMS))

    def _index(self, values: list[Any]) -> int:
        return self.rng.randrange(len(values))
