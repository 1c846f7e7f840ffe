"""The clients' own count of what they sent and got: one of the three counts that must agree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

NO_VERSION = ""


@dataclass
class Tally:
    """Exact counts from the answers that clients saw. `uncertain` is what no answer settled."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    feedback: Counter[tuple[str, str]] = field(default_factory=Counter)
    votes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    uncertain: int = 0

    def answered(self, version: str, outcome: str = "ok", count: int = 1) -> None:
        """The router answered: the version that did, and how it ended for the client."""
        self.requests[version, outcome] += count

    def gave(self, version: str, kind: str) -> None:
        """Feedback was accepted (202) on an answer of this version, not counting repeats."""
        self.feedback[version, kind] += 1

    def voted(self, left: str, right: str, choice: str) -> None:
        """A vote was accepted and its versions were revealed."""
        self.gave(NO_VERSION, "vote")
        if choice == "left":
            self.votes[left, right, "chosen"] += 1
        elif choice == "right":
            self.votes[right, left, "chosen"] += 1
        else:
            first, second = sorted((left, right))
            self.votes[first, second, choice] += 1

    def lost(self) -> None:
        """A call ended without an answer: it may or may not have counted on the other side."""
        self.uncertain += 1

    @property
    def total_requests(self) -> int:
        """All requests with an answer."""
        return sum(self.requests.values())

    @property
    def total_feedback(self) -> int:
        """All accepted feedback, votes included."""
        return sum(self.feedback.values())

    def as_json(self) -> dict[str, Any]:
        """Nested plain dictionaries, sorted by name."""
        return {
            "requests": nested(self.requests),
            "feedback": nested(self.feedback),
            "uncertain": self.uncertain,
        }


def nested(counts: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """{first: {second: count}}, sorted, zeros left out."""
    tree: dict[str, dict[str, int]] = {}
    for (first, second), count in sorted(counts.items()):
        if count:
            tree.setdefault(first, {})[second] = count
    return tree
