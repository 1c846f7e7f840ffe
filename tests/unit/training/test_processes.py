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


def test_launched_processes_keep_theirs_and_what_they_start_is_told_of_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "2")
    keep_one_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    alone = environment_of_one()
    assert alone["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} & alone.keys()
    assert "TORCHELASTIC_RUN_ID" not in alone
