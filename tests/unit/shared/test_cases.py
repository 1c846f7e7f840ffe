"""The failure memory: what is a case, and what takes one away."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from shared.contracts.events.base import Message
from shared.contracts.events.cases import CaseFound, CaseRetired
from shared.contracts.events.preferences import PairSource, PreferencePair, PreferenceRetracted
from shared.registry.cases import FailureMemory

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def pair(pair_id: str, source: PairSource = PairSource.vote, **fields: Any) -> PreferencePair:
    return PreferencePair(
        pair_id=pair_id,
        tenant="default",
        model="m",
        messages=(Message(role="user", content="q"),),
        chosen="right",
        rejected="wrong",
        source=source,
        causes=(f"{pair_id}:0",),
        traces=(f"trace of {pair_id}",),
        created_at=NOW,
        **fields,
    )


def test_corrections_and_answers_of_a_version_rolled_back_are_cases_with_their_lineage() -> None:
    memory = FailureMemory()
    memory.apply(pair("vote", rejected_version="m-v1"))
    memory.apply(pair("corrected", PairSource.correction, rejected_version="m-v1"))
    memory.apply(pair("bad", rejected_version="m-v2"))
    memory.apply(pair("by a model", PairSource.synthetic, rejected_version="m-v2"))
    assert [case.case_id for case in memory.cases(())] == ["corrected"]
    found = {case.case_id: case for case in memory.cases({"m-v2"})}
    assert found.keys() == {"corrected", "bad"}
    assert (found["bad"].kind, found["bad"].version) == ("rollback", "m-v2")
    assert (found["bad"].causes, found["bad"].traces) == (("bad:0",), ("trace of bad",))


def test_a_case_stays_until_it_is_retired_or_its_feedback_is_gone() -> None:
    memory = FailureMemory()
    for name in ("kept", "retired", "erased"):
        memory.apply(pair(name, PairSource.correction))
    memory.apply(CaseRetired(case_id="retired", reason="policy changed", actor="ann", at=NOW))
    memory.apply(
        PreferenceRetracted(pair_id="erased", tenant="default", reason="erased", created_at=NOW)
    )
    assert {case.case_id: case.retired for case in memory.cases(())} == {
        "kept": "",
        "retired": "ann: policy changed",
    }


def test_what_a_red_team_found_is_a_case_until_it_is_retired() -> None:
    memory = FailureMemory()
    for name in ("leak", "retired"):
        memory.apply(
            CaseFound(
                case_id=name,
                model="m",
                version="m-v1",
                messages=(Message(role="user", content="q"),),
                good="right",
                bad="wrong",
                probe=f"{name}/plain",
                actor="ann",
                at=NOW,
            )
        )
    memory.apply(CaseRetired(case_id="retired", reason="no harm", actor="ann", at=NOW))
    found, retired = memory.cases(())
    assert (found.case_id, found.kind, found.version) == ("leak", "redteam", "m-v1")
    assert (found.good, found.bad, found.causes) == ("right", "wrong", ("leak/plain",))
    assert (found.retired, retired.retired) == ("", "ann: no harm")


def test_what_is_more_than_text_is_no_case() -> None:
    memory = FailureMemory()
    memory.apply(pair("media", PairSource.correction, untrainable=("media",)))
    assert memory.cases(()) == []
