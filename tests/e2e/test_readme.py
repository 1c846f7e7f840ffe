"""Every command of the README works as it stands there."""

from __future__ import annotations

import asyncio
import re
import subprocess

import pytest

from deploy.local.stack import Stack
from tests.e2e.readme import BLOCKS, MAKE, README, ROLLOUT, ROOT, run_bash, run_python
from tests.e2e.versions import HURRIED, publish_pairs
from tests.support.waiting import wait_until

PREFERRED = "assistant-v3.0"
"""A name of its own: the stack is shared, and a version's name is never used again."""


def test_every_block_has_a_test() -> None:
    assert set(BLOCKS) == {"begin", "first", "connect", "kafka", "look", "rollout", "train"}
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for text in MAKE for word in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)}
    assert named
    assert named <= targets


def test_relative_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)", README):
        assert (ROOT / link).exists(), link


def test_a_first_version_is_the_model_as_it_is(full_stack: Stack) -> None:
    """Under another model's name: the shared stack's assistant has a trained first version."""
    command = BLOCKS["begin"].splitlines()[0].replace("assistant-v1.0", "plain-v1.0 --model plain")
    wait_until(lambda: full_stack.is_ready("inference"), "the engine is ready", 300)
    run_bash(command, full_stack)

    def stable() -> bool:
        listed = run_bash("ratchet versions list --model plain", full_stack)
        return re.search(r"plain-v1\.0\b.*stable", listed) is not None

    wait_until(stable, "plain-v1.0 is stable", 60)


def test_a_first_version_comes_from_demonstrations(serving: Stack) -> None:
    """The block itself made the version that `serving` serves."""
    assert "assistant-v1.0" in run_bash("ratchet versions list", serving)


def test_a_product_connects_by_http_and_kafka(serving: Stack) -> None:
    *answer, feedback_id = run_python(BLOCKS["connect"], serving).splitlines()
    assert "".join(answer).strip(), "the model said nothing"
    show = BLOCKS["begin"].splitlines()[-1].replace("FEEDBACK_ID", feedback_id)
    wait_until(
        lambda: re.search(r"\bstate\W+counted\b", run_bash(show, serving)), "the thumb counts", 60
    )
    run_python(BLOCKS["connect"] + BLOCKS["kafka"], serving)

    def counted() -> bool:
        done = subprocess.run(
            ["curl", "-fsS", f"{serving.url('aggregator')}/metrics"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        found = re.findall(
            r'^ratchet_feedback_total\{[^}]*type="(thumbs_up|rating)"[^}]*\} ([0-9.]+)',
            done.stdout,
            re.MULTILINE,
        )
        totals = {kind: sum(float(n) for k, n in found if k == kind) for kind, _ in found}
        return totals.get("thumbs_up", 0) >= 2 and totals.get("rating", 0) >= 1

    wait_until(counted, "feedback by both ways is counted")


def test_an_operator_looks(serving: Stack) -> None:
    printed = run_bash(BLOCKS["look"], serving)
    assert "assistant-v1.0" in printed
    assert "stable" in printed


@pytest.mark.timeout(900)
def test_an_operator_rolls_out_and_back(two_versions: Stack) -> None:
    run_bash(ROLLOUT, two_versions, timeout_s=120)
    states = run_bash("ratchet versions list", two_versions)
    assert re.search(r"assistant-calm\b.*rejected", states)
    assert re.search(r"assistant-v1\.0\b.*stable", states)


@pytest.mark.timeout(900)
async def test_an_operator_trains_on_what_people_preferred(serving: Stack) -> None:
    await publish_pairs(serving)
    command = f"{BLOCKS['train'].strip()} {HURRIED} --version {PREFERRED}"
    await asyncio.to_thread(run_bash, command, serving, timeout_s=420)
    assert PREFERRED in await asyncio.to_thread(run_bash, "ratchet versions list", serving)
