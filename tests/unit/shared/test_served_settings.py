"""What the engine gets of a client's request under a version's settings."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from shared.contracts.events.versions import RequestDefaults, ServedSettings, SettingsRecord
from shared.registry.served_settings import Endpoint, apply_settings
from tests.support.rollouts import settings_record

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
FLAT_TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}}


def version(adapter_of: str = "", **settings: Any) -> SettingsRecord:
    defaults = {
        name: settings.pop(name) for name in list(settings) if name in RequestDefaults.model_fields
    }
    served = ServedSettings(defaults=RequestDefaults(**defaults), **settings)
    return settings_record("polite", served, base="starter", adapter_of=adapter_of)


def engine_fields(record: SettingsRecord, endpoint: Endpoint, **fields: Any) -> dict[str, Any]:
    before = copy.deepcopy(fields)
    found, _ = apply_settings(record, endpoint, fields)
    assert fields == before, "the client's request is kept as it came"
    return found


def test_a_version_without_settings_changes_nothing_but_the_model() -> None:
    fields, applied = apply_settings(version(), "chat", CHAT)
    assert fields == CHAT
    assert applied.model_dump() == {"engine_model": "starter"}
    assert apply_settings(version(adapter_of="v1"), "chat", CHAT)[1].engine_model == "v1"


def test_the_system_prompt_stands_before_the_clients_in_one_turn() -> None:
    polite = version(system="Be polite.")
    user = {"role": "user", "content": "Hi"}
    assert engine_fields(polite, "chat", messages=[user]) == {
        "messages": [{"role": "system", "content": "Be polite."}, user]
    }
    theirs = {"role": "developer", "content": "Be brief."}
    assert engine_fields(polite, "chat", messages=[theirs, user])["messages"] == [
        {"role": "developer", "content": "Be polite.\n\nBe brief."},
        user,
    ]
    parts = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert engine_fields(polite, "chat", messages=[parts, user])["messages"][0]["content"] == [
        {"type": "text", "text": "Be polite.\n\n"},
        {"type": "text", "text": "Be brief."},
    ]


def test_the_system_prompt_replaces_every_one_of_the_client() -> None:
    polite = version(system="Be polite.", system_rule="replace")
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "developer", "content": "Be rude."},
    ]
    assert engine_fields(polite, "chat", messages=turns)["messages"] == [
        {"role": "system", "content": "Be polite."},
        {"role": "user", "content": "Hi"},
    ]


def test_responses_have_the_system_prompt_as_instructions() -> None:
    before, replace = version(system="Be polite."), version(system="A.", system_rule="replace")
    assert engine_fields(before, "responses", input="Hi") == {
        "input": "Hi",
        "instructions": "Be polite.",
    }
    given = engine_fields(before, "responses", input="Hi", instructions="Be brief.")
    assert given["instructions"] == "Be polite.\n\nBe brief."
    items = [{"role": "system", "content": "B"}, {"role": "user", "content": "Hi"}]
    assert engine_fields(replace, "responses", input=items, instructions="C") == {
        "input": items[1:],
        "instructions": "A.",
    }


def test_a_raw_prompt_gets_sampling_alone() -> None:
    record = version(system="Be polite.", tools=[TOOL], temperature=0.2)
    fields, applied = apply_settings(record, "completions", {"prompt": "Hi"})
    assert fields == {"prompt": "Hi", "temperature": 0.2}
    assert (applied.system_sha256, applied.fields) == ("", ("temperature",))


def test_what_the_client_sent_counts_unless_the_version_has_precedence() -> None:
    sent = {**CHAT, "temperature": 0.0, "top_p": None, "max_completion_tokens": 9}
    values: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 50}
    client = apply_settings(version(**values), "chat", sent)
    assert client[0] == {**sent, "top_p": 0.9}
    assert client[1].fields == ("top_p",)
    ours = apply_settings(version(precedence="version", **values), "chat", sent)
    assert ours[0] == {**CHAT, **values}
    assert ours[1].fields == ("temperature", "top_p", "max_tokens")


def test_a_choice_of_tools_goes_with_the_tools_it_is_of() -> None:
    record = version(tools=[TOOL], tool_choice="required")
    assert engine_fields(record, "chat", **CHAT)["tool_choice"] == "required"
    own = {**CHAT, "tools": [{"type": "function", "function": {"name": "mine"}}]}
    assert engine_fields(record, "chat", **own) == own
    assert engine_fields(record, "chat", **CHAT, tool_choice="none") == {
        **CHAT,
        "tools": [TOOL],
        "tool_choice": "none",
    }


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_tokens", 50, {"max_output_tokens": 50}),
        ("temperature", 0.5, {"temperature": 0.5}),
        ("tools", [TOOL], {"tools": [FLAT_TOOL]}),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {}}}},
        ),
        (
            "tool_choice",
            {"type": "function", "function": {"name": "look"}},
            {"tool_choice": {"type": "function", "name": "look"}},
        ),
    ],
)
def test_defaults_take_the_form_of_the_responses_api(
    name: str, value: Any, expected: dict[str, Any]
) -> None:
    found = engine_fields(version(**{name: value}), "responses", input="Hi")
    assert found == {"input": "Hi", **expected}


def test_a_form_that_the_client_asked_for_counts_in_the_responses_api() -> None:
    record = version(response_format={"type": "json_object"})
    text = {"format": {"type": "text"}, "verbosity": "low"}
    assert engine_fields(record, "responses", input="Hi", text=text)["text"] == text
    assert engine_fields(record, "responses", input="Hi", text={"verbosity": "low"})["text"] == {
        "verbosity": "low",
        "format": {"type": "json_object"},
    }
