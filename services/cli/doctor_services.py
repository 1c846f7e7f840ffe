"""Services as `ratchet doctor` looks at them: readiness, engines, the detector of personal data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from services.cli.doctor_findings import READY, TIMEOUT_S, Finding, Look
from services.cli.errors import reason_of
from services.cli.http import fetch
from services.cli.settings import CliSettings

CRASHES = 3
ENGINE = "inference"
DETECTOR_SAMPLE = "Anna Miller moved from Lisbon to Berlin."


def service_look(service: str) -> Look:
    """A look at the readiness of a service, by its name."""

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


def look_at_engines(settings: CliSettings) -> list[Finding]:
    """Adapters and ends of the engine; nothing where it does not answer."""
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


def look_at_detector(settings: CliSettings) -> list[Finding]:
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
