from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.training.errors import InvalidJob
from services.training.versioning import choose_name
from shared.contracts.events.training import TrainingMethod

SFT, DPO = TrainingMethod.sft, TrainingMethod.dpo
names = st.sets(
    st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda n: f"assistant-v{n[0]}.{n[1]}")
    | st.sampled_from(["other-v1.0", "assistant", "assistant-v1", "assistant-v1.0-drill", "x"])
)


@pytest.mark.parametrize(
    ("method", "parent", "taken", "name"),
    [
        (SFT, "", set(), "assistant-v1.0"),
        (SFT, "", {"assistant-v1.0", "assistant-v1.4"}, "assistant-v2.0"),
        (DPO, "assistant-v1.0", {"assistant-v1.0"}, "assistant-v1.1"),
        (DPO, "assistant-v1.0", {"assistant-v1.0", "assistant-v1.9"}, "assistant-v1.10"),
        (DPO, "assistant-v1.0", {"assistant-v1.0", "assistant-v2.3"}, "assistant-v1.1"),
        (DPO, "drill", {"drill", "assistant-v2.3"}, "assistant-v2.4"),
    ],
)
def test_names_that_follow(method: TrainingMethod, parent: str, taken: set[str], name: str) -> None:
    assert choose_name("assistant", method, wanted="", parent=parent, taken=taken) == name


@given(names, st.sampled_from([SFT, DPO]), st.sampled_from(["", "assistant-v1.0", "x"]))
def test_a_name_is_never_reused(taken: set[str], method: TrainingMethod, parent: str) -> None:
    assert choose_name("assistant", method, wanted="", parent=parent, taken=taken) not in taken


def test_a_wanted_name_must_be_free_and_fit() -> None:
    def choose(wanted: str) -> str:
        return choose_name("assistant", DPO, wanted=wanted, parent="", taken={"assistant-v1.1"})

    assert choose("assistant-drill") == "assistant-drill"
    with pytest.raises(InvalidJob, match="names are never reused"):
        choose("assistant-v1.1")
    for unfit in ("../up", "a/b", "assistant", "ü", "-x"):
        with pytest.raises(InvalidJob, match="cannot be a version's name"):
            choose(unfit)
