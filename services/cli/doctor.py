"""`ratchet doctor`: looks at every dependency, topic, key and engine, and says what to do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import typer

from services.cli.doctor_findings import Finding, Look, guarded
from services.cli.doctor_kafka import look_at_kafka
from services.cli.doctor_prometheus import look_at_prometheus
from services.cli.doctor_services import look_at_detector, look_at_engines, service_look
from services.cli.errors import Exit
from services.cli.kafka import with_view
from services.cli.output import AsJson, print_json, print_table
from services.cli.settings import CliSettings, load_settings


def doctor(*, as_json: AsJson = False) -> None:
    """Look at Kafka, topics, lag, Redis, Prometheus, disks, services, engines and keys; say what to do.

    Exit 1 where something is wrong; what one should only look at does not count.
    """
    settings = load_settings()
    looks: dict[str, Look] = {
        "kafka": look_at_kafka,
        "redis": _redis,
        "prometheus": look_at_prometheus,
    }
    looks |= {service: service_look(service) for service in settings.urls}
    looks["engines"] = look_at_engines
    if settings.detector.detector_url:
        looks["detector"] = look_at_detector
    with ThreadPoolExecutor(max_workers=len(looks)) as pool:
        many = pool.map(lambda one: guarded(one[0], one[1], settings), looks.items())
        found = [finding for findings in many for finding in findings]
    if as_json:
        print_json({"findings": [asdict(one) for one in found]})
    else:
        rows = [(one.what, one.state, one.detail, one.remedy or None) for one in found]
        print_table("Doctor", ("what", "state", "found", "what to do"), rows)
    if any(one.state == "wrong" for one in found):
        raise typer.Exit(Exit.failed)


def _redis(settings: CliSettings) -> list[Finding]:
    import asyncio

    states = asyncio.run(with_view(settings, lambda view: view.all()))
    if not states:
        remedy = "ratchet state rebuild, unless no version was ever stable"
        return [Finding("redis", "look", "answers, and holds no routing", remedy)]
    return [Finding("redis", "ok", f"answers; routes {', '.join(one.model for one in states)}")]
