"""Every service tells how much room its directories have."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prometheus_client import CollectorRegistry

from shared.observability.disk import Directory, watch_disk
from shared.settings import ServiceSettings

ROOT = Path(__file__).parents[3]
FREE, SIZE = "ratchet_disk_free_bytes", "ratchet_disk_size_bytes"


def settings(folder: Path) -> ServiceSettings:
    return ServiceSettings(RATCHET_DATA_DIR=folder)


def samples(registry: CollectorRegistry, name: str) -> dict[str, float]:
    return {
        sample.labels["directory"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_the_size_of_a_volume_is_without_what_is_reserved_for_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = {tmp_path: (250, 54, 38), Path(tempfile.gettempdir()): (10, 9, 1)}

    def disk_usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(**dict(zip(("total", "used", "free"), usage[path], strict=True)))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    registry = CollectorRegistry()
    watch_disk(registry, settings(tmp_path))
    assert samples(registry, FREE) == {"data": 38, "temporary": 1}
    assert samples(registry, SIZE) == {"data": 92, "temporary": 10}


def test_stores_count_where_they_are_local_and_before_anything_is_in_them(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    stores = {
        Directory.datasets: f"file://{tmp_path}/not/yet/there",
        Directory.adapters: "s3://bucket/adapters",
        Directory.media: "",
    }
    watch_disk(registry, settings(tmp_path / "neither"), stores)
    found = samples(registry, SIZE)
    assert set(found) == {"data", "temporary", "datasets"}
    usage = shutil.disk_usage(tmp_path)
    assert found["data"] == found["datasets"] == usage.used + usage.free


def test_a_volume_that_does_not_answer_has_no_sample_and_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = shutil.disk_usage

    def disk_usage(path: Path) -> object:
        if path == tmp_path:
            raise OSError(5, "Input/output error")
        return asked(path)

    registry = CollectorRegistry()
    watch_disk(registry, settings(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert set(samples(registry, FREE)) == {"temporary"}


def test_every_service_of_the_chart_watches_its_disk() -> None:
    values = yaml.safe_load((ROOT / "deploy/k8s/helm/ratchet/values.yaml").read_text())
    homes = {name: f"services/{name}" for name in values["services"]}
    homes["intake"] = "services/feedback/intake"
    for name, home in homes.items():
        source = (ROOT / home / "__main__.py").read_text()
        assert re.search(r"^    watch_disk\(", source, re.MULTILINE), name
