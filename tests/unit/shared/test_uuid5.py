"""UUIDs of names: the standard library's own, in less time."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from shared.uuid5 import uuid5_text


@given(st.uuids(), st.text(max_size=80).filter(lambda text: text.isprintable()))
def test_it_is_the_standard_librarys(namespace: uuid.UUID, name: str) -> None:
    assert uuid5_text(namespace.bytes, name) == str(uuid.uuid5(namespace, name))
