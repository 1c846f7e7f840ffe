"""Containment of names and URIs from outside, and the names that need none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.contracts.names import (
    MAX_MODEL_NAME,
    check_model_name,
    check_name,
    check_optional_name,
    check_sha256,
)
from shared.paths import OutsideRoot, contained, contained_uri

hostile = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["..", ".", "", "x", "~", "a b", "\\", "é", "%2e%2e"])).map("/".join),
)


@given(hostile)
@example("../../x")
@example("/etc/passwd")
@example("")
@example("a/../../b")
@example("a\x00b")
def test_whatever_the_name_the_path_is_below_the_root_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "root"
    try:
        path = contained(root, name)
    except (OutsideRoot, OSError):
        return
    assert root.resolve() in path.parents
    assert os.path.normpath(path) == str(path)


@given(hostile)
def test_a_checked_name_is_one_segment_of_a_path_a_url_and_a_key(name: str) -> None:
    try:
        assert check_name(name) == name
    except ValueError:
        return
    assert contained(Path("/root"), name) == Path("/root") / name
    assert not set(name) & set("/\\:%?#*[]{} \n\x00~")
    assert name[0] not in ".-_"


@pytest.mark.parametrize("name", ["acme/assistant", "a" * (MAX_MODEL_NAME + 1), "", "x\n", ".."])
def test_a_model_is_named_by_the_same_rule(name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        check_model_name(name)


def test_no_name_is_allowed_only_where_it_is_optional() -> None:
    assert check_optional_name("") == ""
    assert check_optional_name("assistant-v1.0") == "assistant-v1.0"
    with pytest.raises(ValueError, match="choose another"):
        check_optional_name("../x")


@given(st.text(max_size=70))
@example("")
@example("../../x")
@example("A" * 64)
@example("0" * 64 + "\n")
def test_only_64_hexadecimal_digits_are_a_checksum(text: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal"):
        check_sha256(text)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/adapters/v1/x",
        "/store/adapters/v1",
        "file:///store/adapters/v1/x",
        "file://.run/adapters/v1",
    ],
)
def test_a_uri_below_a_root_may_be_read(uri: str) -> None:
    roots = ("s3://bucket/adapters/", "file:///store/adapters", "file://.run/adapters")
    assert contained_uri(uri, roots) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/adapters",
        "s3://bucket/adapters/../secrets",
        "s3://bucket/adapters/%2e%2e/secrets",
        "s3://bucket/adapters-of-others/v1",
        "s3://other/adapters/v1",
        "http://bucket/adapters/v1",
        "zip::s3://bucket/adapters/v1",
        "simplecache::s3://bucket/adapters/v1",
        "/store/adapters/../../etc/passwd",
        "file:///store/adapters//v1",
        "file:///etc/passwd",
        "file://~/x",
        "",
    ],
)
def test_a_uri_elsewhere_is_refused(uri: str) -> None:
    with pytest.raises(OutsideRoot):
        contained_uri(uri, ("s3://bucket/adapters", "file:///store/adapters"))


def test_a_link_that_leads_out_is_followed_before_the_comparison(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(OutsideRoot, match="leads out"):
        contained(root, "link/x")
    with pytest.raises(OutsideRoot, match="none of the allowed roots"):
        contained_uri(str(root / "link" / "x"), (str(root),))


@given(hostile)
def test_whatever_the_uri_it_is_below_a_root_or_refused(uri: str) -> None:
    try:
        contained_uri(f"/store/adapters/{uri}", ("/store/adapters",))
    except (OutsideRoot, OSError, ValueError):
        return
    assert os.path.normpath(f"/store/adapters/{uri}").startswith("/store/adapters/")
