"""ACLs that brokers need, from the topics' declared writers and readers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shared.contracts.topics import intake_topic, load_topics
from shared.kafka.deadletters import REPLAYABLE

CONSUMER_GROUPS = {
    "aggregator": ("ratchet.aggregator",),
    "feedback": ("ratchet.feedback-intake", "ratchet.feedback-erasures"),
    "training": ("ratchet.training",),
}
GROUP_PREFIXES = {"inference": "ratchet.inference."}
"""Services with a group for each base that engines serve: what the names of these begin with."""
PRODUCTS = "products"
"""Writers of the intake topics, each as its own tenant."""
REPLAYING = ("cli", "rollout")
"""Principals that operators replay dead letters by: the command and the console."""
ALL_TOPICS = "ratchet."
"""What the names of all topics begin with."""


class Acl(NamedTuple):
    """One permission as `kafka-acls.sh` takes it."""

    principal: str
    operation: str
    resource: str
    name: str
    pattern: str = "literal"

    def arguments(self) -> str:
        """The arguments of `kafka-acls.sh` that add it."""
        return (
            f"--add --allow-principal {self.principal} --operation {self.operation} "
            f"--{self.resource} {self.name} --resource-pattern-type {self.pattern}"
        )


def required_acls(tenants: tuple[str, ...], *, prefix: str) -> Iterator[Acl]:
    """What each principal needs; nobody needs more.

    Products of a tenant log in as `<prefix>tenant-<tenant>`, and may only write its intake.
    """
    declared = load_topics()
    intakes = {intake_topic(tenant): tenant for tenant in tenants}
    services = {who for topic in declared for who in (*topic.writers, *topic.readers)}
    for topic in (one for each in declared for one in each.for_tenants(tenants)):
        for reader in topic.readers:
            yield from _on_topic(f"User:{prefix}{reader}", "Read", topic.name)
        for writer in topic.writers:
            name = f"tenant-{intakes[topic.name]}" if topic.name in intakes else writer
            yield from _on_topic(f"User:{prefix}{name}", "Write", topic.name)
        if topic.name in REPLAYABLE or topic.name in intakes:
            # A replay of dead letters puts a record back where it came from.
            for operators in REPLAYING:
                yield from _on_topic(f"User:{prefix}{operators}", "Write", topic.name)
    for service, groups in CONSUMER_GROUPS.items():
        for group in groups:
            yield Acl(f"User:{prefix}{service}", "Read", "group", group)
    for service, beginning in GROUP_PREFIXES.items():
        yield Acl(f"User:{prefix}{service}", "Read", "group", beginning, "prefixed")
    for service in sorted(services - {PRODUCTS}):
        # `ratchet topics wait`, by which a pod waits before it starts: a topic that one may not
        # describe is missing.
        yield Acl(f"User:{prefix}{service}", "Describe", "topic", ALL_TOPICS, "prefixed")
    for operation in ("Create", "DescribeConfigs"):
        # `ratchet topics apply` and `diff`
        yield Acl(f"User:{prefix}cli", operation, "topic", ALL_TOPICS, "prefixed")


def _on_topic(principal: str, operation: str, topic: str) -> Iterator[Acl]:
    yield Acl(principal, operation, "topic", topic)
    yield Acl(principal, "Describe", "topic", topic)
