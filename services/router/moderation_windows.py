"""Stream behind the moderation endpoint: a window of text leaves once the endpoint has seen it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from services.router.answer_texts import answer_texts
from services.router.fields import CHOICES, Endpoint
from services.router.filter_rules import FilterFindings
from services.router.filtered_streams import refusal_event
from services.router.moderation_endpoint import ModerationEndpoint

WINDOW = 1_000
"""Characters of an answer's new text that are judged together."""
CONTEXT = 500
"""Characters before a window that are judged with it, so that no sentence is seen in halves only."""
MAX_HELD = 256 * 1024
"""Bytes of events after which a window is judged, however little text they have."""

Channel = tuple[str, str]
"""Choice or item, and field: texts of different ones come mixed."""


class ModerationWindows:
    """Holds a stream's events back by windows of text."""

    def __init__(
        self, endpoint: ModerationEndpoint, findings: FilterFindings, api: Endpoint
    ) -> None:
        """`findings` are the stream's: where its rules have refused it, nothing is asked."""
        self._endpoint = endpoint
        self._findings = findings
        self._api = api
        self._held = bytearray()
        self._pending: dict[Channel, str] = {}
        self._context: dict[Channel, str] = {}
        self._choices: set[int] = set()

    async def feed(self, events: bytes) -> bytes:
        """Take whole events; returns those that may go to the client, or the refusal."""
        if self._findings.blocked:
            self._held.clear()
            return events
        self._held += events
        for value in _values(events):
            self._choices |= _choices(value)
            for channel, text in _texts(value):
                self._pending[channel] = self._pending.get(channel, "") + text
        full = sum(map(len, self._pending.values())) >= WINDOW or len(self._held) >= MAX_HELD
        return await self._look() if full else b""

    async def finish(self, events: bytes) -> bytes:
        """Take the last events; returns those that are left, or the refusal."""
        released = await self.feed(events)
        return released if self._findings.blocked else released + await self._look()

    async def _look(self) -> bytes:
        seen = {name: self._context.get(name, "") + text for name, text in self._pending.items()}
        await self._endpoint.judge(list(seen.values()), self._findings)
        self._context |= {name: text[-CONTEXT:] for name, text in seen.items()}
        self._pending.clear()
        held, self._held = bytes(self._held), bytearray()
        if not self._findings.blocked:
            return held
        if self._api not in CHOICES:
            return b""  # the relay ends such a stream by an error
        *_, last = {}, *_values(held)
        return refusal_event(last, self._choices or {0})


def _texts(value: dict[str, Any]) -> Iterator[tuple[Channel, str]]:
    item = str(value.get("output_index", value.get("index", 0)))
    if isinstance(value.get("delta"), str):
        yield (item, str(value.get("type"))), value["delta"]
        return
    choices = value.get("choices")
    for choice in choices if isinstance(choices, list) else (value,):
        number = str(choice.get("index", item)) if isinstance(choice, dict) else item
        for holder, key in answer_texts(choice):
            yield (number, str(key)), holder[key]


def _choices(value: dict[str, Any]) -> set[int]:
    """The numbers of the choices that an event goes on with."""
    choices = value.get("choices")
    found = [one.get("index") for one in choices or () if isinstance(one, dict)]
    return {number for number in found if isinstance(number, int)}


def _values(events: bytes) -> Iterator[dict[str, Any]]:
    for event in events.split(b"\n\n"):
        _, _, data = event.partition(b"data: ")
        value = orjson.loads(data) if data.startswith(b"{") else None
        if isinstance(value, dict):
            yield value
