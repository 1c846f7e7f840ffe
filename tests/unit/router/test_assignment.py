"""Design section 7: sticky, monotone, exact, random by user, and nobody at weight 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2

from services.router.assignment import KeyKind, bucket, digest, key_of, on_candidate
from shared.contracts.events.base import WEIGHT_SCALE

VECTORS = json.loads(
    (Path(__file__).parents[3] / "shared/contracts/assignment-vectors.json").read_text()
)["vectors"]

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
weights = st.integers(0, WEIGHT_SCALE)
kinds = st.sampled_from(list(KeyKind))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["bucket"]))
def test_contract_vectors(vector):
    of = (vector["rollout_id"], vector["tenant"], vector["kind"], vector["key"])
    assert f"{digest(*of):016x}" == vector["digest"]
    assert bucket(*of) == vector["bucket"]


@given(names, names, kinds, names)
def test_a_key_keeps_its_bucket(rollout, tenant, kind, key):
    first = bucket(rollout, tenant, kind, key)
    assert first == bucket(rollout, tenant, kind, key)
    assert 0 <= first < WEIGHT_SCALE


@given(names, names, kinds, names, weights, weights)
def test_nobody_moves_back_while_the_weight_rises(rollout, tenant, kind, key, one, other):
    low, high = sorted((one, other))
    place = bucket(rollout, tenant, kind, key)
    assert on_candidate(place, high) or not on_candidate(place, low)


@given(names, names, kinds, names)
def test_the_ends_are_exact(rollout, tenant, kind, key):
    place = digest(rollout, tenant, kind, key)
    assert not on_candidate(place, 0)
    assert on_candidate(place, WEIGHT_SCALE)


@given(st.integers(0, WEIGHT_SCALE - 1), weights)
def test_as_many_buckets_as_basis_points(place, weight):
    assert on_candidate(place, weight) == (place < weight)


def test_neither_boundary_nor_kind_can_be_forged():
    assert digest("r", "ab", "user", "c") != digest("r", "a", "user", "bc")
    assert digest("r", "t", "user", "x") != digest("r", "t", "session", "x")


@pytest.mark.parametrize("weight", [500, 2_000, 5_000, 10_000])
@pytest.mark.parametrize("keys", ["counted", "e-mail"])
def test_fifty_thousand_keys_fall_as_the_weight_says(weight, keys):
    count = 50_000
    form = {"counted": "user-{}", "e-mail": "{}@customer.example"}[keys]
    places = [bucket("rollout-1", "default", "user", form.format(n)) for n in range(count)]
    chosen = sum(on_candidate(place, weight) for place in places)
    if weight == WEIGHT_SCALE:
        assert chosen == count
        return
    expected = count * weight / WEIGHT_SCALE
    statistic = (chosen - expected) ** 2 / expected + (chosen - expected) ** 2 / (count - expected)
    assert chi2.sf(statistic, df=1) >= 0.001


def test_buckets_are_uniform():
    count, cells = 50_000, 100
    counts = [0] * cells
    for number in range(count):
        counts[bucket("r", "t", "user", str(number)) * cells // WEIGHT_SCALE] += 1
    expected = count / cells
    assert chi2.sf(sum((n - expected) ** 2 / expected for n in counts), df=cells - 1) >= 0.001


def test_another_rollout_draws_anew():
    count = 20_000
    both = sum(
        on_candidate(bucket("r1", "t", "user", str(n)), 2_000)
        and on_candidate(bucket("r2", "t", "user", str(n)), 2_000)
        for n in range(count)
    )
    assert binomtest(both, count, 0.04).pvalue >= 0.001


@pytest.mark.parametrize(
    ("user", "session", "expected"),
    [
        ("u", "s", (KeyKind.user, "u")),
        ("", "s", (KeyKind.session, "s")),
        ("", "", (KeyKind.trace, "t")),
    ],
)
def test_user_before_session_before_trace(user, session, expected):
    assert key_of(user, session, "t") == expected


def test_a_secret_draws_all_users_anew() -> None:
    """Who does not know it cannot compute an arm: the places are unrelated."""
    secret = b"s" * 32
    plain = [digest("r1", "acme", "user", f"u{n}") for n in range(200)]
    keyed = [digest("r1", "acme", "user", f"u{n}", secret=secret) for n in range(200)]
    assert not set(plain) & set(keyed)
    both = sum(
        on_candidate(a, 5_000) == on_candidate(b, 5_000) for a, b in zip(plain, keyed, strict=True)
    )
    assert 70 < both < 130
