"""Panels of dashboards: a title, what they tell, a unit, queries and maybe a target."""

from __future__ import annotations

from dataclasses import dataclass

RATE = "[$__rate_interval]"
REQUESTS = "ratchet_router_requests_total"
WAITS = "ratchet_router_request_duration_seconds"


@dataclass(frozen=True)
class Panel:
    """One graph: queries with their legends; `target` is drawn as a line."""

    title: str
    about: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    target: float | None = None


def panel(
    title: str, about: str, unit: str, *queries: tuple[str, str], target: float | None = None
) -> Panel:
    """A panel with its queries as further arguments."""
    return Panel(title, about, unit, queries, target)


def quantile(share: float, metric: str, *labels: str, selector: str = "") -> str:
    """A quantile of a histogram, by labels."""
    by = ", ".join((*labels, "le"))
    return f"histogram_quantile({share}, sum by ({by}) (rate({metric}_bucket{selector}{RATE})))"


def per_second(metric: str, *labels: str, selector: str = "") -> str:
    """Rate of a counter, summed up by labels."""
    by = f" by ({', '.join(labels)})" if labels else ""
    return f"sum{by} (rate({metric}{selector}{RATE}))"


def by_partition(metric: str, *labels: str) -> str:
    """Rate of a counter of the aggregator: a partition counts once, whoever owned it."""
    inner = ", ".join(("partition", *labels))
    by = f" by ({', '.join(labels)})" if labels else ""
    return f"sum{by} (max by ({inner}) (rate({metric}{RATE})))"
