from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.training import dataset_store, importing
from services.training.dataset_store import read_import
from services.training.errors import BadDataset
from services.training.importing import read_demonstrations, read_labelled, read_pairs
from tests.unit.training.builders import turns


def lines(*rows: object) -> list[bytes]:
    return [json.dumps(row).encode() + b"\n" for row in rows]


ASKED = [{"role": "user", "content": "why?"}]
ANSWERED = [{"role": "assistant", "content": "because of it"}]


def test_both_forms_of_pairs_mean_the_same() -> None:
    ours = {"messages": ASKED, "chosen": "because of it", "rejected": "no idea at all"}
    trl = {
        "prompt": ASKED,
        "chosen": ANSWERED,
        "rejected": [{"role": "assistant", "content": "no idea at all"}],
    }
    first, second = read_pairs(lines(ours, trl))
    assert (first.messages, first.chosen, first.rejected) == (
        second.messages,
        second.chosen,
        second.rejected,
    )
    assert first.meta["source"] == "import"


def test_more_rows_or_bytes_than_an_import_may_have_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = {"messages": ASKED, "chosen": "because of it", "rejected": "no idea at all"}
    monkeypatch.setattr(importing, "MAX_ROWS", 2)
    assert len(read_pairs(lines(row, row))) == 2
    with pytest.raises(BadDataset, match=r"more than 2 rows; split it"):
        read_pairs(lines(row, row, row))
    (tmp_path / "rows.jsonl").write_bytes(lines(row)[0])
    monkeypatch.setattr(dataset_store, "MAX_BYTES", 20)
    with pytest.raises(BadDataset, match=r"has \d+ bytes, 20 at most; split it"):
        read_import(str(tmp_path / "rows.jsonl"), (str(tmp_path),))


def test_preference_file_forms_that_begin_with_the_prompt() -> None:
    """As TRL documents them: with the prompt besides, as text or turns, or without it."""
    answered = {
        "chosen": [*ASKED, *ANSWERED],
        "rejected": [*ASKED, {"role": "assistant", "content": "no idea at all"}],
    }
    pairs = read_pairs(
        lines(answered, {**answered, "prompt": "why?"}, {**answered, "prompt": ASKED})
    )
    for pair in pairs:
        assert pair.messages == turns("why?")
        assert (pair.chosen, pair.rejected) == ("because of it", "no idea at all")


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"messages": [*ASKED, *ANSWERED]}, "the prompt ends with an answer"),
        ({"prompt": "what?", "chosen": [*ASKED, *ANSWERED]}, "is not what chosen and rejected"),
        (
            {"chosen": [{"role": "user", "content": "what?"}, *ANSWERED]},
            "must differ in their last turn alone",
        ),
        ({"chosen": [*ASKED, *ASKED]}, "chosen: the last turn must be the assistant's"),
        ({"chosen": [*ASKED, {"role": "assistant", "content": " "}]}, "chosen: must be a text"),
    ],
)
def test_a_pair_whose_prompt_is_unclear_is_refused(fields: dict[str, object], rule: str) -> None:
    rejected: object = "no idea at all"
    if "chosen" in fields:
        rejected = [*ASKED, {"role": "assistant", "content": "no idea at all"}]
    row = {"chosen": "because of it", "rejected": rejected, **fields}
    with pytest.raises(BadDataset, match=f"line 1: .*{rule}"):
        read_pairs(lines(row))


def test_a_pair_may_say_that_an_answer_was_cut() -> None:
    row = {"messages": ASKED, "chosen": "because of it", "rejected": "no idea at"}
    plain, cut = read_pairs(lines(row, {**row, "rejected_cut": True}))
    assert not plain.rejected_cut
    assert not cut.chosen_cut
    assert cut.rejected_cut
    assert not {"chosen_cut", "rejected_cut"} & plain.row().keys(), "old snapshots stay as they are"
    assert cut.row()["rejected_cut"] is True
    with pytest.raises(BadDataset, match="rejected_cut: must be true or false"):
        read_pairs(lines({**row, "rejected_cut": "no"}))


def test_both_forms_of_demonstrations_mean_the_same() -> None:
    first, second = read_demonstrations(
        lines({"messages": [*ASKED, *ANSWERED]}, {"prompt": ASKED, "completion": ANSWERED})
    )
    assert first.messages == second.messages == turns("why?")
    assert first.answer == second.answer == "because of it"


def test_bad_rows_are_refused_by_their_line_number() -> None:
    good = {"messages": ASKED, "chosen": "because of it", "rejected": "no idea at all"}
    data = lines(good, {"messages": ASKED, "chosen": 3, "rejected": "x"})
    data += [b"\n", b"{broken\n", b"[1]\n"]
    with pytest.raises(BadDataset) as refused:
        read_pairs(data)
    said = str(refused.value)
    assert "line 2: chosen: must be a text" in said
    assert "line 4: not JSON" in said
    assert "line 5: not an object" in said
    assert "line 1" not in said
    assert '"rejected": text' in said


def test_many_bad_rows_are_summed_up() -> None:
    with pytest.raises(BadDataset, match="and 15 more"):
        read_pairs([b"[]\n"] * 25)


def test_a_demonstration_ends_with_the_assistant() -> None:
    with pytest.raises(BadDataset, match="line 1: messages: the last turn must be"):
        read_demonstrations(lines({"messages": [*ANSWERED, *ASKED]}))
    with pytest.raises(BadDataset, match="line 1: messages: an answer needs a prompt"):
        read_demonstrations(lines({"messages": ANSWERED}))


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(BadDataset, match="no rows"):
        read_pairs([b"\n", b"\n"])


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (read_pairs, read_demonstrations):
        with contextlib.suppress(BadDataset):
            assert read(data.splitlines())


FUNCTION = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
QUESTION = {"role": "user", "content": "Weather in Rome?"}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION}],
}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"b": 1, "a": 2}}}]


def test_a_dataset_s_own_lines_keep_their_calls() -> None:
    row = {
        "messages": [QUESTION],
        "chosen": "[…]",
        "chosen_turn": CALLED,
        "rejected": "Look outside.",
    }
    (pair,) = read_pairs(lines(row))
    assert pair.chosen_turn is not None
    assert pair.chosen_turn.tool_calls[0].name == "get_weather"
    row = {"messages": [QUESTION], "answer": "[…]", "answer_turn": CALLED, "label": False}
    (answer,) = read_labelled(lines(row))
    assert answer.answer_turn == pair.chosen_turn


def test_tool_turns_in_openais_form_are_read() -> None:
    row = {"messages": [QUESTION], "tools": TOOLS, "chosen": [CALLED], "rejected": "Look outside."}
    as_text = {**row, "tools": json.dumps(TOOLS)}
    for pair in read_pairs(lines(row, as_text)):
        assert pair.chosen_turn is not None
        assert pair.chosen_turn.tool_calls[0].arguments == '{"city":"Rome"}'
        assert pair.chosen == '[{"name":"get_weather","arguments":{"city":"Rome"}}]'
        assert (pair.rejected, pair.rejected_turn) == ("Look outside.", None)
        assert pair.tools[0].parameters == '{"b":1,"a":2}'
    (shown,) = read_demonstrations(lines({"messages": [QUESTION, CALLED], "tools": TOOLS}))
    assert shown.answer_turn is not None
    assert shown.row()["answer_turn"]["tool_calls"][0]["function"]["name"] == "get_weather"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"messages": [{"role": "user"}]}, "messages: Field required"),
        ({"messages": [{"content": "a"}]}, "messages: Field required"),
        ({"tools": "{"}, "tools: "),
        ({"chosen": [{"role": "assistant", "content": ""}]}, "chosen: must be a text"),
    ],
)
def test_bad_turns_are_named(change: dict[str, object], rule: str) -> None:
    row = {"messages": [QUESTION], "chosen": "a proper answer", "rejected": "no"}
    with pytest.raises(BadDataset, match=rule):
        read_pairs(lines({**row, **change}))


def test_what_is_imported_is_redacted() -> None:
    asked = [{"role": "user", "content": "write to joe@example.com"}]
    row = {"messages": asked, "chosen": "call +49 170 1234567", "rejected": "no idea at all"}
    (pair,) = read_pairs(lines(row))
    assert pair.messages[0].content == "write to [EMAIL]"
    assert pair.chosen == "call [PHONE]"
    (demonstration,) = read_demonstrations(
        lines({"prompt": asked, "completion": "4111111111111111"})
    )
    assert (demonstration.messages[0].content, demonstration.answer) == (
        "write to [EMAIL]",
        "[CARD]",
    )
