"""One process trains on one device; several share them by what their launcher says."""

from __future__ import annotations

import os

import pytest

from services.training.trainers.processes import environment_of_one, keep_one_device


@pytest.mark.parametrize(
    ("seen", "kept"), [(None, "0"), ("2,3", "2"), ("GPU-1f,GPU-2e", "GPU-1f"), ("", "")]
)
def test_a_single_process_sees_its_first_device_alone(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, kept: str
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    keep_one_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == kept


@pytest.mark.parametrize(
    ("seen", "local", "its"),
    [("2,3", "1", "3"), ("2,3", "0", "2"), (None, "1", "1"), ("", "0", "")],
)
def test_launched_processes_keep_theirs_and_what_they_start_has_the_same_device_alone(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, local: str, its: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("LOCAL_RANK", local)
    keep_one_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    alone = environment_of_one()
    assert alone["CUDA_VISIBLE_DEVICES"] == its
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} & alone.keys()
    assert "TORCHELASTIC_RUN_ID" not in alone
