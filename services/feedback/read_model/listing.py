"""Listings of examples: kinds, filters and the cursor of cursor paging. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from services.feedback.errors import invalid
from services.feedback.read_model.changes import microseconds
from shared.contracts.events.base import OptionalIdentifier
from shared.errors import FieldError

MAX_TAG = 700
"""Longest name and value of a label."""


class ExampleKind(StrEnum):
    """What is listed: joined rows by their feedback (`any` to `comment`), or training data."""

    any = "any"
    positive = "positive"
    negative = "negative"
    correction = "correction"
    demonstration = "demonstration"
    comment = "comment"
    pair = "pair"
    unpaired = "unpaired"


class ExampleOrder(StrEnum):
    """By time of the interaction; of a pair, by when it was made."""

    newest = "newest"
    oldest = "oldest"


class ExampleFilter(BaseModel):
    """Which examples of a tenant; an absent field filters nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ExampleKind = Field(description="kind of example")
    version: OptionalIdentifier = Field(
        default="", description="version that answered; of a pair, either of the two"
    )
    since: AwareDatetime | None = Field(default=None, description="from this time on")
    until: AwareDatetime | None = Field(default=None, description="before this time")
    category: OptionalIdentifier = Field(default="", description="category of the metadata")
    segment: OptionalIdentifier = Field(default="", description="segment of the metadata")
    locale: OptionalIdentifier = Field(default="", description="locale of the metadata")
    tag: str = Field(
        default="",
        max_length=MAX_TAG,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="other label of the metadata, `name=value`, or `name` for any value",
    )
    order: ExampleOrder = Field(default=ExampleOrder.newest, description="newest or oldest first")

    def bounds_us(self) -> tuple[int, int]:
        """First and last microsecond that are listed."""
        since = 0 if self.since is None else microseconds(self.since)
        until = 2**62 if self.until is None else microseconds(self.until) - 1
        return since, until

    def digest(self) -> str:
        """What a cursor keeps of the filter, to be used with no other one."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class ExamplePlace(NamedTuple):
    """Place of an example in its listing; it never changes, so pages neither skip nor repeat."""

    at_us: int
    name: str


def encode_cursor(place: ExamplePlace, wanted: ExampleFilter) -> str:
    """The cursor of the page that begins behind `place`."""
    packed = orjson.dumps([place.at_us, place.name, wanted.digest()])
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode_cursor(cursor: str, wanted: ExampleFilter) -> ExamplePlace:
    """The place that a cursor stands for.

    Raises:
        Invalid: it is none that this service gave out, or it belongs to other filters.

    """
    try:
        packed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        at_us, name, digest = orjson.loads(packed)
        place = ExamplePlace(int(at_us), str(name))
    except (ValueError, TypeError, binascii.Error):
        rule = "is no cursor of this service"
        raise _bad_cursor(rule, "send the `next` of the page before, or leave it out") from None
    if digest != wanted.digest():
        rule = "belongs to other filters"
        raise _bad_cursor(rule, "send the filters of the page before, or leave the cursor out")
    return place


def window_starts(started_at: datetime) -> dict[str, datetime]:
    """Starts of the quality windows that an interaction falls into, by window."""
    second = int(started_at.timestamp())
    return {
        name: datetime.fromtimestamp(second - second % length, started_at.tzinfo)
        for name, length in (("1m", 60), ("5m", 300), ("1h", 3600), ("1d", 86_400))
    }


def _bad_cursor(rule: str, remedy: str) -> Exception:
    return invalid([FieldError("cursor", rule, remedy)])
