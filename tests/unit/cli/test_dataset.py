"""Forms of other tools: export then import is identity, bad rows are named by their line."""

from __future__ import annotations

import copy
import json
import sys
import tracemalloc
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.cli.__main__ import app
from services.cli.dataset_convert import AUTO, convert_file
from services.cli.errors import CliError
from services.cli.pair_formats.convert import FORMATS, BadLine, converted, detected, json_line
from services.cli.pair_formats.pair import AnswerRow, BadPair, PairFormat, PairRow
from services.cli.pair_formats.ratchet import RATCHET
from services.cli.row_streams import open_compressed
from shared.contracts.conversation import compact_json
from shared.contracts.events.base import Message, Tool, ToolCall

RUN = CliRunner()


def said(role: str, text: str) -> Message:
    return Message(role=role, content=text)


words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).map(
    lambda text: text.strip() or "x"
)
users = st.builds(lambda text: said("user", text), words)
assistants = st.builds(lambda text: said("assistant", text), words)
prompts = st.builds(
    lambda system, first, more: (*system, first, *(turn for pair in more for turn in pair)),
    st.lists(st.builds(lambda text: said("system", text), words), max_size=1),
    users,
    st.lists(st.tuples(assistants, users), max_size=2),
)
pairs = st.builds(PairRow, prompts, assistants, assistants)
answers = st.builds(AnswerRow, prompts, assistants, st.booleans())
numbers = st.integers(-(2**63), 2**64 - 1)
arguments = st.dictionaries(words, st.none() | st.booleans() | numbers | words, max_size=3)
calls = st.builds(
    lambda name, arguments: Message(
        role="assistant",
        content="",
        tool_calls=(ToolCall(id="call_1", name=name, arguments=compact_json(arguments)),),
    ),
    words,
    arguments,
)
tools = st.builds(
    lambda name, about, schema: Tool(name=name, description=about, parameters=compact_json(schema)),
    words,
    words,
    arguments,
)


@st.composite
def rows_with_tools(draw: st.DrawFn) -> PairRow | AnswerRow:
    """Rows whose prompt has a call and its result, or whose answers are calls."""
    prompt, known = draw(prompts), (draw(tools),)
    call, other = draw(calls), draw(calls)
    said_at_last, said_instead = draw(assistants), draw(assistants)
    if draw(st.booleans()):
        result = Message(role="tool", content=draw(words), tool_call_id="call_1")
        prompt = (*prompt, call, result)
        if draw(st.booleans()):
            return AnswerRow(prompt, said_at_last, draw(st.booleans()), known)
        return PairRow(prompt, said_at_last, said_instead, known)
    if draw(st.booleans()):
        return AnswerRow(prompt, call, draw(st.booleans()), known)
    second = other.tool_calls[0].model_copy(update={"id": "call_2"})
    return PairRow(prompt, call, other.model_copy(update={"tool_calls": (second,)}), known)


WITH_TOOLS = ("ratchet", "trl", "openai-dpo", "llama-factory")
WITH_ANSWERS = ("ratchet", "trl", "llama-factory")

PUBLISHED: dict[str, dict[str, Any]] = {
    "ratchet": {"messages": [{"role": "user", "content": "Why?"}], "chosen": "So.", "rejected": "No."},
    "trl": {
        "prompt": [{"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": "So."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    },
    "anthropic-hh": {
        "chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: No.",
    },
    "openai-dpo": {
        "input": {"messages": [{"role": "user", "content": "Why?"}], "tools": []},
        "preferred_output": [{"role": "assistant", "content": "So."}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    },
    "llama-factory": {
        "conversations": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "So."}, "rejected": {"from": "gpt", "value": "No."},
    },
    "lmarena": {
        "question_id": "q", "winner": "model_b", "judge": "arena_user_1", "turn": 1,
        "conversation_a": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}],
        "conversation_b": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
    },
    "argilla": {
        "id": "1", "status": "completed", "metadata": {}, "suggestions": {}, "vectors": {},
        "fields": {"prompt": "Why?", "response1": "No.", "response2": "So."},
        "responses": {"preference": [
            {"value": "response2", "user_id": "a"}, {"value": "response1", "user_id": "b"},
            {"value": "response2", "user_id": "c"},
        ]},
    },
    "label-studio": {
        "id": 1, "data": {"prompt": "Why?", "answer1": "So.", "answer2": "No."},
        "annotations": [
            {"id": 4, "was_cancelled": False, "result": [{
                "type": "pairwise", "from_name": "comparison", "to_name": "answer1,answer2",
                "value": {"selected": "left"}}]},
            {"id": 5, "was_cancelled": True, "result": []},
        ],
    },
    "ultrafeedback": {
        "prompt": "Why?", "score_chosen": 8.0, "score_rejected": 3.0,
        "chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
        "rejected": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
@given(pair=pairs)
def test_export_then_import_is_identity(name: str, pair: PairRow) -> None:
    form = FORMATS[name]
    try:
        row = form.write(pair)
    except BadPair:
        assert name == "anthropic-hh"  # no system turn, and no mark of a speaker in a text
        assert pair.messages[0].role == "system" or "\n\n" in repr(pair).replace("\\n", "\n")
        return
    assert form.read(orjson.loads(orjson.dumps(row))) == pair
    assert detected(orjson.dumps(row)) is form


@pytest.mark.parametrize("name", FORMATS)
@given(row=answers | rows_with_tools())
def test_answers_and_tools_are_kept_or_refused_never_lost(
    name: str, row: PairRow | AnswerRow
) -> None:
    form, alone = FORMATS[name], isinstance(row, AnswerRow)
    if (alone and name not in WITH_ANSWERS) or (row.tools and name not in WITH_TOOLS):
        with pytest.raises(BadPair, match=r"pairs alone|text alone"):
            form.write(row)
        return
    written = orjson.loads(orjson.dumps(form.write(row)))
    assert form.read(written) == row
    assert detected(orjson.dumps(written)) is form


def pair_of(chosen: str, rejected: str) -> PairRow:
    return PairRow((said("user", "Why?"),), said("assistant", chosen), said("assistant", rejected))


UNPAIRED: dict[str, dict[str, Any]] = {
    "ratchet": {
        "messages": [{"role": "user", "content": "Why?"}], "answer": "So.", "label": True,
        "meta": {},
    },
    "trl": {"prompt": "Why?", "completion": "So.", "label": True},
    "llama-factory": {
        "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}],
        "kto_tag": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", UNPAIRED)
def test_a_labelled_answer_as_its_tool_writes_it_is_read(name: str) -> None:
    assert detected(json.dumps(UNPAIRED[name]).encode()).name == name
    found = FORMATS[name].read(UNPAIRED[name])
    assert found == AnswerRow((said("user", "Why?"),), said("assistant", "So."), label=True)


def test_a_form_without_ids_refuses_what_it_would_mix_up() -> None:
    call = ToolCall(id="a", name="look", arguments="{}")
    twice = Message(role="assistant", content="", tool_calls=(call, call))
    result = Message(role="tool", content="x", tool_call_id="b")
    question, end = said("user", "Why?"), said("assistant", "So.")
    for turns, rule in (
        ((question, twice), "one call a turn"),
        (
            (question, twice.model_copy(update={"tool_calls": (call,)}), result),
            "after its one call",
        ),
    ):
        with pytest.raises(BadPair, match=rule):
            FORMATS["llama-factory"].write(AnswerRow(turns, end, label=True))


def held_by(form: PairFormat, row: PairRow | AnswerRow) -> bool:
    try:
        form.write(row)
    except BadPair:
        return False
    return True


@pytest.mark.parametrize("file", ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet"])
@pytest.mark.parametrize("name", FORMATS)
@given(rows=st.lists(answers | rows_with_tools() | pairs, min_size=1, max_size=4))
@settings(max_examples=8)
def test_a_file_that_is_exported_and_imported_has_the_same_rows(
    name: str, file: str, rows: list[PairRow | AnswerRow], tmp_path_factory: pytest.TempPathFactory
) -> None:
    form, folder = FORMATS[name], tmp_path_factory.mktemp("files")
    kept = [row for row in rows if held_by(form, row)]
    assume(kept)
    own, theirs, back = folder / "own.jsonl", folder / file, folder / "back.jsonl"
    own.write_bytes(b"".join(json_line(RATCHET.write(row)) for row in kept))
    convert_file(own, theirs, RATCHET.name, form, strict=True)
    convert_file(theirs, back, AUTO, RATCHET, strict=True)
    assert [RATCHET.read(orjson.loads(line)) for line in back.read_bytes().splitlines()] == kept


def test_the_command_reads_and_writes_parquet(tmp_path: Path) -> None:
    source, columns, back = (tmp_path / name for name in ("in.jsonl", "rows.parquet", "out.jsonl"))
    rows = [PUBLISHED["ratchet"], UNPAIRED["ratchet"]]
    source.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    export = ["dataset", "export", str(source), "--to", str(columns), "--format", "trl"]
    done = RUN.invoke(app, export)
    assert done.exit_code == 0, done.output
    done = RUN.invoke(app, ["dataset", "import", str(columns), "--to", str(back)])
    assert done.exit_code == 0, done.output
    assert [sorted(json.loads(line)) for line in back.read_text().splitlines()] == [
        ["chosen", "messages", "rejected"], ["completion", "label", "messages"],
    ]  # fmt: skip
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]
    columns.write_bytes(columns.read_bytes()[:-9])
    done = RUN.invoke(app, ["dataset", "import", str(columns), "--to", str(back)])
    assert "is no Parquet" in str(done.exception)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    source = tmp_path / "in.jsonl"
    source.write_bytes(orjson.dumps(PUBLISHED["trl"]))
    done = RUN.invoke(
        app, ["dataset", "import", str(source), "--to", str(tmp_path / "out.parquet")]
    )
    assert "ratchet[parquet]" in str(done.exception)
    assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_as_its_tool_writes_it_is_detected_and_read(name: str) -> None:
    line = json.dumps(PUBLISHED[name]).encode()
    assert detected(line).name == name
    assert FORMATS[name].read(PUBLISHED[name]) == pair_of("So.", "No.")


JUNK = (None, True, 1.5, "", "x", [], {}, [1], [[]], [{}], [None], {"role": []}, {"value": "x"})


def with_junk(value: Any) -> Iterator[Any]:
    """The value with each part of it replaced by each kind of junk."""
    yield from JUNK
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, part in items:
        for junk in with_junk(part):
            changed = copy.copy(value)
            changed[name] = junk
            yield changed


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_junk_is_refused_and_never_ends_the_conversion(name: str) -> None:
    whole = [one[name] for one in (PUBLISHED, UNPAIRED) if name in one]
    rows = [row for one in whole for row in with_junk(one) if isinstance(row, dict)]
    rows += [{k: v for k, v in one.items() if k != lost} for one in whole for lost in one]
    lines = [orjson.dumps(row) for row in rows]
    assert len(list(converted(lines, FORMATS[name], FORMATS["ratchet"]))) == len(lines)


def test_a_tie_makes_no_pair_and_says_so() -> None:
    battle = {**PUBLISHED["lmarena"], "winner": "tie (bothbad)"}
    split = {**PUBLISHED["argilla"], "responses": {"preference": [
        {"value": "response1"}, {"value": "response2"}]}}  # fmt: skip
    skipped = {**PUBLISHED["label-studio"], "annotations": []}
    for name, row in (("lmarena", battle), ("argilla", split), ("label-studio", skipped)):
        with pytest.raises(BadPair, match="a tie makes no pair"):
            FORMATS[name].read(row)


def test_a_battle_keeps_whose_answers_they_are() -> None:
    row = {**PUBLISHED["lmarena"], "model_a": "v1", "model_b": "v2"}
    pair = FORMATS["lmarena"].read(row)
    assert pair.meta == {"chosen_version": "v2", "rejected_version": "v1"}
    assert FORMATS["lmarena"].read(FORMATS["lmarena"].write(pair)) == pair


def test_neither_side_holds_every_better_answer() -> None:
    written = [FORMATS["lmarena"].write(pair_of(f"yes {n}", "no")) for n in range(40)]
    assert 10 <= sum(row["winner"] == "model_a" for row in written) <= 30


def test_the_implicit_prompt_of_trl_is_read() -> None:
    row = {key: PUBLISHED["ultrafeedback"][key] for key in ("chosen", "rejected")}
    assert detected(json.dumps(row).encode()).name == "trl"
    assert FORMATS["trl"].read(row).messages == (said("user", "Why?"),)


def test_bad_lines_have_number_and_reason_and_the_others_are_written() -> None:
    good = json.dumps(PUBLISHED["trl"]).encode()
    tools = json.loads(good)
    tools["chosen"][0]["tool_calls"] = [{"function": {}}]
    lines = [good, b"", b"{", b"[]", json.dumps(tools).encode(), good]
    found = list(converted(lines, FORMATS["trl"], FORMATS["ratchet"]))
    bad = [one for one in found if isinstance(one, BadLine)]
    assert [one.line for one in bad] == [3, 4, 5]
    assert bad[0].reason.startswith("not JSON")
    assert bad[1].reason == "not an object"
    assert bad[2].reason == "chosen: a call must have its function's name and arguments"
    assert len(found) - len(bad) == 2


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_the_command_converts_compressed_files_and_names_bad_lines(
    suffix: str, tmp_path: Path
) -> None:
    source, out = tmp_path / f"in.jsonl.{suffix}", tmp_path / "out.jsonl"
    with open_compressed(source, "wb") as file:
        file.write(json.dumps(PUBLISHED["openai-dpo"]).encode() + b"\n{}\n")
    done = RUN.invoke(app, ["dataset", "import", str(source), "--to", str(out)])
    assert done.exit_code == 0, done.output
    assert "line 2: input: must be an object with messages" in done.output
    assert "openai-dpo to ratchet: 1 rows, 1 left out" in done.output
    assert json.loads(out.read_text())["chosen"] == "So."
    back = tmp_path / f"back.jsonl.{suffix}"
    done = RUN.invoke(
        app, ["dataset", "export", str(out), "--to", str(back), "--format", "anthropic-hh"]
    )
    assert done.exit_code == 0, done.output
    with open_compressed(back, "rb") as file:
        assert json.loads(file.read())["chosen"].endswith("Assistant: So.")


@pytest.mark.parametrize(
    ("content", "options"),
    [(b"\n", []), (b'{"x": 1}\n', []), (b'{"chosen": [1]}\n{}\n', ["--strict"])],
)
def test_nothing_is_written_where_nothing_is_good_or_all_must_be(
    content: bytes, options: list[str], tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(content)
    done = RUN.invoke(app, ["dataset", "import", str(source), "--to", str(out), *options])
    assert isinstance(done.exception, CliError)
    assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("keep", [slice(0, -12), slice(0, 14)], ids=["no end", "a few bytes"])
@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.jsonl.zst"])
def test_a_compressed_file_that_is_cut_is_named_and_nothing_is_written(
    name: str, keep: slice, tmp_path: Path
) -> None:
    source = tmp_path / name
    with open_compressed(source, "wb") as file:
        file.write(orjson.dumps(PUBLISHED["trl"]) + b"\n")
    source.write_bytes(source.read_bytes()[keep])
    done = RUN.invoke(app, ["dataset", "import", str(source), "--to", str(tmp_path / "out.jsonl")])
    assert isinstance(done.exception, CliError)
    assert "cut or damaged" in str(done.exception)
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_a_conversion_takes_the_same_memory_for_ten_times_the_rows() -> None:
    line = json.dumps(PUBLISHED["trl"]).encode()

    def peak_of(rows: int) -> int:
        tracemalloc.start()
        try:
            for _ in converted(repeat(line, rows), FORMATS["trl"], FORMATS["ratchet"]):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_of(5_000)  # fills the caches
    assert peak_of(5_000) < peak_of(500) + 50_000


def test_a_number_of_more_than_64_bits_is_refused_by_its_line() -> None:
    tool = Tool(name="count", description="", parameters='{"maximum": 18446744073709551616}')
    row = PairRow(
        (said("user", "How many?"),),
        said("assistant", "A lot."),
        said("assistant", "Few."),
        (tool,),
    )
    line = json.dumps(FORMATS["ratchet"].write(row)).encode()
    (found,) = converted([line], FORMATS["ratchet"], FORMATS["openai-dpo"])
    assert isinstance(found, BadLine)
    assert "64-bit" in found.reason
