"""Redaction of names where they are introduced and of postal addresses by form, and what it leaves."""

from __future__ import annotations

import random
import time
import timeit
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.redaction import Redactor
from shared.redaction.redactor import Redacted

REDACTOR = Redactor()
ROOT = Path(__file__).parents[3]
HOSTILE_CHARACTERS = 50_000
HOSTILE_CPU_S = 1.5
"""Every text below takes less than 0.1 s; one that is not linear takes longer than this."""
INTRODUCED = [
    "My name is {} and I live in Berlin.",
    "hello, my name's {}",
    "My full name is {}.",
    "I'm Dr. {}, hello",
    "I am Prof. Dr. {} of the clinic",
    "This is Mrs. {} speaking",
    "Mein Name ist {}.",
    "Ich heiße {}, guten Tag",
    "Ich bin Frau {}",
    "Je m'appelle {}.",
    "Me llamo {}",
    "mijn naam is {}",
    "Dear Mr {},\nplease find",
    "Dear {},\nI write",
    "Sehr geehrte Frau {},",
    "Estimada {}:",
    "See you.\n\nBest regards,\n{}",
    "Bye\nSincerely,\n\nDr. {}\n",
    "Danke!\nMit freundlichen Grüßen\n{}",
    "Merci.\nCordialement,\n{}",
    "Gracias\nSaludos,\n{}",
    "Dank u.\nMet vriendelijke groet,\n{}",
    "Thanks,\n{}\n",
]
NAMES = [
    "Anna Schmidt",
    "Jürgen von der Leyen",
    "John A. Smith",
    "Sean O'Brien",
    "María del Carmen García",
    "Jean-Luc Picard",
    "Jan de Vries",
    "Łukasz Żółty",
]
ADDRESSES = [
    "221B Baker Street, London NW1 6XE",
    "1600 Pennsylvania Ave NW, Washington, DC 20500",
    "742 Evergreen Terrace, Springfield, IL 62704",
    "12 Main St, Apt 4B, Boston, MA 02134-1001",
    "45 West 42nd Street",
    "51 Franklin Street, Fifth Floor, Boston, MA 02110-1301",
    "Hauptstraße 12, 10115 Berlin",
    "Lange Str. 5a",
    "Unter-Sachsenhausener Straße 37",
    "Rosenweg 3\n80331 München",
    "Keizersgracht 123, 1015 CJ Amsterdam",
    "Kralingse Plaslaan 12",
    "Calle de Alcalá 42, 28014 Madrid",
    "Avda. de la Constitución, 5",
    "12 bis rue de la Paix, 75002 Paris",
    "10, avenue des Champs-Élysées",
    "P.O. Box 1234",
    "PO Box 55, Springfield, IL 62704",
    "Postfach 1234",
    "Springfield, IL 62704",
    "\n1012 AB Amsterdam",
    "\nCH-8001 Zürich",
]


@pytest.mark.parametrize("text", INTRODUCED)
def test_an_introduced_name_goes(text: str) -> None:
    for name in NAMES:
        expected = Redacted(text.format("[NAME]"), {"name": 1})
        assert REDACTOR.redact(text.format(name)) == expected


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_postal_address_goes(address: str) -> None:
    start = "\n" * address.startswith("\n")
    found = REDACTOR.redact(f"Send it to {address}.")
    assert found == Redacted(f"Send it to {start}[ADDRESS].", {"address": 1})


@pytest.mark.parametrize(
    "text",
    [
        "My name is not important, and my name is on the list",
        "I'm a doctor, I am Groot, this is Python 3",
        "I'm Ms. and he is Mr.",
        "Dear Sir,\nDear Customer,\nDear Hiring Manager,\nDear All,\nDear Team,",
        "Dear God, why",
        "Lieber Geld als Ruhm",
        "Thanks,\nSupport Team",
        "Regards\nThe Acme Team",
        "Best,\nThe Team",
        "Thanks\nHello there, this is a new line of the text",
        "Top 10 Wall Street firms, and 3 Abbey Road songs",
        "In 2023 Wall Street Journal readers paid 12 Euro",
        "the 24 Hours of Nürburgring 24, and Route 66",
        "It took 5 Main points in 12 Drive tests on 3 Road bikes",
        "10000 Steps, 50000 Euro, 20000 Leagues Under the Sea",
        "2024 US Open, 4096 MB Ram, 1500 KW Motor",
        "Der Arbeitsweg dauert: Arbeitsweg 45 Minuten, Sitzplatz 23, Olympiaring 5",
        "Apartado 3 del contrato, Calle 13 es una banda",
        "take 3 place settings and 12 rue plants",
        "order B-5210 Boxes, part A-1010 Motor, AB12 3CD",
        "see section 4 Road map, chapter 5 Close reading",
        "version 3 Way merge, 4 Square meters, 2 Place cards",
        "Chicago, IL is cold; call 62704 now",
        "a box 12 of 30, PO 4711, the mailbox 3",
        "Milchstraße 2.0 and Hauptstraße 100%",
    ],
)
def test_ordinary_words_and_numbers_stay(text: str) -> None:
    assert REDACTOR.redact(text).text == text


def test_of_the_documents_tens_of_thousands_of_words_none_is_a_name_or_an_address() -> None:
    words = 0
    for path in [*ROOT.glob("docs/**/*.md"), *ROOT.glob("services/*/*.md"), *ROOT.glob("*.md")]:
        text = path.read_text()
        words += len(text.split())
        counts = REDACTOR.redact(text).counts
        assert not counts.keys() & {"name", "address"}, path
    assert words > 50_000


def test_ordinary_sentences_of_capitals_and_numbers_seldom_hold_an_address() -> None:
    """Such as release notes and results: a number before words in capitals, now and then a street word."""
    rng = random.Random(6)
    words = [
        "Street",
        "Road",
        "Class",
        "Points",
        "Tests",
        "Team",
        "Model",
        "Version",
        "Open",
        "Users",
    ]
    small = ["of", "the", "was", "users", "and", "with", "tests", "per"]
    hits = 0
    for _ in range(5_000):
        number, ends = rng.randrange(1, 3_000), rng.choice(small)
        text = f"We saw {number} {rng.choice(words)} {rng.choice(words)} {ends} it."
        hits += "[ADDRESS]" in REDACTOR.text(text)
    assert hits < 5_000 * 0.05


@pytest.mark.parametrize(
    "unit",
    [
        "My name is ",
        "My name is Aa van ",
        "My name is Aa A. ",
        "I am Dr. ",
        "I am Dr. Aa ",
        "Dear ",
        "\nDear Aa Bb Cc",
        "Regards\n",
        "Regards,\n\n",
        "Regards\nAa Aa Aa ",
        "Liebe Gruesse\n",
        "O'Aa ",
        "Aa-",
        "12 ",
        "12 Aa Aa ",
        "1 Aa Street, Bb Cc Dd, ",
        "1 1st ",
        "Aastraße 1 ",
        "Aa Aa Straße 1, 1000 ",
        "Aastr. 1 a, ",
        "12 rue de la ",
        "12 rue de la Aa ",
        "Calle de la ",
        "Plaza Aa de Aa ",
        "PO Box 1, ",
        "Aa Bb Cc, IL ",
        "1000 AA ",
        " \n",
        "Ä",
    ],
)
def test_no_text_keeps_the_redactor_busy(unit: str) -> None:
    text = (unit * (HOSTILE_CHARACTERS // len(unit) + 1))[:HOSTILE_CHARACTERS]
    began_s = time.process_time()
    REDACTOR.redact(text + "My name is\nDear Regards\n1 A straße 1 rue a Plaza ox 1234")
    assert time.process_time() - began_s < HOSTILE_CPU_S


@given(st.text(alphabet="Aab 12,.\n'-", max_size=60), st.sampled_from([*ADDRESSES, *INTRODUCED]))
def test_redacting_twice_changes_nothing_more(text: str, person: str) -> None:
    once = REDACTOR.text(f"{text}{person.format('Ann Lee')}{text}")
    assert REDACTOR.text(once) == once


def test_a_message_that_holds_all_hints_takes_time_in_proportion_to_its_length() -> None:
    message = (
        "I am late and this is why: 12 boxes came by the road on Monday, dear friends; my name was "
        "missing. "
    ) * 5
    once_s, many_s = (
        min(
            timeit.repeat(
                lambda text=text: REDACTOR.redact(text),
                timer=time.process_time,
                number=10,
                repeat=20,
            )
        )
        for text in (message, message * 16)
    )
    assert many_s < 32 * once_s, "quadratic would be 256 times"
