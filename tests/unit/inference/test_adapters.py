from __future__ import annotations

import io
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.events.versions import Fingerprint, FingerprintText
from shared.registry import adapters

logprob = st.floats(-30.0, 0.0)
texts = st.lists(st.lists(logprob, min_size=1, max_size=6), min_size=1, max_size=8)


def folder(root: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def fetch(uri: str, sha256: str, cache: Path) -> Path:
    """Fetched with the test's folder and all that is not local as allowed roots."""
    roots = (str(cache.parent), "memory://nowhere", "unknown-scheme://x")
    return adapters.fetch(uri, sha256, cache, roots=roots)


def fingerprint(values: list[list[float]]) -> Fingerprint:
    return Fingerprint(
        dtype="float32",
        texts=tuple(
            FingerprintText(tokens=tuple(range(len(row) + 1)), logprobs=tuple(row))
            for row in values
        ),
    )


def test_published_adapter_comes_back_under_its_checksum(tmp_path: Path) -> None:
    made = folder(tmp_path / "made", config=b"{}", weights__w=b"\x00\x01")
    sha256 = adapters.publish(made, (tmp_path / "store" / "v1").as_uri())
    fetched = fetch((tmp_path / "store" / "v1").as_uri(), sha256, tmp_path / "cache")
    assert fetched == tmp_path / "cache" / sha256
    assert (fetched / "weights" / "w").read_bytes() == b"\x00\x01"
    assert adapters.checksum(fetched) == sha256


def test_swapped_weights_are_refused_and_leave_nothing_in_the_cache(tmp_path: Path) -> None:
    store = tmp_path / "store"
    sha256 = adapters.publish(folder(tmp_path / "made", weights=b"good"), str(store))
    (store / "weights").write_bytes(b"evil")
    with pytest.raises(adapters.ChecksumMismatch, match="publish the registered files again"):
        fetch(str(store), sha256, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_publishing_never_overwrites_what_is_there(tmp_path: Path) -> None:
    store = tmp_path / "store"
    adapters.publish(folder(tmp_path / "made", weights=b"first"), str(store))
    with pytest.raises(adapters.AdapterError, match="never overwritten"):
        adapters.publish(folder(tmp_path / "other", weights=b"second"), str(store))
    assert (store / "weights").read_bytes() == b"first"


def test_interrupted_upload_is_finished_by_the_same_call_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, store = folder(tmp_path / "made", a=b"1", b=b"2"), tmp_path / "store"
    put_file, puts = LocalFileSystem.put_file, list[str]()

    def cut_short(self: LocalFileSystem, source: str, target: str, **kwargs: object) -> None:
        puts.append(source)
        if len(puts) == 2:
            Path(target).write_bytes(b"")
            raise OSError("killed")
        put_file(self, source, target, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "put_file", cut_short)
    with pytest.raises(adapters.AdapterUnavailable, match="killed"):
        adapters.publish(made, str(store))
    assert {path.name for path in store.iterdir()} == {"a"}
    sha256 = adapters.publish(made, str(store))
    assert adapters.checksum(store) == sha256


def test_damaged_cache_is_fetched_again(tmp_path: Path) -> None:
    store = tmp_path / "store"
    sha256 = adapters.publish(folder(tmp_path / "made", weights=b"good"), str(store))
    cached = fetch(str(store), sha256, tmp_path / "cache")
    (cached / "weights").write_bytes(b"torn")
    assert fetch(str(store), sha256, tmp_path / "cache") == cached
    assert (cached / "weights").read_bytes() == b"good"


@pytest.mark.parametrize("uri", ["nowhere", "memory://nowhere/v1", "unknown-scheme://x/v1"])
def test_storage_without_the_adapter_is_unavailable(tmp_path: Path, uri: str) -> None:
    where = str(tmp_path / uri) if "://" not in uri else uri
    with pytest.raises(adapters.AdapterUnavailable):
        fetch(where, "0" * 64, tmp_path / "cache")


class BotoError(Exception):
    """What s3fs hands on where no HTTP answer came: no OSError."""


class StoreAway(LocalFileSystem):
    """A store that cannot be reached."""

    def find(self, *_: object, **__: object) -> None:
        raise BotoError("no credentials found")

    def put_file(self, *_: object, **__: object) -> None:
        raise BotoError("no credentials found")


@pytest.fixture
def store_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.fsspec, "url_to_fs", lambda uri: (StoreAway(), uri))


@pytest.mark.usefixtures("store_away")
def test_whatever_a_storage_library_raises_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(adapters.AdapterUnavailable, match="cannot be read: no credentials"):
        fetch(str(tmp_path / "store"), "0" * 64, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    made = folder(tmp_path / "made", weights=b"good")
    with pytest.raises(adapters.AdapterUnavailable, match="cannot be written: no credentials"):
        adapters.publish(made, str(tmp_path / "store"))


def test_store_with_too_many_files_holds_no_adapter(tmp_path: Path) -> None:
    many = {f"f{number}": b"" for number in range(adapters.MAX_FILES + 1)}
    folder(tmp_path / "store", **many)
    with pytest.raises(adapters.AdapterError, match="at most 256") as raised:
        fetch(str(tmp_path / "store"), "0" * 64, tmp_path / "cache")
    assert not isinstance(raised.value, adapters.AdapterUnavailable)


def test_cached_folder_whose_deletion_was_cut_short_is_fetched_again(tmp_path: Path) -> None:
    store = tmp_path / "store"
    sha256 = adapters.publish(folder(tmp_path / "made", weights=b"good"), str(store))
    cached = fetch(str(store), sha256, tmp_path / "cache")
    (cached / "weights").unlink()
    assert fetch(str(store), sha256, tmp_path / "cache") == cached
    assert (cached / "weights").read_bytes() == b"good"


def test_folder_without_files_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(adapters.AdapterError, match="1 to 256 files"):
        adapters.checksum(tmp_path)


def test_checksum_tells_a_name_from_a_content(tmp_path: Path) -> None:
    one = adapters.checksum(folder(tmp_path / "a", ab=b"c"))
    other = adapters.checksum(folder(tmp_path / "b", a=b"bc"))
    assert one != other


@given(texts)
def test_nothing_differs_from_itself(values: list[list[float]]) -> None:
    assert adapters.mean_absolute_difference(fingerprint(values), fingerprint(values)) == 0.0


@given(texts, st.floats(0.001, 5.0))
def test_difference_is_the_mean_shift_both_ways(values: list[list[float]], shift: float) -> None:
    moved = [[value - shift for value in row] for row in values]
    there = adapters.mean_absolute_difference(fingerprint(values), fingerprint(moved))
    back = adapters.mean_absolute_difference(fingerprint(moved), fingerprint(values))
    assert there == back == pytest.approx(shift)


def test_other_tokens_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="different tokens"):
        adapters.mean_absolute_difference(fingerprint([[-1.0]]), fingerprint([[-1.0, -2.0]]))


@pytest.fixture
def store(tmp_path: Path) -> tuple[str, str]:
    """A published adapter: its URI and checksum."""
    made = folder(tmp_path / "made", weights=b"good")
    uri = (tmp_path / "store" / "v1").as_uri()
    return uri, adapters.publish(made, uri)


@pytest.mark.parametrize("text", ["../../victim", "{root}/victim", "", ".", "0" * 63, "A" * 64])
def test_a_registered_checksum_that_is_none_touches_no_folder(
    tmp_path: Path, store: tuple[str, str], text: str
) -> None:
    victim, cache = tmp_path / "victim", tmp_path / "x" / "cache"
    for kept in (victim, cache / "kept"):
        folder(kept, data=b"precious")
    with pytest.raises(adapters.AdapterError, match="64 hexadecimal"):
        adapters.fetch(
            store[0], text.format(root=tmp_path), cache, roots=(str(tmp_path / "store"),)
        )
    assert (victim / "data").read_bytes() == (cache / "kept" / "data").read_bytes() == b"precious"
    assert {path.name for path in cache.iterdir()} == {"kept"}


class HostileStore(LocalFileSystem):
    """An object store, whose keys may hold any text."""

    keys: tuple[str, ...] = ()

    def find(self, *_: object, **__: object) -> list[str]:
        return [*self.keys]

    def open(self, *_: object, **__: object) -> io.BytesIO:
        return io.BytesIO(b"evil")


@pytest.mark.parametrize(
    "key",
    ["bucket/v1/../../escaped", "bucket/v1//escaped", "/tmp/escaped", "bucket/v2/x", "bucket/v1/"],
)
def test_object_keys_that_lead_elsewhere_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    away = HostileStore()
    away.keys = ("bucket/v1/harmless", key)
    monkeypatch.setattr(adapters.fsspec, "url_to_fs", lambda _: (away, "bucket/v1"))
    cache = tmp_path / "x" / "cache"
    with pytest.raises(adapters.AdapterError) as raised:
        adapters.fetch("s3://bucket/v1", "0" * 64, cache, roots=("s3://bucket",))
    assert not isinstance(raised.value, adapters.AdapterUnavailable | adapters.ChecksumMismatch)
    assert list(tmp_path.rglob("escaped")) == list(cache.iterdir()) == []


def test_more_bytes_than_allowed_are_not_taken(tmp_path: Path, store: tuple[str, str]) -> None:
    uri, sha256 = store
    roots = (str(tmp_path / "store"),)
    with pytest.raises(adapters.AdapterError, match="more than 3 bytes"):
        adapters.fetch(uri, sha256, tmp_path / "cache", roots=roots, max_bytes=3)
    assert list((tmp_path / "cache").iterdir()) == []
    assert adapters.fetch(uri, sha256, tmp_path / "cache", roots=roots, max_bytes=4).is_dir()


@pytest.mark.parametrize(
    "uri",
    [
        "http://169.254.169.254/latest",
        "zip::file:///store/x.zip",
        "file:///etc",
        "memory://elsewhere/v1",
    ],
)
def test_adapters_come_from_allowed_roots_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("a storage outside the roots was opened")

    monkeypatch.setattr(adapters.fsspec, "url_to_fs", asked)
    with pytest.raises(adapters.AdapterError) as raised:
        adapters.fetch(uri, "0" * 64, tmp_path / "cache", roots=(str(tmp_path / "store"),))
    assert not isinstance(raised.value, adapters.AdapterUnavailable)
