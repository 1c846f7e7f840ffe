"""Names that a reader finds: one meaning for each class, and the field's terms in the modules.

Left out of the first are pytest's `Test…` classes: a suite that runs on a twin and on the real
thing has the same name in both files.
"""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("shared", "services", "demo", "benchmarks", "deploy", "tests")


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("Test"):
                    places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert len(places) > 300, "the scan found too few classes to mean anything"
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("term", "module"),
    [
        ("backpressure", "services/router/client_send.py"),
        ("circuit breaker", "services/feedback/circuit_breaker.py"),
        ("fencing token", "services/rollout/leadership.py"),
        ("load balancing", "services/router/engines.py"),
        ("offset gap", "services/aggregator/offset_gaps.py"),
        ("sticky", "services/router/assignment.py"),
        ("watchdog", "services/router/watchdog.py"),
        ("exponential back-off", "shared/backoff.py"),
        ("dead-letter", "shared/kafka/deadletters.py"),
        ("leader election", "services/rollout/leadership.py"),
        ("reconcile", "services/inference/agent.py"),
    ],
)
def test_a_search_for_the_fields_term_finds_the_module(term: str, module: str) -> None:
    first_line = (ROOT / module).read_text().partition("\n")[0]
    assert term in first_line.lower()
