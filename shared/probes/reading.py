"""YAML files of probes, bounded and with an error that names the file."""

# pyright: strict
from __future__ import annotations

from pathlib import Path

import yaml

from shared.file_faults import fault_of, load_yaml

MAX_BYTES = 4 * 1024 * 1024


class BadProbes(ValueError):
    """A file of probes cannot be read or breaks a rule; says which and how."""


def read_yaml(path: Path) -> object:
    """What a YAML file has.

    Raises:
        BadProbes: it cannot be read, is no YAML or larger than `MAX_BYTES`.

    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadProbes(f"{path}: larger than {MAX_BYTES} bytes; split it")
        return load_yaml(path.read_text("utf-8"))
    except BadProbes:
        raise
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadProbes(f"{path}: cannot be read: {fault_of(error)}") from None
