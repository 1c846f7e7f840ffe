"""The contracts hold together: topics, classes, schemas, releases and examples."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.contracts import topics as topic_names
from shared.contracts.catalogue import BY_SCHEMA, EVENTS, INTAKE, events_of
from shared.contracts.compatibility import incompatibilities
from shared.contracts.events.base import Event
from shared.contracts.events.feedback import FeedbackSubmitted
from shared.contracts.generate import CONTRACTS, RELEASED, generations, stale
from shared.contracts.topics import load_topics

EXAMPLES = sorted((CONTRACTS / "examples").glob("*.json"))
STORED = [path for path in EXAMPLES if path.stem.partition("+")[0] not in INTAKE]


def test_generated_files_are_fresh() -> None:
    assert not stale(), "run: make contracts"


def test_every_event_travels_on_a_declared_topic() -> None:
    names = {event.__name__ for event in BY_SCHEMA.values()}
    assert names == {event.__name__ for topic in load_topics() for event in events_of(topic)}
    assert len(BY_SCHEMA) == len(names) == len(EVENTS) + len(INTAKE)


def test_every_topic_constant_is_declared() -> None:
    constants = {
        value
        for name, value in vars(topic_names).items()
        if name.isupper() and isinstance(value, str)
    }
    declared = {topic.name for topic in load_topics()}
    assert declared - {"ratchet.feedback-intake.{tenant}.v1"} == constants


def test_topics_that_must_meet_are_joined() -> None:
    joined = {topic.name for topic in load_topics() if topic.partitions == "join"}
    assert joined == {
        topic_names.INTERACTIONS,
        topic_names.FEEDBACK,
        topic_names.RATED,
        topic_names.TICKS,
        topic_names.AGGREGATOR_CHANGELOG,
    }
    (rollouts,) = [topic for topic in load_topics() if topic.name == topic_names.ROLLOUTS]
    assert rollouts.partitions == 1, "an offset is a leader's token only in a single partition"


@pytest.mark.parametrize("generation", generations(), ids=lambda path: path.name)
def test_every_release_is_compatible(generation: Path) -> None:
    for path in generation.glob("*.json"):
        current = BY_SCHEMA[path.stem].model_json_schema()
        assert not incompatibilities(json.loads(path.read_text()), current), path.name


def test_something_is_released() -> None:
    assert {path.stem for path in (RELEASED / "1").glob("*.json")} <= set(BY_SCHEMA)
    assert len(generations()) >= 1


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_read_and_fits_every_release(path: Path) -> None:
    name = path.stem.partition("+")[0]
    example = json.loads(path.read_text())
    event = BY_SCHEMA[name].model_validate(example)
    if name not in INTAKE:  # products write those
        assert BY_SCHEMA[name].model_validate_json(event.to_json()) == event
        example = json.loads(event.to_json())
    for generation in generations():
        released = generation / f"{name}.json"
        if released.exists():
            jsonschema.validate(example, json.loads(released.read_text()))


def test_every_event_has_an_example() -> None:
    assert {path.stem.partition("+")[0] for path in EXAMPLES} == set(BY_SCHEMA)


SCHEMA: dict[str, Any] = FeedbackSubmitted.model_json_schema()


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda s: s["properties"].pop("user_id"), ""),
        (lambda s: s["properties"].update(new={"type": "string"}), ""),
        (lambda s: s["properties"]["user_id"].update(description="other words"), ""),
        (lambda s: s["required"].append("user_id"), "became required"),
        (lambda s: s["required"].remove("tenant"), "no longer required"),
        (lambda s: s["properties"]["revision"].update(type="string"), "type changed"),
        (lambda s: s["properties"]["revision"].update(maximum=3), "maximum changed"),
        (lambda s: s["$defs"]["FeedbackType"]["enum"].append("stars"), "enum changed"),
        (lambda s: s["properties"]["value"]["anyOf"].pop(), "alternatives"),
        (
            lambda s: s["$defs"]["Context"]["properties"]["labels"].update(
                additionalProperties={"type": "integer"}
            ),
            "type changed",
        ),
    ],
)
def test_compatibility_names_what_breaks(change: Any, phrase: str) -> None:
    changed = copy.deepcopy(SCHEMA)
    change(changed)
    for found in (incompatibilities(SCHEMA, changed), incompatibilities(changed, SCHEMA)):
        assert bool(found) == bool(phrase)
    if phrase:
        assert any(phrase in line for line in incompatibilities(SCHEMA, changed))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(STORED), st.text(min_size=1), st.integers())
def test_readers_ignore_what_they_do_not_know(path: Path, name: str, value: int) -> None:
    model: type[Event] = BY_SCHEMA[path.stem.partition("+")[0]]
    example = json.loads(path.read_text())
    known = model.model_validate(example)
    assert model.model_validate({f"x-{name}": value, **example}) == known
