"""One name, one meaning: no two classes of the repository share a name.

Left out are pytest's `Test…` classes: a suite that runs on a twin and on the real thing has the
same name in both files.
"""

import ast
from collections import defaultdict
from pathlib import Path

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
