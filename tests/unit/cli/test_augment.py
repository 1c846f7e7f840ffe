"""`ratchet dataset augment`: varied prompts, marked, at most a fifth, the same for the same seed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.cli.augmentation import METHODS, fault_of, inserted, plan, replaced
from services.cli.dataset import app
from services.cli.errors import CliError
from services.cli.probes import asking
from services.training.importing import read_pairs

PROMPTS = ("My parcel A-17 is late. Please check the order.", "How do I reset my password?")


def row(number: int, prompt: str, **meta: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"{prompt} ({number})"}],
        "chosen": f"A good answer {number}.",
        "rejected": f"A bad answer {number}.",
        **({"meta": meta} if meta else {}),
    }


def file_of(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def augment(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["augment", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@given(st.integers(0, 500), st.floats(0.01, 0.2), st.integers(0, 9))
def test_variants_are_never_more_than_their_share(count: int, share: float, seed: int) -> None:
    rows = [row(n, "Where is it?") for n in range(count)]
    planned = plan(rows, METHODS, share, seed)
    assert len(planned) <= share * (count + len(planned)) + 1e-6
    assert planned == plan(rows, METHODS, share, seed)


@pytest.mark.parametrize("vary", [replaced, inserted])
def test_a_lexicon_s_variant_keeps_numbers_and_most_words(vary: Any) -> None:
    for seed in range(40):
        for prompt in PROMPTS:
            variant = vary(prompt, random.Random(seed))
            assert fault_of(prompt, variant) == ""
            kept = set(prompt.split()) & set(variant.split())
            assert len(kept) >= 0.6 * len(prompt.split())
    assert vary("Wo ist mein Paket?", random.Random(0)) == ""


@pytest.mark.parametrize(
    ("variant", "fault"),
    [
        ("my  parcel 5 is late", "unchanged"),
        (" ", "empty"),
        ("5 late", "length"),
        ("My parcel 6 is late", "numbers"),
        ("My package 5 is late", ""),
    ],
)
def test_a_variant_that_says_something_else_is_not_kept(variant: str, fault: str) -> None:
    assert fault_of("My parcel 5 is late", variant) == fault


def test_the_result_has_the_rows_and_marked_variants_with_their_origin(tmp_path: Path) -> None:
    rows = [row(n, PROMPTS[n % 2], category="billing") for n in range(40)]
    source, out, again = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "again.jsonl"))
    said = augment(file_of(source, rows), "--to", str(out), "--seed", "3")
    assert "40 rows and 10 variants; left out: none" in said
    augment(str(source), "--to", str(again), "--seed", "3")
    assert out.read_bytes() == again.read_bytes()
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found[:40] == rows
    by_answer = {one["chosen"]: one for one in rows}
    for one in found[40:]:
        original = by_answer[one["chosen"]]
        assert one["origin"] == original["messages"] != one["messages"]
        assert one["meta"]["source"] == "augmented"
        assert (one["meta"]["category"], one["rejected"]) == ("billing", original["rejected"])
    assert {one["meta"]["method"] for one in found[40:]} == {"synonym", "insertion"}
    imported = read_pairs(out.read_bytes().splitlines())
    assert sum(pair.source == "augmented" for pair in imported) == 10
    assert all("origin" in pair.meta for pair in imported if pair.machine_made)


def test_a_language_without_a_lexicon_is_said(tmp_path: Path) -> None:
    rows = [row(n, "Please check the order", locale="de-DE") for n in range(20)]
    rows += [row(n, "Wo ist es?") for n in range(20, 40)]
    said = augment(file_of(tmp_path / "in.jsonl", rows), "--to", str(tmp_path / "out.jsonl"))
    assert "40 rows and 0 variants; left out: 10 no_lexicon" in said


def test_a_served_version_paraphrases_and_translates_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(_: Any, __: str, *, body: Any, **___: Any) -> tuple[int, str]:
        instruction, _, text = body["messages"][0]["content"].partition("\n\n")
        said = {
            "Sa": text.replace("Where is", "I look for"),
            "German": text.replace("Where is", "Wo ist"),
            "English": text.replace("Wo ist", "In which place is"),
        }
        name = next(word for word in ("German", "English", "Sa") if word in instruction)
        return 200, json.dumps({"choices": [{"message": {"content": said[name]}}]})

    monkeypatch.setattr(asking, "fetch", fetch)
    rows = [row(n, "Where is my order") for n in range(8)]
    out = tmp_path / "out.jsonl"
    augment(
        file_of(tmp_path / "in.jsonl", rows),
        *("--to", str(out), "--methods", "paraphrase,back-translation", "--version", "m-v1"),
    )
    variants = [json.loads(line) for line in out.read_text().splitlines()][8:]
    texts = {one["meta"]["method"]: one["messages"][0]["content"] for one in variants}
    assert texts["paraphrase"].startswith("I look for my order")
    assert texts["back-translation"].startswith("In which place is my order")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "typo"], "'typo'; known are synonym, insertion"),
        (["--methods", "paraphrase"], "paraphrase is written by a served version"),
    ],
)
def test_a_wrong_method_is_named(tmp_path: Path, arguments: list[str], said: str) -> None:
    source = file_of(tmp_path / "in.jsonl", [row(1, "Where is it?")])
    with pytest.raises(CliError, match=said):
        augment(source, "--to", str(tmp_path / "out.jsonl"), *arguments)


def test_what_a_machine_made_is_not_varied_again(tmp_path: Path) -> None:
    source = file_of(tmp_path / "in.jsonl", [row(1, "Where is it?", source="ai")])
    with pytest.raises(CliError, match="no row is a person's"):
        augment(source, "--to", str(tmp_path / "out.jsonl"))
