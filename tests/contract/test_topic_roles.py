"""Writers and readers in `contracts/topics/*.yaml` are those that the code has.

Roles come from the syntax tree: a topic's constant as argument of a call that writes or that reads.
A class or function of `shared` that does so gives its roles to every service that imports it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.contracts import topics
from shared.contracts.topics import Topic, load_topics

ROOT = Path(__file__).parents[2]
SERVICES = sorted(path.parent.name for path in ROOT.glob("services/*/__init__.py"))
INTAKE = "ratchet.feedback-intake.{tenant}.v1"
OUTSIDE = {(INTAKE, "write", "products")}
"""Roles of programs that are not in this repository."""
CALLS = {
    **dict.fromkeys(("append", "publish", "NewRecord", "event_record", "Output"), "write"),
    **dict.fromkeys(
        (
            "tail",
            "read_to_end",
            "records_to_end",
            "read_events",
            "ConsumerLoop",
            "Follower",
            "__init__",
        ),
        "read",
    ),
}
"""What a call does with the topics among its arguments; `__init__` is a Follower's."""
NAMES = {
    "intake_topic": INTAKE,
    **{name: value for name, value in vars(topics).items() if name.isupper()},
}

Role = tuple[str, str]
"""A topic's name, and `read`, `write` or `name`: its name is compared, which needs no right."""


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of each `from module import name`, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def roles_in(tree: ast.AST, names: set[str]) -> set[Role]:
    """The roles that uses of the constants `names` below `tree` show."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found: set[Role] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name) or node.id not in names:
            continue
        topic = NAMES[node.id]
        child, parent = node, parents.get(node)
        if isinstance(parent, ast.Call) and parent.func is child:  # intake_topic(…)
            child, parent = parent, parents.get(parent)
        while isinstance(parent, ast.List | ast.Tuple | ast.ListComp | ast.keyword):
            child, parent = parent, parents.get(parent)
        match parent:
            case ast.Call(func=ast.Name(id=call) | ast.Attribute(attr=call)) if call in CALLS:
                found.add((topic, CALLS[call]))
            case ast.Dict(keys=keys) if child in keys:  # readable models by topic
                found.add((topic, "read"))
            case ast.Compare() if topic == topics.AGGREGATOR_CHANGELOG:  # Faust's own, by name
                found |= {(topic, "read"), (topic, "write")}
            case ast.Compare():
                found.add((topic, "name"))
            case _:
                pass
    return found


def constants_of(tree: ast.AST) -> set[str]:
    return {name for module, name in imported(tree) if module == topics.__name__} & set(NAMES)


def shared_roles() -> dict[tuple[str, str], set[Role]]:
    """Roles of each class and function of `shared`, by module and name; of what it calls, too."""
    found: dict[tuple[str, str], set[Role]] = {}
    calls: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for path in (ROOT / "shared").rglob("*.py"):
        tree = ast.parse(path.read_text())
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        constants = constants_of(tree)
        definitions = {
            node.name: node
            for node in tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        known = {name: (module, name) for name in definitions}
        known |= {name: (source, name) for source, name in imported(tree)}
        for name, node in definitions.items():
            found[module, name] = roles_in(node, constants)
            used = {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}
            calls[module, name] = {known[one] for one in used & set(known)}
    while True:
        grown = {
            name: roles.union(*(found.get(one, set()) for one in calls[name]))
            for name, roles in found.items()
        }
        if grown == found:
            return found
        found = grown


SHARED = shared_roles()


def service_roles(service: str) -> set[Role]:
    found: set[Role] = set()
    classified: set[str] = set()
    used: set[str] = set()
    for path in (ROOT / "services" / service).rglob("*.py"):
        tree = ast.parse(path.read_text())
        constants = constants_of(tree)
        roles = roles_in(tree, constants)
        used |= {NAMES[name] for name in constants}
        classified |= {topic for topic, _ in roles}
        found |= roles.union(*(SHARED.get(item, set()) for item in imported(tree)))
    found = {(topic, role) for topic, role in found if role != "name"}
    assert used <= classified, f"{service}: a use of {used - classified} that CALLS does not name"
    return found


def from_code() -> dict[str, set[tuple[str, str]]]:
    """(role, service) by topic."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for service in SERVICES:
        for topic, role in service_roles(service):
            found[topic].add((role, service))
    return found


CODE = from_code()


@pytest.mark.parametrize("topic", load_topics(), ids=lambda topic: topic.name)
def test_writers_and_readers_are_the_codes(topic: Topic) -> None:
    declared = {("write", name) for name in topic.writers} | {
        ("read", name) for name in topic.readers
    }
    outside = {(role, name) for place, role, name in OUTSIDE if place == topic.name}
    assert declared == CODE[topic.name] | outside


def test_every_topic_in_use_is_declared() -> None:
    assert set(CODE) <= {topic.name for topic in load_topics()}


@pytest.mark.parametrize(
    ("code", "roles"),
    [
        ("log.publish(VERSIONS, key=k)", {"write"}),
        ("NewRecord(topic=VERSIONS, key=k)", {"write"}),
        ("event_record(VERSIONS, event, key=k)", {"write"}),
        ("log.tail(API_KEYS, VERSIONS)", {"read"}),
        ("super().__init__(log, (VERSIONS,), fold)", {"read"}),
        ("ConsumerLoop(topics=[VERSIONS])", {"read"}),
        ("if topic == VERSIONS: pass", {"name"}),
    ],
)
def test_roles_follow_from_calls(code: str, roles: set[str]) -> None:
    assert {role for _, role in roles_in(ast.parse(code), {"VERSIONS"})} == roles


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_reads_or_writes_people_s_texts_past_their_encryption(service: str) -> None:
    for path in (ROOT / "services" / service).rglob("*.py"):
        tree = ast.parse(path.read_text())
        calls = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        if "KafkaLog" in calls:
            assert calls & {"encrypting", "decrypting", "PersonalTexts"}, path
