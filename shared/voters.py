"""Voters: hashed, bounded labels for the tenants and API keys whose traffic a rollout is judged by.

A process names the first few of each kind by a hash of their own; the rest share a few labels, by
the same hash. So the label sets stay bounded whatever keys are issued, and who leaves one voter out
knows which shared label may hold it on another process. Pure.
"""

# pyright: strict
from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Literal

VoterKind = Literal["tenant", "key"]
KINDS: tuple[VoterKind, ...] = ("tenant", "key")
MAX_OWN = 8
"""Voters of a kind with a label of their own in a process."""
SHARED = 4
"""Labels that the others share."""
LABELS_CACHED = 1_024
_SHARED_PREFIX = "shared-"


@lru_cache(maxsize=LABELS_CACHED)
def voter_label(name: str) -> str:
    """A voter's own label: BLAKE2b-32 of its name in UTF-8, in hex."""
    return blake2b(name.encode(), digest_size=4).hexdigest()


def shared_label(label: str) -> str:
    """The label that a voter with this own label has where its process has no room; "" for none."""
    return "" if label.startswith(_SHARED_PREFIX) else f"{_SHARED_PREFIX}{int(label, 16) % SHARED}"


class VoterLabels:
    """Labels of one process, given in the order in which voters come."""

    __slots__ = ("_labels", "_names")

    def __init__(self) -> None:
        self._labels: dict[VoterKind, set[str]] = {kind: set() for kind in KINDS}
        self._names: dict[tuple[VoterKind, str], str] = {}

    def label(self, kind: VoterKind, name: str) -> str:
        """The label of a voter by its name: at most `MAX_OWN` + `SHARED` of each kind."""
        known = self._names.get((kind, name))
        if known is not None:
            return known
        own = voter_label(name)
        label = self.bounded(kind, own)
        if label == own:
            self._names[kind, name] = label
        return label

    def bounded(self, kind: VoterKind, own: str) -> str:
        """The label of a voter by its own one: that, or the shared one where there is no room."""
        if own.startswith(_SHARED_PREFIX):
            return own
        labels = self._labels[kind]
        if own not in labels and len(labels) >= MAX_OWN:
            return shared_label(own)
        labels.add(own)
        return own
