"""Writes what the chart makes KafkaTopics and KafkaUsers of: python -m deploy.k8s.strimzi.

The topics are those of `shared/contracts/topics`, the users' rights those that `ratchet kafka acls`
prints. `{tenant}` in a name stands for each tenant.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shared.contracts.topics import load_topics
from shared.kafka.acls import Acl, required_acls

DECLARATIONS = Path(__file__).parent / "helm" / "ratchet" / "files" / "strimzi.json"
ANY_TENANT = "any-tenant"
"""A tenant's name while the rules are asked for, which take none with braces."""
PATTERN_TYPES = {"literal": "literal", "prefixed": "prefix"}


def declarations() -> dict[str, Any]:
    """The topics, and by user the rules of its ACL in Strimzi's words."""
    return {
        "topics": [
            {"name": topic.name, "partitions": topic.partitions, "config": topic.config}
            for topic in load_topics()
        ],
        "users": users(required_acls((ANY_TENANT,), prefix="")),
    }


def users(acls: Iterable[Acl]) -> dict[str, list[dict[str, Any]]]:
    """ACLs by the user's name, one rule for each resource."""
    operations: defaultdict[tuple[str, str, str, str], set[str]] = defaultdict(set)
    for acl in acls:
        user, name = (
            text.replace(ANY_TENANT, "{tenant}")
            for text in (acl.principal.removeprefix("User:"), acl.name)
        )
        operations[user, acl.resource, name, PATTERN_TYPES[acl.pattern]].add(acl.operation)
    found: dict[str, list[dict[str, Any]]] = {}
    for (user, resource, name, pattern), allowed in sorted(operations.items()):
        rule = {"type": resource, "name": name, "patternType": pattern}
        found.setdefault(user, []).append({"resource": rule, "operations": sorted(allowed)})
    return found


def text() -> str:
    """The file of the chart."""
    return json.dumps(declarations(), indent=1) + "\n"


def main() -> int:
    """Write the file."""
    DECLARATIONS.write_text(text())
    print(DECLARATIONS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
