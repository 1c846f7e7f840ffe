"""The detector against Presidio itself, with spaCy's small English model."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from deploy.local.ports import free_ports
from services.cli.doctor_services import DETECTOR_SAMPLE, detector_finding
from services.router.interactions import event_json
from shared.contracts.events.base import utc
from shared.contracts.events.interactions import InteractionRecorded
from shared.http.detector import Detector, DetectorPolicy
from shared.redaction import Redaction, Redactor, redacted
from shared.redaction.detection import Review, reviewed
from tests.support.analyzer import detector_at
from tests.support.environments import locked_environment
from tests.unit.router.test_interactions import call_of

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

PEOPLE = (
    "Anna Miller", "James Carter", "Maria Gonzalez", "Robert Johnson", "Emily Davis", "David Wilson",
    "Sarah Thompson", "Michael Brown", "Laura Martinez", "Daniel Anderson", "Sophie Turner",
    "Thomas Wright", "Olivia Harris", "Peter Schmidt", "Julia Fischer", "Priya Sharma",
)  # fmt: skip
PLACES = ("Lisbon", "Berlin", "Chicago", "Toronto", "Madrid", "Vienna", "Boston", "Oslo")
NAMED = (
    "The contract was signed by {name} on Monday.",
    "{name} called about the invoice and wants it sent again.",
    "Please forward this to {name} before noon.",
    "I spoke with {name} last week, who approved the refund.",
)
PLACED = ("She moved to {place} two years ago.", "The parcel is stuck in {place}, can you help?")
HARMLESS = (
    "How do I reset my password?", "The answer was too long and not helpful.",
    "Please write a slogan for a bakery.", "My order has not arrived yet.",
    "Explain why the sky is blue.", "Compare tea and coffee in two sentences.",
    "The build fails with exit code 137.", "Can I change the delivery date?",
    "What is the difference between a list and a tuple?", "It works now, thank you!",
    "Summarise the text below in three bullet points.", "Is there a discount for students?",
)  # fmt: skip


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own with Presidio and the model, as the lock pins them."""
    return locked_environment("presidio", tmp_path_factory.mktemp("presidio") / "venv")


@pytest.fixture(scope="module")
def presidio(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running analyzer."""
    port = free_ports(["presidio"])["presidio"]
    log = tmp_path_factory.mktemp("presidio-server") / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, ROOT / "tests/integration/presidio_server.py", str(port)],
            stdout=output,
            stderr=output,
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while not _is_up(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _is_up(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
        return answer.status == 200
    return False


@pytest.fixture
async def detector(presidio: str) -> AsyncIterator[Detector]:
    async with detector_at(presidio, timeout_s=30.0) as detector:
        yield detector


async def test_what_no_rule_finds_goes_and_what_is_harmless_stays(
    detector: Detector, record_property: Callable[[str, object], None]
) -> None:
    rules = Redactor().text
    named = {text.format(name=name): name for name in PEOPLE for text in NAMED}
    placed = {text.format(place=place): place for place in PLACES for text in PLACED}
    texts = [*named, *placed, *HARMLESS]
    began = time.perf_counter()
    kept = await redacted(Redaction(detector), lambda redact: [redact(text) for text in texts])
    each_ms = (time.perf_counter() - began) / len(texts) * 1000
    left = dict(zip(texts, kept, strict=True))
    people = sum(name not in left[text] for text, name in named.items())
    places = sum(place not in left[text] for text, place in placed.items())
    harmless = sum(left[text] == text for text in HARMLESS)
    alone = sum(name not in rules(text) for text, name in named.items())
    found = {
        "names found": f"{people} of {len(named)}, {alone} by the rules alone",
        "places found": f"{places} of {len(placed)}",
        "harmless texts left": f"{harmless} of {len(HARMLESS)}",
        "a text": f"{each_ms:.1f} ms",
    }
    for name, figure in found.items():
        record_property(name, figure)
        print(f"{name}: {figure}")
    assert "[UNCHECKED]" not in "".join(kept)
    # How many it finds is the model's doing: the figures are recorded, and most must go.
    assert people >= 0.8 * len(named)
    assert places >= 0.8 * len(placed)
    assert harmless == len(HARMLESS)
    assert alone == 0


async def test_places_in_a_text_are_counted_in_code_points(detector: Detector) -> None:
    texts = (
        "👩‍👩‍👧 Anna Miller lives in Lisbon.",
        "日本 – the invoice is for Anna Miller 🎉, in Lisbon.",
    )
    kept = await redacted(Redaction(detector), lambda redact: [redact(text) for text in texts])
    for text, left in zip(texts, kept, strict=True):
        assert left.replace("[NAME]", "Anna Miller").replace("[LOCATION]", "Lisbon") == text


async def test_an_event_of_the_router_has_nothing_of_it_and_tools_stay_json(
    detector: Detector,
) -> None:
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "You are a helpful support assistant."},
        {"role": "user", "content": "The parcel for Anna Miller is stuck in Lisbon."},
    ]
    arguments = json.dumps({"recipient": "Anna Miller", "City": "Lisbon"})
    more = {
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "find", "arguments": arguments}}
        ]
    }
    call = call_of(turns, completion="I will ask Anna Miller.", more=more, user="anna")
    value = await reviewed(
        detector,
        Review(Redactor().text),
        lambda review: event_json(call, 0.1, utc(call.started_at), Redactor(), review=review),
    )
    event = InteractionRecorded.model_validate_json(value)
    assert b"Miller" not in value
    assert b"Lisbon" not in value
    assert event.messages[0].content == turns[0]["content"]
    assert event.user_id == "anna"
    assert event.untrainable == ()
    assert event.answer is not None
    (made,) = event.answer.tool_calls
    assert set(json.loads(made.arguments)) == {"recipient", "City"}


async def test_a_language_without_a_model_is_a_failure_that_withholds(presidio: str) -> None:
    registry = CollectorRegistry()
    async with detector_at(presidio, registry, languages=("en", "de"), timeout_s=30.0) as detector:
        assert await detector.find(["Anna Miller lives in Lisbon."]) == [None]
    outcomes = {
        outcome: registry.get_sample_value("ratchet_detector_requests_total", {"outcome": outcome})
        for outcome in ("answered", "failed")
    }
    assert outcomes == {"answered": 1, "failed": 1}


async def test_an_id_without_check_digits_goes_where_the_analyzer_knows_it(presidio: str) -> None:
    text = "My national insurance number is AB 12 34 56 C."
    assert Redactor().text(text) == text
    async with detector_at(presidio, entities=("PERSON", "UK_NINO"), timeout_s=30.0) as detector:
        kept = await redacted(Redaction(detector), lambda redact: redact(text))
    assert kept == "My national insurance number is [UK_NINO]."


async def test_allowed_words_stay(presidio: str) -> None:
    text = "Anna Miller lives in Lisbon."
    async with detector_at(presidio, allow=("Lisbon",), timeout_s=30.0) as detector:
        kept = await redacted(Redaction(detector), lambda redact: redact(text))
    assert kept == "[NAME] lives in Lisbon."


def test_doctor_is_content_with_it_and_says_which_language_is_missing(presidio: str) -> None:
    def asked(language: str) -> tuple[int, str]:
        body = {"text": [DETECTOR_SAMPLE], "language": language,
                "entities": DetectorPolicy("").entities}  # fmt: skip
        request = urllib.request.Request(
            f"{presidio}/analyze", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    assert detector_finding("en", *asked("en")).state == "ok"
    assert detector_finding("de", *asked("de")).state == "wrong"
