"""Only who has a secret signs, for one place; old and new secret are both accepted."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.connection_settings import RedisSettings
from shared.credentials import CredentialsUnreadable
from shared.seal import UNSEALED, Seal

OLD, NEW = b"o" * 32, b"n" * 32


@given(text=st.text(), place=st.text())
def test_what_is_closed_opens_in_its_place_alone(text: str, place: str) -> None:
    seal = Seal(OLD)
    signed = seal.close(place, text)
    assert seal.open(place, signed) == seal.open(place, signed.encode()) == text
    assert seal.open(f"{place}x", signed) is None
    assert seal.open(place, f"{signed}x") is None
    assert Seal(NEW).open(place, signed) is None
    assert UNSEALED.open(place, UNSEALED.close(place, text)) == text
    assert UNSEALED.open(place, signed) == text, "a process that has no secret yet"


@pytest.mark.parametrize("forged", ['{"token": 9}', "", ":", "00:x", b"\xff:x", "é:x"])
def test_what_nobody_signed_does_not_open(forged: bytes | str) -> None:
    assert Seal(OLD).open("routing", forged) is None


def test_a_text_cannot_take_part_of_its_place() -> None:
    seal = Seal(OLD)
    mark, _, text = seal.close("a", "b:c").partition(":")
    assert text == "b:c"
    assert seal.open("a:b", f"{mark}:c") is None


def test_a_secret_is_replaced_while_all_go_on() -> None:
    """Each step of the replacement reads what the step before it wrote, and the other way round."""
    steps = [Seal(OLD), Seal(OLD, NEW), Seal(NEW, OLD), Seal(NEW)]
    for before, after in pairwise(steps):
        for writer, reader in ((before, after), (after, before)):
            assert reader.open("p", writer.close("p", "text")) == "text"


def test_secrets_come_from_a_file_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "signing"
    file.write_bytes(NEW + b"\n" + OLD + b"\n")
    seal = RedisSettings(redis_signing_file=file).redis_seal()
    assert seal.close("p", "x") == Seal(NEW).close("p", "x")
    assert seal.open("p", Seal(OLD).close("p", "x")) == "x"
    file.write_bytes(NEW + b"\nshort\n")
    with pytest.raises(CredentialsUnreadable, match="RATCHET_REDIS_SIGNING_FILE"):
        RedisSettings(redis_signing_file=file).redis_seal()
    assert not RedisSettings().redis_seal()
