from __future__ import annotations

from typing import Any

import pytest

from shared.contracts.events.training import TrainingMethod
from shared.contracts.events.versions import Lifecycle, record_key, settings_key, state_key
from shared.registry.job_origin import JobRefused, origin_of
from shared.registry.versions import Registry
from tests.support.rollouts import settings_record
from tests.unit.training.builders import record, request, state

V10, V11 = "assistant-v1.0", "assistant-v1.1"


@pytest.fixture
def registry() -> Registry:
    """v1.0 is stable, v1.1 is not yet."""
    made = Registry()
    for version in (V10, V11):
        made.apply(record_key(version), record(version).model_dump_json().encode())
    made.apply(state_key(V10), state(V10, Lifecycle.stable).model_dump_json().encode())
    return made


def test_a_job_goes_on_from_what_it_names_else_from_the_stable_version(registry: Registry) -> None:
    for parent, version in (("", V10), (V11, V11)):
        found = origin_of(request(parent=parent), registry)
        assert (found.parent and found.parent.version, found.base) == (version, "base")
    first = origin_of(request(model="new", method=TrainingMethod.sft, base="other"), registry)
    assert (first.parent, first.base) == (None, "other")


@pytest.mark.parametrize("algorithm", ["", "kto", "grpo"])
def test_votes_on_the_model_as_it_is_begin_an_adapter_on_its_base(algorithm: str) -> None:
    registry = Registry()
    registry.apply(settings_key(V10), settings_record(V10).to_json())
    registry.apply(state_key(V10), state(V10, Lifecycle.stable).model_dump_json().encode())
    found = origin_of(request(algorithm=algorithm), registry)
    assert (found.parent, found.base) == (None, "base")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"parent": "nobody"}, "parent: nobody is no version of assistant"),
        ({"model": "other", "parent": V10}, f"parent: {V10} is no version of other"),
        ({"model": "asistant"}, "no version at all (there are models assistant)"),
        ({"model": "asistant", "algorithm": "kto"}, "give a hub id or path"),
        ({"base": "newer"}, "ratchet versions rebase"),
        ({"version": V11}, "names are never reused"),
        ({"version": "assistant"}, "it is the model's"),
        ({"model": "new", "method": TrainingMethod.sft}, "give a hub id or path"),
        ({"model": "new", "method": TrainingMethod.reward}, "give a hub id or path"),
    ],
)
def test_what_cannot_be_done_is_refused_with_field_and_remedy(
    registry: Registry, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(JobRefused) as refused:
        origin_of(request(**fields), registry)
    assert words in str(refused.value)
