from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.fingerprints import FingerprintFault, check_fingerprint
from shared.contracts.events.versions import Fingerprint, FingerprintText

TOLERANCE = 0.02


def answers(*logprobs: float) -> Fingerprint:
    tokens = tuple(range(len(logprobs) + 1))
    return Fingerprint(dtype="float32", texts=(FingerprintText(tokens=tokens, logprobs=logprobs),))


def test_right_adapter_far_from_all_others_passes() -> None:
    check = check_fingerprint(
        answers(-1.0, -2.0),
        answers(-1.001, -2.001),
        {"base": answers(-1.5, -2.5), "v1": answers(-3.0, -2.0)},
        TOLERANCE,
    )
    assert check.fault is FingerprintFault.none
    assert check.difference == pytest.approx(0.001)
    assert check.distances["base"] == pytest.approx(0.499)


def test_wrong_adapter_is_named_after_whom_it_answers_like() -> None:
    check = check_fingerprint(
        answers(-1.0), answers(-2.0), {"base": answers(-9.0), "v1": answers(-2.0)}, TOLERANCE
    )
    assert check.fault is FingerprintFault.mismatch
    assert "it answers like v1" in check.reason


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_answers_that_are_no_numbers_never_pass(value: float) -> None:
    assert (
        check_fingerprint(answers(-1.0), answers(value), {}, TOLERANCE).fault
        is FingerprintFault.mismatch
    )


@given(st.floats(0.0, 0.3))
def test_five_tolerances_tell_two_apart(distance: float) -> None:
    check = check_fingerprint(
        answers(-1.0), answers(-1.0), {"parent": answers(-1.0 - distance)}, TOLERANCE
    )
    measured = check.distances["parent"]
    assert (check.fault is FingerprintFault.too_close) == (measured <= 5 * TOLERANCE)


def test_accepted_closeness_passes_and_no_other() -> None:
    others = {"v1": answers(-1.01), "v2": answers(-1.02)}
    one = check_fingerprint(answers(-1.0), answers(-1.0), others, TOLERANCE, accepted=["v1"])
    assert one.fault is FingerprintFault.too_close
    assert "v2" in one.reason
    assert "those of v1" not in one.reason
    both = check_fingerprint(answers(-1.0), answers(-1.0), others, TOLERANCE, accepted=["v1", "v2"])
    assert both.fault is FingerprintFault.none


def test_nobody_can_accept_a_mismatch() -> None:
    check = check_fingerprint(
        answers(-1.0), answers(-2.0), {"v1": answers(-2.0)}, TOLERANCE, accepted=["v1"]
    )
    assert check.fault is FingerprintFault.mismatch
