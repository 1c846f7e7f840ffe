"""Media by tenant, person and digest, and their erasure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared.contracts.subject import subject_of
from shared.media_store import MediaStore, MediaUnavailable

DIGEST = "a" * 64
BEFORE = datetime.now(UTC) - timedelta(hours=1)


def files(root: Path) -> list[str]:
    paths = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "erased")
    return sorted(str(path.relative_to(root)) for path in paths)


def test_bytes_are_kept_once_for_each_person_of_each_tenant(tmp_path: Path) -> None:
    store = MediaStore(tmp_path.as_uri())
    ann = subject_of("acme", "ann")
    assert store.put("acme", ann, DIGEST, b"picture", sent_at=BEFORE)
    assert not store.put("acme", ann, DIGEST, b"picture", sent_at=BEFORE)
    assert store.put("acme", "", DIGEST, b"picture", sent_at=BEFORE)
    assert store.put("../other", subject_of("../other", "ann"), DIGEST, b"picture", sent_at=BEFORE)
    people = [f"tenant=acme/person={ann}", "tenant=acme/person=nobody"]
    other = f"tenant=..%2Fother/person={subject_of('../other', 'ann')}"
    assert files(tmp_path) == sorted(f"{person}/{DIGEST}" for person in (*people, other))
    assert (tmp_path / people[0] / DIGEST).read_bytes() == b"picture"


def test_a_person_is_erased_and_nobody_else(tmp_path: Path) -> None:
    store = MediaStore(tmp_path.as_uri())
    ann, bob = (subject_of("acme", name) for name in ("ann", "bob"))
    for person in (ann, bob):
        store.put("acme", person, DIGEST, b"picture", sent_at=BEFORE)
    for _ in range(2):
        store.erase("acme", ann)
    assert files(tmp_path) == [f"tenant=acme/person={bob}/{DIGEST}"]
    for subject in ("", "nobody", "..", f"{ann}/../{bob}"):
        with pytest.raises(ValueError, match="no subject"):
            store.erase("acme", subject)


def test_what_was_sent_before_an_erasure_and_is_written_after_it_is_not_kept(
    tmp_path: Path,
) -> None:
    store, ann, bob = (
        MediaStore(tmp_path.as_uri()),
        *(subject_of("acme", n) for n in ("ann", "bob")),
    )
    store.erase("acme", ann)
    after = datetime.now(UTC) + timedelta(seconds=1)
    assert not store.put("acme", ann, DIGEST, b"picture", sent_at=BEFORE)
    assert files(tmp_path) == []
    assert store.put("acme", bob, DIGEST, b"picture", sent_at=BEFORE)
    assert store.put("acme", ann, DIGEST, b"picture", sent_at=after)
    assert len(files(tmp_path)) == 2


def test_a_write_that_is_cut_short_leaves_nothing_under_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MediaStore(tmp_path.as_uri())
    with monkeypatch.context() as patch:
        patch.setattr("fsspec.implementations.local.LocalFileSystem.mv", lambda *_: 1 / 0)
        with pytest.raises(MediaUnavailable, match="cannot be written"):
            store.put("acme", "", DIGEST, b"picture", sent_at=BEFORE)
    assert store.put("acme", "", DIGEST, b"picture", sent_at=BEFORE)
