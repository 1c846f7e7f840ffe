"""What pages say of a refusal."""

from __future__ import annotations

from services.feedback.errors import NotFound, invalid
from services.feedback.voting.wording import in_plain_words
from shared.errors import FieldError


def test_a_field_s_remedy_is_its_own_however_its_rule_reads() -> None:
    said = in_plain_words(
        invalid(
            [
                FieldError("spans", "2; 3 is in the other's place", "mark other parts"),
                FieldError("text", "is required", "send it"),
            ]
        )
    )
    assert said["what"] == "Spans: 2; 3 is in the other's place."
    assert said["remedy"] == "Mark other parts."


def test_another_refusal_s_sentence_is_parted_where_its_remedy_begins() -> None:
    said = in_plain_words(NotFound("no such comparison; take the next one"))
    assert (said["what"], said["remedy"]) == ("No such comparison.", "Take the next one.")
