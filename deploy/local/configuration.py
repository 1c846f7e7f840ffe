"""Configuration files of the third-party servers, rendered for one stack."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from deploy.local.ports import HOST
from deploy.local.processes import ROOT, Process

RULES = ROOT / "deploy/k8s/helm/ratchet/files/rules"


def kafka_properties(data: Path, ports: Mapping[str, int]) -> str:
    """One KRaft node, broker and controller, on loopback; small enough for a laptop."""
    settings: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.bootstrap.servers": f"{HOST}:{ports['kafka-controller']}",
        "controller.listener.names": "CONTROLLER",
        "listeners": (
            f"PLAINTEXT://{HOST}:{ports['kafka']},CONTROLLER://{HOST}:{ports['kafka-controller']}"
        ),
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": data / "kafka",
        # A typing error in a topic's name must fail, not make a topic.
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 8,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # A single consumer need not wait for others to join its group.
        "group.initial.rebalance.delay.ms": 0,
        "log.cleaner.dedupe.buffer.size": 33_554_432,
        "log.index.size.max.bytes": 1_048_576,
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def redis_conf(data: Path, ports: Mapping[str, int]) -> str:
    """No persistence: everything in Redis is rebuilt from Kafka or may be lost (design §6.7)."""
    return (
        f"bind {HOST}\nport {ports['redis']}\ndaemonize no\n"
        f'dir {data}\nsave ""\nappendonly no\n'
        # The title would overwrite the environment by which a stack knows its own processes.
        "set-proc-title no\n"
        # Views are rebuilt, so a full memory must fail writes rather than drop keys.
        "maxmemory 512mb\nmaxmemory-policy noeviction\n"
    )


def prometheus_yml(
    processes: Mapping[str, Process],
    ports: Mapping[str, int],
    scrape_interval: str,
    targets_file: Path,
    environ: Mapping[str, str],
) -> str:
    """A scrape job for each process with metrics; rules and Alertmanager where present.

    `targets_file` may name further targets while Prometheus runs (see `targets_json`). `environ`
    may move a service's metrics to ports of their own, one for each of its processes.
    """
    targets: dict[tuple[str, str], list[str]] = {}
    for name, process in processes.items():
        for metrics in process.metrics:
            job = (metrics.job or name, metrics.path)
            moved = operations_ports(name, environ) if metrics.port == name else []
            addresses = [f"{HOST}:{port}" for port in moved or [ports[metrics.port]]]
            targets.setdefault(job, []).extend(addresses)
    content: dict[str, object] = {
        "global": {
            "scrape_interval": scrape_interval,
            "scrape_timeout": scrape_interval,
            "evaluation_interval": scrape_interval,
        },
        "rule_files": [str(path) for path in sorted(RULES.glob("*.y*ml"))],
        "scrape_configs": [
            {
                "job_name": job if path == "/metrics" else f"{job}{path.replace('/', '-')}",
                "metrics_path": path,
                "static_configs": [{"targets": addresses}],
            }
            for (job, path), addresses in targets.items()
        ]
        + [{"job_name": "further", "file_sd_configs": [{"files": [str(targets_file)]}]}],
    }
    if "alertmanager" in processes:
        address = f"{HOST}:{ports['alertmanager']}"
        content["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [address]}]}]}
    return yaml.safe_dump(content, sort_keys=False)


def operations_ports(service: str, environ: Mapping[str, str]) -> list[int]:
    """Ports that a service's processes are scraped on in place of its own; none unless set."""
    prefix = f"RATCHET_{service.upper()}"
    first = int(environ.get(f"{prefix}_OPERATIONS_PORT") or 0)
    count = int(environ.get(f"{prefix}_PROCESSES") or 1)
    return [first + number for number in range(count)] if first else []


def targets_json(jobs: Mapping[str, Sequence[str]]) -> str:
    """Further scrape targets: `host:port` by job name."""
    groups = [{"targets": list(t), "labels": {"job": job}} for job, t in jobs.items() if t]
    return json.dumps(groups, indent=2)


def alertmanager_yml() -> str:
    """Alerts are grouped and shown in Alertmanager's own page; a laptop pages nobody."""
    content = {
        "route": {
            "receiver": "page-only",
            "group_by": ["alertname"],
            "group_wait": "1s",
            "group_interval": "10s",
        },
        "receivers": [{"name": "page-only"}],
    }
    return yaml.safe_dump(content, sort_keys=False)
