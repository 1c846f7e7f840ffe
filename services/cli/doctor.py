"""`ratchet doctor`: looks at every dependency, topic, key and engine, and says what to do."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import typer

from services.cli.errors import CliError, Exit, reason_of
from services.cli.http import fetch
from services.cli.kafka import READ_TIMEOUT_S, run_with_kafka, with_log, with_view
from services.cli.output import AsJson, print_json, print_table
from services.cli.prometheus import Alert, PrometheusClient
from services.cli.settings import CliSettings, load_settings

if TYPE_CHECKING:
    from shared.contracts.events.api_keys import ApiKeyIssued
    from shared.kafka.log import EventLog
    from shared.kafka.topics import TopicReport

State = Literal["ok", "look", "wrong"]
TIMEOUT_S = 5.0
READY = 200
STALE_SCRAPE_S = 30.0
"""Older samples are no evidence for the judge (RATCHET_ROLLOUT_NO_DATA_AFTER_S)."""
CLOCK_S = 5.0
LAG_RECORDS = 10_000
DISK_FREE = "ratchet_aggregator_volume_free_bytes / (ratchet_aggregator_volume_size_bytes > 0)"
DISK_SHARE = 0.15
KEY_DAYS = 14
CRASHES = 3
MAX_ALERTS = 20
GROUPS = ("ratchet.aggregator", "ratchet.feedback-intake")
"""Consumer groups by the services' defaults; beside them those of engines' bases that have members."""
RULE = "RatchetDeadLetters"
ENGINE = "inference"
DETECTOR_SAMPLE = "Anna Miller moved from Lisbon to Berlin."


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do where it is not well."""

    what: str
    state: State
    detail: str
    remedy: str = ""


Look: TypeAlias = Callable[[CliSettings], list[Finding]]


def doctor(*, as_json: AsJson = False) -> None:
    """Look at Kafka, topics, lag, Redis, Prometheus, disk, services, engines and keys; say what to do.

    Exit 1 where something is wrong; what one should only look at does not count.
    """
    settings = load_settings()
    looks: dict[str, Look] = {"kafka": _kafka, "redis": _redis, "prometheus": _prometheus}
    looks |= {service: _service_look(service) for service in settings.urls}
    looks["engines"] = _engines
    if settings.detector.detector_url:
        looks["detector"] = _detector
    with ThreadPoolExecutor(max_workers=len(looks)) as pool:
        many = pool.map(lambda one: _guarded(one[0], one[1], settings), looks.items())
        found = [finding for findings in many for finding in findings]
    if as_json:
        print_json({"findings": [asdict(one) for one in found]})
    else:
        rows = [(one.what, one.state, one.detail, one.remedy or None) for one in found]
        print_table("Doctor", ("what", "state", "found", "what to do"), rows)
    if any(one.state == "wrong" for one in found):
        raise typer.Exit(Exit.failed)


def _guarded(name: str, look: Look, settings: CliSettings) -> list[Finding]:
    """A dependency that is away is a finding as well."""
    try:
        return look(settings)
    except CliError as error:
        detail, _, remedy = str(error).partition("\n")
        return [Finding(name, "wrong", detail, remedy)]


def _kafka(settings: CliSettings) -> list[Finding]:
    """Topics, lag and keys; where no broker answers, that alone."""
    return [
        *_topics(settings),
        *_guarded("lag", _lag, settings),
        *_guarded("keys", _keys, settings),
    ]


def _topics(settings: CliSettings) -> list[Finding]:
    import asyncio

    from shared.kafka.security import KafkaConnection
    from shared.kafka.topics import apply_topics

    async def work() -> TopicReport:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await apply_topics(
                KafkaConnection.of(settings.kafka),
                tenants=settings.tenants,
                partitions=settings.join_partitions,
                replication=settings.replication,
                dry_run=True,
            )

    return topic_findings(run_with_kafka(settings, work), settings.kafka.kafka_bootstrap)


def topic_findings(report: TopicReport, brokers: str) -> list[Finding]:
    """Topics that are missing or differ from their declaration."""
    found = [Finding("kafka", "ok", f"{brokers} answers")]
    if report.created:
        names = ", ".join(report.created)
        found.append(Finding("topics", "wrong", f"missing: {names}", "ratchet topics apply"))
    found += [
        Finding("topics", "look", line, "change it by kafka-configs.sh, or the declaration")
        for line in report.drift
    ]
    if len(found) == 1:
        found.append(Finding("topics", "ok", f"{len(report.unchanged)} as declared"))
    return found


def _lag(settings: CliSettings) -> list[Finding]:
    from aiokafka import AIOKafkaConsumer
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import GroupCoordinatorNotAvailableError

    from shared.kafka.security import KafkaConnection

    async def work() -> dict[str, int]:
        connection = KafkaConnection.of(settings.kafka)
        admin: Any = AIOKafkaAdminClient(**connection.client_arguments())
        consumer: Any = AIOKafkaConsumer(**connection.client_arguments())
        await connection.start(admin)
        await connection.start(consumer)
        try:
            lags: dict[str, int] = {}
            of_bases: list[str] = []
            with contextlib.suppress(GroupCoordinatorNotAvailableError):
                of_bases = await groups_of_bases(admin)
            for group in (*GROUPS, *of_bases):
                try:
                    offsets = await admin.list_consumer_group_offsets(group)
                except GroupCoordinatorNotAvailableError:
                    continue  # a new cluster, in which no group has committed anything
                if offsets:
                    ends = await consumer.end_offsets(list(offsets))
                    behind = (ends[place] - max(0, at.offset) for place, at in offsets.items())
                    lags[group] = sum(max(0, records) for records in behind)
            return lags
        finally:
            await consumer.stop()
            await admin.close()

    return lag_findings(run_with_kafka(settings, work))


async def groups_of_bases(admin: Any) -> list[str]:
    """Groups of the batch workers that consume now: one of a base that none serves stands still."""
    from shared.kafka.acls import GROUP_PREFIXES

    beginnings = tuple(GROUP_PREFIXES.values())
    named = [name for name, *_ in await admin.list_consumer_groups() if name.startswith(beginnings)]
    answers = await admin.describe_consumer_groups(named) if named else []
    described = [group for answer in answers for group in answer.groups]
    return [name for _, name, _, _, _, members, *_ in described if members]


def lag_findings(lags: dict[str, int]) -> list[Finding]:
    """Consumer groups and how many records they are behind."""
    if not lags:
        remedy = "start aggregator and feedback, if they do not run"
        return [Finding("lag", "look", "no consumer group has committed anything yet", remedy)]
    return [
        Finding(
            f"lag of {group}",
            "look" if lag > LAG_RECORDS else "ok",
            f"{lag} records",
            "more replicas, up to the partitions; see RatchetAggregatorLag in docs/runbooks.md"
            if lag > LAG_RECORDS
            else "",
        )
        for group, lag in sorted(lags.items())
    ]


def _keys(settings: CliSettings) -> list[Finding]:
    from shared.contracts.events.api_keys import ApiKeyIssued
    from shared.contracts.topics import API_KEYS
    from shared.kafka.log import read_to_end

    async def work(log: EventLog) -> list[ApiKeyIssued]:
        found: dict[str, ApiKeyIssued] = {}
        for record in await read_to_end(log, API_KEYS, timeout_s=READ_TIMEOUT_S):
            found.pop(record.key, None)
            if record.value is not None:
                found[record.key] = ApiKeyIssued.model_validate_json(record.value)
        return list(found.values())

    return key_findings(with_log(settings, work), settings.kafka.profile, time.time())


def key_findings(keys: Sequence[ApiKeyIssued], profile: str, now_s: float) -> list[Finding]:
    """Whether anybody may ask, and whose key ends soon. `now_s` is seconds since 1970."""
    ends = {
        key.key_id: (key.expires_at.timestamp() - now_s) / 86_400 for key in keys if key.expires_at
    }
    valid = [key for key in keys if ends.get(key.key_id, 1) > 0]
    if not valid:
        local = profile == "local"
        remedy = "" if local else "ratchet keys create --scope infer --scope feedback"
        detail = "none, and the local profile asks for none" if local else "none: nobody may ask"
        return [Finding("keys", "ok" if local else "wrong", detail, remedy)]
    soon = [
        Finding(
            "keys",
            "look",
            f"{key.key_id} ({key.name or key.tenant}) expires in {ends[key.key_id]:.0f} days",
            f"ratchet keys rotate {key.key_id}",
        )
        for key in valid
        if ends.get(key.key_id, KEY_DAYS + 1) < KEY_DAYS
    ]
    return soon or [Finding("keys", "ok", f"{len(valid)} valid")]


def _redis(settings: CliSettings) -> list[Finding]:
    import asyncio

    states = asyncio.run(with_view(settings, lambda view: view.all()))
    if not states:
        remedy = "ratchet state rebuild, unless no version was ever stable"
        return [Finding("redis", "look", "answers, and holds no routing", remedy)]
    return [Finding("redis", "ok", f"answers; routes {', '.join(one.model for one in states)}")]


def _prometheus(_: CliSettings) -> list[Finding]:
    client = PrometheusClient()
    before = time.time()
    (clock,) = client.query("time()")
    ages = client.query("max by (instance) (time() - timestamp(ratchet_router_spool_bytes))")
    free = client.query(DISK_FREE)
    return [
        Finding("prometheus", "ok", f"{client.url} answers"),
        *clock_findings(clock.value, before, time.time()),
        *scrape_findings([one.value for one in ages]),
        *disk_findings({one.labels.get("instance", ""): one.value for one in free}),
        *rule_findings(client.rules()),
        *alert_findings(client.firing()),
    ]


def _detector(settings: CliSettings) -> list[Finding]:
    """Whether the analyzer of personal data finds anything in a text of ours, in each language."""
    from shared.credentials import CredentialsUnreadable

    asked = settings.detector
    body: dict[str, Any] = {"text": [DETECTOR_SAMPLE], "score_threshold": asked.detector_score}
    if asked.detector_entities:
        body["entities"] = asked.detector_entities
    found: list[Finding] = []
    for language in asked.detector_languages:
        try:
            status, text = fetch(
                replace(settings, api_key=""),  # which is for the services alone
                f"{asked.detector_url}/analyze",
                method="POST",
                body={**body, "language": language},
                headers=asked.detector_headers(),
                timeout_s=TIMEOUT_S,
            )
        except (OSError, CredentialsUnreadable) as error:
            status, text = 0, str(error)
        found.append(detector_finding(language, status, text))
    return found


def detector_finding(language: str, status: int, text: str) -> Finding:
    """What the analyzer said to a text with a name and a city; status 0 where it said nothing."""
    from shared.http.detector import findings_of

    what = f"detector, {language}"
    try:
        if status != READY:
            raise ValueError(f"{status or 'no answer'}: {text[:200]}")
        (findings,) = findings_of(json.loads(text), [DETECTOR_SAMPLE])
    except ValueError as error:
        remedy = (
            "an analyzer with Presidio's POST /analyze for this language at RATCHET_DETECTOR_URL"
        )
        return Finding(what, "wrong", str(error), remedy)
    if not findings:
        remedy = "load a model for the language, or look at RATCHET_DETECTOR_ENTITIES and _SCORE"
        return Finding(what, "look", "answers, and finds neither a name nor a city", remedy)
    kinds = ", ".join(sorted({one.entity for one in findings}))
    return Finding(what, "ok", f"answers, and finds {kinds}")


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


def disk_findings(free: Mapping[str, float]) -> list[Finding]:
    """Aggregators whose volume fills up, by their instance; `free` is a share of its size."""
    remedy = "grow the volume (docs/operations.md), as RatchetAggregatorVolumeFilling says"
    full = [
        Finding("disk", "wrong", f"the aggregator {instance} has {share:.0%} left", remedy)
        for instance, share in sorted(free.items())
        if share < DISK_SHARE
    ]
    if full or not free:
        return full
    return [Finding("disk", "ok", f"the aggregators' volumes have {min(free.values()):.0%} left")]


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


def _service_look(service: str) -> Look:
    def look(settings: CliSettings) -> list[Finding]:
        url = settings.url(service)
        try:
            status, text = fetch(settings, f"{url}/readyz", timeout_s=TIMEOUT_S)
        except OSError as error:
            remedy = f"start it, or set RATCHET_{service.upper()}_URL; its log says why it ended"
            return [Finding(service, "wrong", f"{url}: {reason_of(error)}", remedy)]
        return [service_finding(service, url, status, text)]

    return look


def service_finding(service: str, url: str, status: int, text: str) -> Finding:
    """What a service's /readyz says."""
    try:
        checks = dict(json.loads(text)["checks"])
    except (ValueError, KeyError, TypeError):
        checks = {"answer": f"status {status}"}
    wrong = "; ".join(f"{name}: {said}" for name, said in checks.items() if said != "ok")
    if status == READY:
        return Finding(service, "ok", f"{url} is ready")
    return Finding(service, "wrong", wrong or f"status {status}", "remove what its check names")


def _engines(settings: CliSettings) -> list[Finding]:
    url = settings.url(ENGINE)
    try:
        _, text = fetch(settings, f"{url}/v1/adapters", timeout_s=TIMEOUT_S)
        adapters = [dict(one) for one in json.loads(text)["adapters"]]
        _, metrics = fetch(settings, settings.metrics_url(ENGINE), timeout_s=TIMEOUT_S)
    except (OSError, ValueError, KeyError, TypeError):
        return []  # the service's own finding says it
    return engine_findings(adapters, metrics)


def engine_findings(adapters: Iterable[dict[str, Any]], metrics: str) -> list[Finding]:
    """Versions that an engine has not loaded, and engines that end again and again."""
    from services.cli.status import total

    found = [
        Finding(
            f"adapter {one.get('version')}",
            "wrong" if one.get("state") == "refused" else "look",
            f"{one.get('state')}: {one.get('reason') or 'no reason given'}",
            "ratchet adapters list; see RatchetAdapterRefused in docs/runbooks.md",
        )
        for one in adapters
        if one.get("state") not in ("ready", "elsewhere")
    ]
    asked = total(metrics, 'ratchet_inference_engine_ends_total{cause="asked"}') or 0
    ends = (total(metrics, "ratchet_inference_engine_ends_total") or 0) - asked
    if ends >= CRASHES:
        detail = f"the engine ended {ends:.0f} times by itself since the agent started"
        remedy = "the inference log says how; see RatchetEngineCrashLoop in docs/runbooks.md"
        found.append(Finding("engine", "wrong", detail, remedy))
    return found
