"""Chaos has servers of its own: it stalls them, and reads whole topics to count them again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.servers import Servers


@pytest.fixture(scope="module")
def servers(clean_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """In place of the session's: a broker that only this module knows."""
    with Servers(tmp_path_factory.mktemp("chaos")) as started:
        yield started


@pytest.fixture(scope="module")
def kafka(servers: Servers) -> str:
    """Bootstrap address of that broker."""
    return servers.kafka()
