"""Rows of three texts, the form that a person writes first."""

from __future__ import annotations

import json

import pytest

from services.cli.pair_formats.convert import form_among
from services.cli.pair_formats.pair import BadPair, PairFormat
from services.cli.pair_formats.trl import TRL

ROW = {"prompt": "How long do I cook rice?", "chosen": "12 minutes.", "rejected": "It depends."}


def test_three_texts_are_a_question_and_its_answers() -> None:
    pair = TRL.read(ROW)
    assert [(turn.role, turn.content) for turn in pair.messages] == [("user", ROW["prompt"])]
    assert (pair.chosen.role, pair.chosen.content) == ("assistant", ROW["chosen"])
    assert (pair.rejected.role, pair.rejected.content) == ("assistant", ROW["rejected"])


def test_an_unknown_form_is_told_by_its_fields_and_those_to_choose_from() -> None:
    forms: dict[str, PairFormat] = {"trl": TRL}
    with pytest.raises(BadPair, match=r"first row \(bad, good\).*one of trl, as docs"):
        form_among(forms, json.dumps({"good": "a", "bad": "b"}).encode())
