"""The population stability index."""

from __future__ import annotations

import pytest

from shared.stability import stability_index


def test_the_index_is_that_of_the_formula_less_what_chance_gives() -> None:
    found = stability_index({"a": 500, "b": 500}, {"a": 800, "b": 200})
    wanted = 0.3 * 0.4700036292 + 0.3 * 0.9162907319
    assert found == pytest.approx(wanted - (1 + 1.6448536 * 2**0.5) * 2 / 1000)
