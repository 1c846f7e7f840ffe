"""Old logs with feedback: every form gives the same feedback, and a dry run says what comes of it."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from typer.testing import CliRunner

from services.cli import feedback, import_log
from services.cli.__main__ import app, main
from services.cli.errors import CliError
from services.cli.log_formats.convert import (
    LOG_FORMATS,
    ImportForecast,
    LoggedFeedback,
    detected_log,
    feedback_of,
)
from services.cli.pair_formats.convert import BadLine
from services.cli.parquet import parquet_lines
from services.feedback.submissions import read_submission
from shared.contracts.events.feedback import Correction
from tests.unit.cli.test_dataset import with_junk
from tests.unit.training.builders import pair_event

RUN = CliRunner()
words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).map(
    lambda text: text.strip() or "x"
)
ids = st.from_regex(r"[a-z][a-z0-9-]{0,15}", fullmatch=True)


@st.composite
def said(draw: st.DrawFn) -> dict[str, Any]:
    """What a log knows of one answer."""
    answer: dict[str, Any] = {
        "id": draw(ids), "prompt": draw(words), "completion": draw(words),
        "user": draw(ids), "version": draw(ids), "category": draw(ids),
    }  # fmt: skip
    kind = draw(st.sampled_from(("up", "down", "rating")))
    answer |= {"rating": draw(st.integers(2, 5))} if kind == "rating" else {"feedback": kind}
    if draw(st.booleans()):
        answer["correction"] = draw(words)
    return answer


def chat_log(one: dict[str, Any]) -> dict[str, Any]:
    verdict = {name: one[name] for name in ("feedback", "rating", "correction") if name in one}
    return {
        "id": one["id"], "user_id": one["user"], "model": one["version"], **verdict,
        "messages": turns(one), "metadata": {"category": one["category"]},
    }  # fmt: skip


def turns(one: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": one["prompt"]},
        {"role": "assistant", "content": one["completion"]},
    ]


def langfuse(one: dict[str, Any]) -> dict[str, Any]:
    if "rating" in one:
        scores: list[dict[str, Any]] = [
            {"name": "stars", "value": one["rating"], "dataType": "NUMERIC", "source": "API"}
        ]
    else:
        value = 1 if one["feedback"] == "up" else 0
        scores = [{"name": "user-feedback", "value": value, "dataType": "BOOLEAN", "source": "API"}]
    scores.insert(0, {"name": "toxicity", "value": 0.2, "source": "EVAL", "comment": "by a judge"})
    if "correction" in one:
        scores.append(
            {"name": "correction", "stringValue": one["correction"], "source": "ANNOTATION"}
        )
    return {
        "id": one["id"], "userId": one["user"], "version": one["version"], "scores": scores,
        "input": {"messages": turns(one)[:1]}, "output": turns(one)[1],
        "metadata": {"category": one["category"]}, "timestamp": "2026-03-01T10:00:00.000Z",
    }  # fmt: skip


def litellm(one: dict[str, Any]) -> dict[str, Any]:
    row = chat_log(one)
    verdict = {name: row[name] for name in ("feedback", "rating", "correction") if name in row}
    return {
        "id": one["id"], "call_type": "acompletion", "model": one["version"],
        "end_user": one["user"], "startTime": 1772359200.5, "messages": turns(one)[:1],
        "response": {"choices": [{"index": 0, "message": turns(one)[1]}]},
        "metadata": {"requester_metadata": {**verdict, "category": one["category"]}},
    }  # fmt: skip


def openai(one: dict[str, Any]) -> dict[str, Any]:
    verdict = {name: str(one[name]) for name in ("feedback", "rating", "correction") if name in one}
    return {
        "object": "chat.completion", "id": one["id"], "model": one["version"],
        "created": 1772359200, "messages": turns(one)[:1],
        "choices": [{"index": 0, "finish_reason": "stop", "message": turns(one)[1]}],
        "metadata": {**verdict, "category": one["category"], "user_id": one["user"]},
    }  # fmt: skip


WRITTEN = {"chat-log": chat_log, "langfuse": langfuse, "litellm": litellm, "openai": openai}
ANSWER = {
    "id": "a1", "prompt": "Why?", "completion": "So.", "user": "ada", "version": "v1",
    "category": "facts", "feedback": "up",
}  # fmt: skip


def read(name: str, *rows: dict[str, Any]) -> list[LoggedFeedback | BadLine]:
    lines = [orjson.dumps(row) for row in rows]
    return list(feedback_of(lines, LOG_FORMATS[name], source="old", model="assistant"))


@pytest.mark.parametrize("name", LOG_FORMATS)
@given(one=said())
def test_each_form_gives_the_feedback_that_was_written_and_the_service_takes_it(
    name: str, one: dict[str, Any]
) -> None:
    row = WRITTEN[name](one)
    assert detected_log(orjson.dumps(row)).name == name
    (found,) = read(name, row)
    assert isinstance(found, LoggedFeedback)
    kinds = {"up": "thumbs_up", "down": "thumbs_down"}
    opinion = (kinds.get(one.get("feedback", ""), "rating"), one.get("rating"))
    expected: list[tuple[str, object]] = [opinion]
    if "correction" in one:
        value = Correction(original=one["completion"], corrected=one["correction"])
        expected.append(("text_correction", value))
    assert [(sent.type, sent.value) for sent in found.submissions] == expected
    for sent in found.submissions:
        assert (sent.trace_id, sent.user_id, sent.version) == (
            one["id"],
            one["user"],
            one["version"],
        )
        assert (sent.prompt, sent.completion) == (one["prompt"], one["completion"])
        assert (sent.source, sent.model, sent.metadata["category"]) == (
            "old", "assistant", one["category"],
        )  # fmt: skip
        body = sent.model_dump(mode="json", exclude_defaults=True)
        assert read_submission(body).trace_id == one["id"]


@pytest.mark.parametrize("name", LOG_FORMATS)
def test_a_row_of_junk_is_refused_and_never_ends_the_import(name: str) -> None:
    rows = [row for row in with_junk(WRITTEN[name](ANSWER)) if isinstance(row, dict)]
    assert len(read(name, *rows)) == len(rows)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("chat-log", {"feedback": "meh"}, "feedback: 'meh' is neither up nor down"),
        ("chat-log", {"feedback": None}, "feedback: none"),
        ("chat-log", {"rating": 6}, "rating: must be a whole number from 1 to 5"),
        ("chat-log", {"messages": [{"role": "user", "content": "x"}]}, "the last turn must be"),
        (
            "langfuse",
            {"scores": [{"name": "x", "value": 1, "source": "EVAL"}]},
            "none is a person's",
        ),
        ("langfuse", {"timestamp": "soon"}, "timestamp: 'soon' is no time"),
        ("litellm", {"response": {"choices": []}}, "response.choices: must be one"),
        ("openai", {"choices": [{}, {}]}, "completion.choices: must be one"),
    ],
)
def test_what_cannot_be_read_says_why(name: str, change: dict[str, Any], reason: str) -> None:
    (found,) = read(name, WRITTEN[name](ANSWER) | change)
    assert isinstance(found, BadLine)
    assert reason in found.reason


def test_a_forecast_counts_as_the_aggregator_does() -> None:
    answers: list[dict[str, Any]] = [
        {"completion": "good", "feedback": "up"},
        {"completion": "bad", "feedback": "down"},  # a pair with the first
        {"completion": "fair", "rating": 3},
        {"completion": "fine", "rating": 4},  # a pair with the second
        {"completion": "bad", "feedback": "up"},  # no pair with itself
        {"completion": "poor", "feedback": "down"},  # pairs with the newest two good ones
        {"completion": "meh", "feedback": "down", "correction": "better"},  # the same, and its own
        {"completion": "good", "feedback": "up", "user": ""},
        {"completion": "good", "feedback": "up", "prompt": "Else?"},
    ]
    rows = []
    for number, answer in enumerate(answers):
        base = {name: value for name, value in ANSWER.items() if name != "feedback"}
        rows.append(chat_log({**base, "id": f"a{number}", **answer}))
    forecast = ImportForecast()
    for one in read("chat-log", *rows):
        assert isinstance(one, LoggedFeedback)
        forecast.take(one)
    assert (forecast.feedback, forecast.anonymous) == (10, 1)
    assert (forecast.pairs, forecast.unpaired) == (1 + 1 + 2 + 2 + 1, 6)


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    rows = [langfuse({**ANSWER, "id": f"t{number}"}) for number in range(450)]
    rows[3] = {**rows[3], "scores": []}
    path = tmp_path / "traces.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def test_a_dry_run_sends_nothing_and_says_what_would_come_of_it(
    log_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_log, "ask", None)
    done = RUN.invoke(app, ["feedback", "import", str(log_file), "--dry-run", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {
        "format": "langfuse", "dry_run": True, "feedback": 449, "anonymous": 0, "pairs": 0,
        "unpaired": 449, "refused": 1,
    }  # fmt: skip
    assert "line 4: scores: none is a person's" in done.stderr


def test_batches_are_sent_and_what_the_service_refuses_is_named_by_its_line(
    log_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []

    def ask(*_: Any, body: dict[str, Any], **__: Any) -> Any:
        sent.extend(body["items"])
        refused = {"status": 422, "error": {"errors": [{"field": "user_id", "rule": "is unknown"}]}}
        results = [
            refused if item["trace_id"] == "t300" else {"status": 202} for item in body["items"]
        ]
        assert len(results) <= import_log.BATCH
        return {"results": results}

    monkeypatch.setattr(import_log, "ask", ask)
    done = RUN.invoke(app, ["feedback", "import", str(log_file), "--source", "lf", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["feedback"] == 448
    assert "line 301: user_id: is unknown" in done.stderr
    assert len(sent) == 449
    assert {item["source"] for item in sent} == {"lf"}


def test_no_batch_is_larger_than_its_bytes_whatever_the_alphabet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def ask(*_: Any, body: dict[str, Any], **__: Any) -> Any:
        sizes.append(len(json.dumps(body)))
        return {"results": [{"status": 202} for _ in body["items"]]}

    monkeypatch.setattr(import_log, "ask", ask)
    rows = [
        chat_log({**ANSWER, "id": f"t{number}"}) | {"correction": "ответ" * 6_000}
        for number in range(45)
    ]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    done = RUN.invoke(app, ["feedback", "import", str(path)])
    assert done.exit_code == 0, done.output
    assert len(sizes) > 1
    assert max(sizes) < import_log.BATCH_BYTES + 1_000


def test_an_unknown_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"x": 1}\n')
    for options in ([], ["--format", "other"]):
        done = RUN.invoke(app, ["feedback", "import", str(path), "--dry-run", *options])
        assert isinstance(done.exception, CliError)


def test_columns_of_no_json_type_are_read_as_text(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["p"], "picture": [b"\x89PNG"], "price": [Decimal("1.50")]})
    parquet.write_table(table, tmp_path / "log.parquet")
    (line,) = parquet_lines(tmp_path / "log.parquet")
    assert orjson.loads(line)["price"] == "1.50"


def test_a_file_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "missing" / "pairs.parquet"
    command = ["ratchet", "feedback", "export", "--format", "parquet", "--to", str(to)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err.rstrip().endswith("pairs.parquet: No such file or directory")


def test_examples_are_exported_as_parquet_whatever_fields_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [
        pair_event(1).model_dump(mode="json"),
        {**pair_event(2).model_dump(mode="json"), "askers": ["ada"], "context": {"labels": {}}},
    ]

    def download(*call: Any, query: dict[str, Any]) -> int:
        assert query["format"] == "jsonl"
        return call[-1].write(b"".join(orjson.dumps(one) + b"\n" for one in events))

    monkeypatch.setattr(feedback, "download", download)
    to = tmp_path / "pairs.parquet"
    export = ["feedback", "export", "pair", "--format", "parquet"]
    done = RUN.invoke(app, [*export, "--to", str(to)])
    assert done.exit_code == 0, done.output
    rows = [orjson.loads(line) for line in parquet_lines(to)]
    assert [(row["pair_id"], row.get("askers")) for row in rows] == [
        ("pair-0001", None), ("pair-0002", ["ada"]),
    ]  # fmt: skip
    assert [one.name for one in tmp_path.iterdir()] == ["pairs.parquet"]
    assert "--to" in str(RUN.invoke(app, export).exception)
