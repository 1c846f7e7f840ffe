import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.redaction import Redactor
from shared.redaction.redactor import is_card

REDACTOR = Redactor()


@pytest.mark.parametrize(
    ("text", "expected", "kind"),
    [
        ("write to joe.b+x@mail.example.com now", "write to [EMAIL] now", "email"),
        ("call +49 170 1234567 today", "call [PHONE] today", "phone"),
        ("call (030) 1234-5678", "call [PHONE]", "phone"),
        ("call 555-867-5309", "call [PHONE]", "phone"),
        ("call 0170 1234567.", "call [PHONE].", "phone"),
        ("card 4111 1111 1111 1111 ok", "card [CARD] ok", "card"),
        ("card 5500-0000-0000-0004", "card [CARD]", "card"),
        ("sk-proj-abcdefghijklmnop1234", "[KEY]", "key"),
        ("AKIAIOSFODNN7EXAMPLE", "[KEY]", "key"),
        ("password: hunter2hunter", "password: [KEY]", "key"),
        ("My Password: hunter2hunter", "My Password: [KEY]", "key"),
        ("API KEY=abcdef123456", "API KEY=[KEY]", "key"),
        ("ghs_abcdefghijklmnopqrstuv", "[KEY]", "key"),
        ("Bearer abcdefghijklmnopqrstuvwxyz", "Bearer [KEY]", "key"),
        ("BEARER abcdefghijklmnopqrstuvwxyz", "BEARER [KEY]", "key"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- done",
            "[KEY] done",
            "key",
        ),
    ],
)
def test_personal_data_and_secrets_go(text: str, expected: str, kind: str) -> None:
    redacted = REDACTOR.redact(text)
    assert redacted.text == expected
    assert redacted.counts == {kind: 1}


@pytest.mark.parametrize(
    "text",
    [
        "order 2026-11-21 costs 12345678",
        "it happened in 2019 2020 and 2021",
        "call me at noon, room 12.345",
        "order number 4111 1111 1111 1112",
        "the token of appreciation",
        "meet @ five",
        "",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert REDACTOR.redact(text).text == text


@given(st.text(alphabet="0123456789 -+@.:abcskAKIA_password()", max_size=80))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = REDACTOR.text(text)
    assert REDACTOR.text(once) == once


@given(st.integers(10**12, 10**19 - 1))
def test_one_check_digit_in_ten_makes_a_card(number: int) -> None:
    stem = str(number)[:-1]
    assert sum(is_card(stem + str(digit)) for digit in range(10)) == 1
