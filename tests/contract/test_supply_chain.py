"""Locks, the bill of materials made of them, and the tool that proposes newer ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
NOT_SHIPPED = {
    *(
        "arena-rank",
        "arenakit",
        "dev",
        "bench",
        "bench-smg",
        "bench-streams",
        "bench-vllm-router",
        "clients",
        "docs",
        "flink",
        "grafana",
        "label-studio",
        "mlflow",
        "presidio",
        "sbom",
    ),
}


def test_the_bill_of_materials_covers_every_shipped_lock() -> None:
    found = re.search(r"^SHIPPED := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    locks = {
        path.stem for path in (ROOT / "requirements").glob("*.txt") if path.stem != "ml-overrides"
    }
    assert set(found[1].split()) == locks - NOT_SHIPPED


def test_renovate_waits_before_it_proposes_a_release() -> None:
    config = json.loads((ROOT / "renovate.json").read_text())
    assert config["minimumReleaseAge"]
    assert "pep621" in config["enabledManagers"]


def test_locks_have_hashes_and_name_no_registry() -> None:
    locks, asked = (
        [path for folder in ("benchmarks", "tests") for path in (ROOT / folder).rglob(name)]
        for name in ("package-lock.json", "package.json")
    )
    assert len(locks) == len(asked) == 4
    for lock in locks:
        packages = json.loads(lock.read_text())["packages"]
        assert len(packages) > 1
        for name, package in packages.items():
            assert "resolved" not in package, name
            assert not name or package["integrity"].startswith("sha512-"), name
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text, path
        assert path.stem == "ml-overrides" or "--hash=sha256:" in text, path


def test_every_image_can_be_pinned_by_digest() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    images = re.findall(r"^\s+image: (\S+)$", compose, re.MULTILINE)
    foreign = [image for image in images if not image.startswith("ratchet/")]
    assert len(foreign) >= 5
    for image in foreign:
        assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[a-z./-]+:\S+\}", image), image
    assert re.search(r"^x-base: &base \$\{BASE_IMAGE:-", compose, re.MULTILINE)
    for service in yaml.safe_load(compose)["services"].values():
        if "build" in service:
            assert service["build"]["args"]["BASE"].startswith("${BASE_IMAGE:-")
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    stages = set(re.findall(r" AS (\S+)$", dockerfile, re.MULTILINE))
    for source in re.findall(r"^FROM (\S+) AS", dockerfile, re.MULTILINE):
        assert source == "${BASE}" or source in stages
