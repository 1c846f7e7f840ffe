"""A fault in a file is one line with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from shared.file_faults import fault_of, load_yaml


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"steps: [a\n", "line 2, column 1: expected ',' or ']', but got '<stream end>'"),
        (b"a: b: c\n", "line 1, column 5: mapping values are not allowed here"),
        (b"a: \xff\n", "byte 3 is no UTF-8"),
        (b"a\0b", "unacceptable character #x0000"),
        (b"[" * 20_000, "it is nested too deep"),
        (None, "No such file or directory"),
    ],
)
def test_a_fault_is_one_line_with_its_place(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "given.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((OSError, ValueError, yaml.YAMLError)) as raised:
        load_yaml(path.read_text(encoding="utf-8"))
    fault = fault_of(raised.value)
    assert fault.startswith(said)
    assert "\n" not in fault
    assert str(path) not in fault
