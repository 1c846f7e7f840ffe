"""Prometheus as `ratchet doctor` looks at it: clock, scrapes, disks, rules, alerts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from services.cli.doctor_findings import Finding
from services.cli.prometheus import Alert, PrometheusClient, Sample
from services.cli.settings import CliSettings

STALE_SCRAPE_S = 30.0
"""Older samples are no evidence for the judge (RATCHET_ROLLOUT_NO_DATA_AFTER_S)."""
CLOCK_S = 5.0
DISK_FREE = "ratchet_disk_free_bytes / (ratchet_disk_size_bytes > 0)"
DISK_SHARE = 0.15
MAX_ALERTS = 20
RULE = "RatchetDeadLetters"


def look_at_prometheus(_: CliSettings) -> list[Finding]:
    """What Prometheus says of itself, of disks and of alerts.

    Raises:
        CliError: it gave no answer.

    """
    client = PrometheusClient()
    before = time.time()
    (clock,) = client.query("time()")
    ages = client.query("max by (instance) (time() - timestamp(ratchet_router_spool_bytes))")
    free = client.query(DISK_FREE)
    return [
        Finding("prometheus", "ok", f"{client.url} answers"),
        *clock_findings(clock.value, before, time.time()),
        *scrape_findings([one.value for one in ages]),
        *disk_findings(free),
        *rule_findings(client.rules()),
        *alert_findings(client.firing()),
    ]


def clock_findings(theirs: float, before: float, after: float) -> list[Finding]:
    """Whether Prometheus's clock lies where ours was meanwhile; all in seconds since 1970."""
    off = max(before - theirs, theirs - after, 0.0)
    if off <= CLOCK_S:
        return [Finding("clock", "ok", "Prometheus's and this host's agree")]
    remedy = "set the wrong one right (timedatectl; chronyc tracking)"
    return [Finding("clock", "wrong", f"Prometheus's is {off:.0f} s off this host's", remedy)]


def scrape_findings(ages: Iterable[float]) -> list[Finding]:
    """Whether routers are scraped often enough for the judge; ages in seconds."""
    oldest = max(ages, default=None)
    if oldest is None:
        remedy = "let it scrape every service, every 5 s (podMonitor.enabled in the chart)"
        return [Finding("scrapes", "wrong", "Prometheus knows no router", remedy)]
    if oldest > STALE_SCRAPE_S:
        remedy = "scrape every 5 s: the judge takes nothing older than 30 s"
        return [Finding("scrapes", "wrong", f"a router's is {oldest:.0f} s old", remedy)]
    return [Finding("scrapes", "ok", f"routers' newest samples are {oldest:.0f} s old at most")]


def disk_findings(free: Sequence[Sample]) -> list[Finding]:
    """Services whose volumes fill up, by instance and directory; `free` are shares of the size."""
    if not free:
        remedy = "let it scrape every service (podMonitor.enabled in the chart)"
        return [Finding("disk", "look", "Prometheus knows no service's disk", remedy)]
    full = sorted((_disk(one), one.value) for one in free if one.value < DISK_SHARE)
    if full:
        remedy = "grow the volume or make room, as RatchetDiskFilling in docs/runbooks.md says"
        return [
            Finding("disk", "wrong", f"{disk} has {left:.1%} left", remedy) for disk, left in full
        ]
    services = ", ".join(sorted({one.labels.get("job", "") for one in free}))
    least = min(free, key=lambda one: one.value)
    detail = f"{services}: all have room; least has {_disk(least)}, {least.value:.0%}"
    return [Finding("disk", "ok", detail)]


def _disk(sample: Sample) -> str:
    """The directory of a service, such as `router at 127.0.0.1:8080, data`."""
    job, instance, directory = (
        sample.labels.get(name, "") for name in ("job", "instance", "directory")
    )
    return f"{job} at {instance}, {directory}"


def rule_findings(names: set[str]) -> list[Finding]:
    """Whether the alerting rules are loaded."""
    if RULE in names:
        return [Finding("alerts", "ok", f"{len(names)} rules loaded")]
    remedy = "load deploy/k8s/helm/ratchet/files/rules (prometheusRules.enabled in the chart)"
    return [Finding("alerts", "look", "Ratchet's rules are not loaded", remedy)]


def alert_findings(firing: Sequence[Alert]) -> list[Finding]:
    """Alerts that fire, the first MAX_ALERTS by name, each with its runbook."""
    ordered = sorted(firing, key=lambda one: (one.name, one.summary))
    found = [
        Finding(
            "alert",
            "look",
            f"{one.name} fires: {one.summary}",
            one.runbook or f"docs/runbooks.md, section {one.name}",
        )
        for one in ordered[:MAX_ALERTS]
    ]
    if more := len(ordered) - len(found):
        found.append(Finding("alert", "look", f"{more} more fire", "Prometheus's page of alerts"))
    return found
