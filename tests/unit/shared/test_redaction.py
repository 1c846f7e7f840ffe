import random
import time
import timeit
import uuid
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.redaction import Redactor
from shared.redaction.redactor import Redacted, is_card, is_iban

REDACTOR = Redactor()
NATIONAL_IDS = {
    "Argentina": "20-05536168-2",
    "Belgium": "85.07.30-033.28",
    "Brazil": "390.533.447-05",
    "Canada": "123-456-782",
    "Chile": "12.531.909-2",
    "Czechia": "710319/2745",
    "Estonia": "36805280109",
    "Finland": "131052-308T",
    "France": "2 95 10 99 126 111 93",
    "Germany": "36 574 261 809",
    "Greece": "01013099997",
    "India": "2341 2341 2346",
    "Ireland": "6433435F",
    "Italy": "RCCMNL83S18D969H",
    "Norway": "151086 95088",
    "Poland": "44051401359",
    "Romania": "1630615123457",
    "South Africa": "7503305044089",
    "South Korea": "971013-9019902",
    "Spain": "54362315K",
    "Spain, foreigners": "X5253868R",
    "Sweden": "880320-0016",
    "Switzerland": "756.9217.0769.85",
    "Turkey": "17291716060",
}
"""Numbers that the registries and python-stdnum publish as examples."""
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"
HOSTILE_CHARACTERS = 200_000
"""What a dead letter keeps of a body at most."""
HOSTILE_CPU_S = 5.0
"""Every text below takes less than 0.4 s; one that is not linear takes longer than this."""


def filled(unit: str) -> str:
    """The unit again and again, up to the size of a hostile text."""
    return (unit * (HOSTILE_CHARACTERS // len(unit) + 1))[:HOSTILE_CHARACTERS]


@pytest.mark.parametrize(
    ("text", "expected", "kind"),
    [
        ("write to joe.b+x@mail.example.com now", "write to [EMAIL] now", "email"),
        ("call +49 170 1234567 today", "call [PHONE] today", "phone"),
        ("call (030) 1234-5678", "call [PHONE]", "phone"),
        ("call 555-867-5309", "call [PHONE]", "phone"),
        ("call 0170 1234567.", "call [PHONE].", "phone"),
        ("call +491701234567", "call [PHONE]", "phone"),
        ("call +1 (415) 555 26 71", "call [PHONE]", "phone"),
        ("card 4111 1111 1111 1111 ok", "card [CARD] ok", "card"),
        ("card 5500-0000-0000-0004", "card [CARD]", "card"),
        ("sk-proj-abcdefghijklmnop1234", "[KEY]", "key"),
        ("AKIAIOSFODNN7EXAMPLE", "[KEY]", "key"),
        ("password: hunter2hunter", "password: [KEY]", "key"),
        ("My Password: hunter2hunter", "My Password: [KEY]", "key"),
        ("API KEY=abcdef123456", "API KEY=[KEY]", "key"),
        ("ghs_abcdefghijklmnopqrstuv", "[KEY]", "key"),
        (f"take {TOKEN}, please", "take [KEY], please", "key"),
        (f"session-{TOKEN} ends", "[KEY] ends", "key"),
        (f"({TOKEN}.more-of-it)", "([KEY])", "key"),
        ("Bearer abcdefghijklmnopqrstuvwxyz", "Bearer [KEY]", "key"),
        ("BEARER abcdefghijklmnopqrstuvwxyz", "BEARER [KEY]", "key"),
        ('{"password": "hunter2"}', '{"password": "[KEY]"}', "key"),
        ("'api_key': 'abcd1234'", "'api_key': '[KEY]'", "key"),
        (r"{\"token\": \"abcdef\"}", r"{\"token\": \"[KEY]\"}", "key"),
        ("DB_PASSWORD=hunter2x", "DB_PASSWORD=[KEY]", "key"),
        ("GITHUB_TOKEN=abcdefgh", "GITHUB_TOKEN=[KEY]", "key"),
        ("aws_secret_access_key = wJalrXUtn/K7MDENG+bPx", "aws_secret_access_key = [KEY]", "key"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "Authorization: Basic [KEY]", "key"),
        ("postgres://app:s3cret@db.example.com/x", "postgres://[KEY]@db.example.com/x", "key"),
        ("an jörg@müller.de", "an [EMAIL]", "email"),
        ("用户@例子.广告", "[EMAIL]", "email"),
        ("a@example.xn--p1ai now", "[EMAIL] now", "email"),
        ("card 4111.1111.1111.1111.", "card [CARD].", "card"),
        ("4111\u00a01111\u00a01111\u00a01111", "[CARD]", "card"),
        ("call 4155552671", "call [PHONE]", "phone"),
        ("My cell is now 4155552671, ok?", "My cell is now [PHONE], ok?", "phone"),
        ("Telefon: 4155552671", "Telefon: [PHONE]", "phone"),
        ("IBAN DE89 3704 0044 0532 0130 00 PAY NOW", "IBAN [IBAN] PAY NOW", "iban"),
        ("GB82WEST12345698765432", "[IBAN]", "iban"),
        ("from 8.8.8.8, port 80", "from [IP], port 80", "ip"),
        ("from 2001:4860:4860::8888", "from [IP]", "ip"),
        ("number 123-45-6789", "number [ID]", "id"),
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
        "a Basic understanding: Basic Mathematics",
        "secretary: Johanna",
        '"max_tokens": 4096, "completion_tokens": 123456',
        "at 1700000000 or 1700000000123 or 12:30:45",
        "log of 20251124-2353, string 4155552671 and invoice 2345678901",
        "on 127.0.0.1 and 10.0.0.1, fe80::1",
        "see http://example.com:8080/a@b",
        "12345678A, 44051401358 and 123-456-789 miss their check digits",
        "version 1.2.3-4, part RCCMNL83S18D969X, from 1949-11-21 to 2011-01-02",
        "",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert REDACTOR.redact(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        filled("eyJ-"),
        filled("eyJaaaaaaaa."),
        filled("eyJa-eyJb-") + ".x",
        filled("a-b_") + ".eyJ",
        filled("a") + "@",
        filled("a.") + "@",
        filled("a@"),
        "a" * 64 + "@" + filled("a.") + "1",
        filled("a" * 64 + "@" + "a." * 64),
        "a@" + filled("a"),
        filled("1"),
        filled("1 "),
        filled("1-"),
        "123456" + filled("("),
        filled("4111 1111 1111 1112 "),
        filled("1" * 19 + "x "),
        filled("+" + "1" * 40 + "x "),
        filled("+1 (1) " + "22-" * 6),
        filled("00 "),
        filled("00 " + "1" * 39 + "x "),
        filled("00 11 " * 6 + "x "),
        filled("(123)" + "1" * 38 + "x"),
        filled("123 "),
        filled("sk-"),
        filled("sk-aaaa "),
        filled("ghp_"),
        filled("xoxa-"),
        filled("AKIA"),
        filled("AIza"),
        filled("glpat-"),
        filled("hf_"),
        "password" + filled(" "),
        "password:" + filled(" ") + "a",
        filled("password: "),
        filled("api key"),
        filled("bearer "),
        filled("://:"),
        "://" + filled("a:") + "@",
        filled("DE89 "),
        filled("DE89" + "1" * 30 + " "),
        filled("1.1.1."),
        filled("a:"),
        filled("::1 "),
        filled("123-45-"),
        filled("secret_"),
        filled('token"'),
        filled("password='"),
        filled("Basic aaaaaaaa "),
        "-----BEGIN " + filled("A"),
        "-----BEGIN " + filled("PRIVATE KEY "),
        filled("-----BEGIN "),
        "-----BEGIN PRIVATE KEY-----" + filled("-----END A"),
        filled("-"),
        filled("44051401358 "),
        filled("1 85 05 78 006 084 37 "),
        filled("123-456-789 "),
        filled("X1234567A "),
        filled("RCCMNL83S18D969X "),
        filled("ABCDEF"),
        filled("call "),
        filled("call 4155552671x "),
    ],
    ids=lambda text: f"{text[:14]}…{text[-14:]}",
)
def test_no_text_keeps_the_redactor_busy(text: str) -> None:
    past_the_prefilter = text + "@ 1234567 password:"
    began_s = time.process_time()
    REDACTOR.redact(past_the_prefilter)
    assert time.process_time() - began_s < HOSTILE_CPU_S


@given(st.text(alphabet="0123456789 -+@.:abcskAKIA_password()", max_size=80))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = REDACTOR.text(text)
    assert REDACTOR.text(once) == once


@pytest.mark.parametrize("number", NATIONAL_IDS.values(), ids=NATIONAL_IDS.keys())
def test_a_national_id_goes(number: str) -> None:
    assert REDACTOR.redact(f"My id is {number}, thanks.") == Redacted(
        "My id is [ID], thanks.", {"id": 1}
    )
    for held in (f"a{number}", f"{number}9", f"x-{number}", f"{number}-x"):
        assert "[ID]" not in REDACTOR.text(held)


@pytest.mark.parametrize("number", NATIONAL_IDS.values(), ids=NATIONAL_IDS.keys())
def test_a_number_in_the_form_of_a_national_id_seldom_is_one(number: str) -> None:
    rng, grouped = random.Random(4), " " in number or "-" in number
    kinds = {True: "0123456789", False: "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    drawn = (
        "".join(rng.choice(kinds[c.isdigit()]) if c.isalnum() else c for c in number)
        for _ in range(2_000)
    )
    assert sum("[ID]" in REDACTOR.text(one) for one in drawn) < (240 if grouped else 120)


def test_ordinary_numbers_of_ten_digits_and_minutes_stay() -> None:
    rng = random.Random(5)
    for _ in range(2_000):
        minute = f"20{rng.randrange(15, 40)}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}"
        minute += f"-{rng.randrange(24):02}{rng.randrange(60):02}"
        for text in (f"order {rng.randrange(10**9, 10**10)} is late", f"backup of {minute}"):
            assert REDACTOR.text(text) == text


def test_an_iban_needs_its_check_digits() -> None:
    assert is_iban("DE89370400440532013000")
    assert not is_iban("DE89370400440532013001")


@given(st.integers(0, 2**128 - 1))
def test_no_identifier_becomes_another(number: int) -> None:
    trace = f"{number:032x}"
    for text in (
        trace,
        str(uuid.UUID(trace)),
        f"00-{trace}-{trace[:16]}-01",
        f'{{"trace_id":"{trace}","revision":1}}',
        f"{uuid.UUID(trace)}:1700000000",
    ):
        assert REDACTOR.text(text) == text


def test_letters_alone_are_looked_at_from_the_shortest_key_of_letters_on() -> None:
    assert REDACTOR.text("AKIA" + "Q" * 16) == "[KEY]"
    assert REDACTOR.text("AKIA" + "Q" * 15) == "AKIA" + "Q" * 15


def test_an_ordinary_message_takes_less_than_a_tenth_of_a_millisecond() -> None:
    message = (
        "Where is my parcel? I ordered it last week, and the shop said: it would arrive on Monday. "
        "Since then - no answer. See https://example.com/orders?id=7_a for what I ordered. "
    ) * 3
    redact = partial(REDACTOR.redact, message)
    fastest_s = min(timeit.repeat(redact, timer=time.process_time, number=100, repeat=20)) / 100
    assert fastest_s < 1e-4


@given(st.integers(10**12, 10**19 - 1))
def test_one_check_digit_in_ten_makes_a_card(number: int) -> None:
    stem = str(number)[:-1]
    assert sum(is_card(stem + str(digit)) for digit in range(10)) == 1


PROSE = [
    "my name is", "Ana", "Lee", "I am Mr", "This is Dr", "Dear", "Herr", "AKIAABCDEFGHIJKLMNOP",
    "eyJhbGciOi.eyJzdWIiOi.SflKxwRJSMeKK", "Basic dXNlcjpwYXNzd29yZA", "Bearer abcdefghijklmnopqrst", "the", ".",
    "AIzaSyabcdefghijklmnopqrstuvwxyzabcdef", "parcel", "Thanks,", "O'Neil",
]  # fmt: skip


@given(st.lists(st.sampled_from(PROSE), max_size=8).map(" ".join))
def test_prose_is_redacted_as_any_other_text(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.redaction.redactor._is_prose", lambda _: False)
        patch.setattr("shared.redaction.names._BEFORE_TITLES", (" ", "M"))
        slow = REDACTOR.redact(text)
    assert REDACTOR.redact(text) == slow
