"""The aggregator makes its data directory, or ends naming the variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.aggregator.errors import DataDirUnusable
from services.aggregator.faust_app import make_data_dir


def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    make_data_dir(tmp_path / "not" / "there")
    assert (tmp_path / "not" / "there").is_dir()


def test_one_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirUnusable, match="RATCHET_DATA_DIR"):
        make_data_dir(tmp_path / "file" / "data")
