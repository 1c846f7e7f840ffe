"""Three counts side by side: the clients' own tally, the recount of the log, and the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from demo.recount import LogRecount
from demo.tally import Tally


@dataclass
class Exported:
    """What router and aggregator export, added up over partitions and arms."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    feedback: Counter[tuple[str, str]] = field(default_factory=Counter)
    votes: Counter[tuple[str, str, str]] = field(default_factory=Counter)


@dataclass(frozen=True)
class CountRow:
    """One figure counted three ways."""

    what: str
    clients: int
    log: int
    metrics: int

    @property
    def agree(self) -> bool:
        """Whether all three say the same."""
        return self.clients == self.log == self.metrics


def exported(router: str, aggregator: str) -> Exported:
    """Reads the two services' own /metrics texts.

    A counter of several instances needs `sum(max by partition)`; the demo has one of each.
    """
    found = Exported()
    for labels, value in _samples(router, "ratchet_router_requests_total"):
        found.requests[labels["version"], labels["outcome"]] += value
    for labels, value in _samples(aggregator, "ratchet_feedback_total"):
        found.feedback[labels["version"], labels["type"]] += value
    for labels, value in _samples(aggregator, "ratchet_votes_total"):
        first, second = labels["chosen"], labels["rejected"]
        if labels["result"] != "chosen":
            first, second = sorted((first, second))
        found.votes[first, second, labels["result"]] += value
    return found


def compare(tally: Tally, log: LogRecount, metrics: Exported) -> list[CountRow]:
    """Every count that the three share: answers by version, feedback by version and type, votes."""
    rows: list[CountRow] = []
    answered = {key for key in (*tally.requests, *log.requests) if key[1] == "ok"}
    for version, outcome in sorted(answered):
        key = (version, outcome)
        rows.append(
            CountRow(
                f"answers by {version}",
                tally.requests[key],
                log.requests[key],
                metrics.requests[key],
            )
        )
    for key in sorted({*tally.feedback, *log.feedback, *metrics.feedback}):
        version, kind = key
        what = f"{kind} on {version}" if version else f"{kind}s"
        rows.append(CountRow(what, tally.feedback[key], log.feedback[key], metrics.feedback[key]))
    for key in sorted({*tally.votes, *log.votes, *metrics.votes}):
        first, second, result = key
        what = (
            f"votes {first} over {second}"
            if result == "chosen"
            else f"{result} votes {first}, {second}"
        )
        rows.append(CountRow(what, tally.votes[key], log.votes[key], metrics.votes[key]))
    return [row for row in rows if row.clients or row.log or row.metrics]


def _samples(text: str, name: str) -> Iterator[tuple[dict[str, str], int]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                yield sample.labels, int(sample.value)
