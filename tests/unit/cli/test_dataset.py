"""Forms of other tools: export then import is identity, bad rows are named by their line."""

from __future__ import annotations

import copy
import gzip
import json
import tracemalloc
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.cli.__main__ import app
from services.cli.errors import CliError
from services.cli.pair_formats.convert import FORMATS, BadLine, converted, detected
from services.cli.pair_formats.pair import BadPair, TextPair, Turn

RUN = CliRunner()
words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).map(
    lambda text: text.strip() or "x"
)
users = st.builds(Turn, st.just("user"), words)
assistants = st.builds(Turn, st.just("assistant"), words)
prompts = st.builds(
    lambda system, first, more: (*system, first, *(turn for pair in more for turn in pair)),
    st.lists(st.builds(Turn, st.just("system"), words), max_size=1),
    users,
    st.lists(st.tuples(assistants, users), max_size=2),
)
pairs = st.builds(TextPair, prompts, words, words)

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
def test_export_then_import_is_identity(name: str, pair: TextPair) -> None:
    form = FORMATS[name]
    try:
        row = form.write(pair)
    except BadPair:
        assert name == "anthropic-hh"  # no system turn, and no mark of a speaker in a text
        assert pair.messages[0].role == "system" or "\n\n" in repr(pair).replace("\\n", "\n")
        return
    assert form.read(orjson.loads(orjson.dumps(row))) == pair
    assert detected(orjson.dumps(row)) is form


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_as_its_tool_writes_it_is_detected_and_read(name: str) -> None:
    line = json.dumps(PUBLISHED[name]).encode()
    assert detected(line).name == name
    assert FORMATS[name].read(PUBLISHED[name]) == TextPair((Turn("user", "Why?"),), "So.", "No.")


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
    rows = [row for row in with_junk(PUBLISHED[name]) if isinstance(row, dict)]
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
    turn = (Turn("user", "Why?"),)
    written = [FORMATS["lmarena"].write(TextPair(turn, f"yes {n}", "no")) for n in range(40)]
    assert 10 <= sum(row["winner"] == "model_a" for row in written) <= 30


def test_the_implicit_prompt_of_trl_is_read() -> None:
    row = {key: PUBLISHED["ultrafeedback"][key] for key in ("chosen", "rejected")}
    assert detected(json.dumps(row).encode()).name == "trl"
    assert FORMATS["trl"].read(row).messages == (Turn("user", "Why?"),)


def test_bad_lines_have_number_and_reason_and_the_others_are_written() -> None:
    good = json.dumps(PUBLISHED["trl"]).encode()
    tools = json.loads(good)
    tools["chosen"][0]["tool_calls"] = [{"name": "x"}]
    lines = [good, b"", b"{", b"[]", json.dumps(tools).encode(), good]
    found = list(converted(lines, FORMATS["trl"], FORMATS["ratchet"]))
    bad = [one for one in found if isinstance(one, BadLine)]
    assert [one.line for one in bad] == [3, 4, 5]
    assert bad[0].reason.startswith("not JSON")
    assert bad[1].reason == "not an object"
    assert bad[2].reason == "chosen: each turn must be an object of text alone"
    assert len(found) - len(bad) == 2


def test_the_command_converts_compressed_files_and_names_bad_lines(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl"
    with gzip.open(source, "wb") as file:
        file.write(json.dumps(PUBLISHED["openai-dpo"]).encode() + b"\n{}\n")
    done = RUN.invoke(app, ["dataset", "import", str(source), "--to", str(out)])
    assert done.exit_code == 0, done.output
    assert "line 2: input: must be an object with messages" in done.output
    assert "openai-dpo to ratchet: 1 rows, 1 left out" in done.output
    assert json.loads(out.read_text())["chosen"] == "So."
    back = tmp_path / "back.jsonl.gz"
    done = RUN.invoke(
        app, ["dataset", "export", str(out), "--to", str(back), "--format", "anthropic-hh"]
    )
    assert done.exit_code == 0, done.output
    with gzip.open(back) as file:
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
def test_a_compressed_file_that_is_cut_is_named_and_nothing_is_written(
    keep: slice, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(gzip.compress(orjson.dumps(PUBLISHED["trl"]) + b"\n")[keep])
    done = RUN.invoke(app, ["dataset", "import", str(source), "--to", str(tmp_path / "out.jsonl")])
    assert isinstance(done.exception, CliError)
    assert "cut or damaged" in str(done.exception)
    assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl.gz"]


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

    peak_of(10)
    assert peak_of(5_000) < peak_of(500) + 50_000
