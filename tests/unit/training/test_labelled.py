"""Single answers, good or bad: thumbs train, alone or beside pairs."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.training.dataset_rows import (
    HELDOUT,
    JUDGE,
    PROMPTS,
    TRAIN,
    LabelledAnswer,
)
from services.training.errors import BadDataset
from services.training.importing import read_labelled
from services.training.labelled import select_labelled
from services.training.sides import DatasetRules
from services.training.snapshot import take_snapshot
from shared.contracts.events.base import Message, Tool, ToolCall
from shared.contracts.events.training import TrainingMethod
from shared.contracts.topics import PREFERENCES
from shared.testing.log import MemoryLog
from tests.unit.training.builders import MODEL, example_event, pair, pair_event, turns

ALL = DatasetRules(heldout_share=0.0, judge_share=0.0)


def thumb(number: int, *, label: bool, **fields: object) -> LabelledAnswer:
    given = {
        "row_id": f"thumb-{number:04}",
        "messages": turns(f"thumbed {number}"),
        "answer": f"a long enough answer {number}",
        **fields,
    }
    return LabelledAnswer(label=label, **given)  # type: ignore[arg-type]


async def test_a_lone_thumb_trains() -> None:
    log = MemoryLog()
    event = example_event(1).model_copy(
        update={"completion": "an answer nobody wants", "label": False}
    )
    await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)
    dataset = await take_snapshot(
        log, model=MODEL, method=TrainingMethod.dpo, rules=ALL, labelled=True
    )
    (row,) = map(orjson.loads, dataset.files[TRAIN].splitlines())
    assert (row["answer"], row["label"]) == ("an answer nobody wants", False)
    assert dataset.manifest.labelled


async def test_a_rebuild_of_labelled_rows_is_the_same() -> None:
    log = MemoryLog()
    for event in (*map(pair_event, range(30)), *map(example_event, range(30))):
        await log.publish(PREFERENCES, key=event.pair_id, event=event, event_id=event.pair_id)

    async def snapshot() -> bytes:
        made = await take_snapshot(
            log, model=MODEL, method=TrainingMethod.dpo, rules=DatasetRules(), labelled=True
        )
        return made.manifest.encode()

    assert await snapshot() == await snapshot()


def test_a_pair_is_a_good_and_a_bad_answer() -> None:
    chosen = select_labelled([pair(1, rejected_cut=True)], [], ALL)
    good, bad = chosen.files[TRAIN]
    assert (good["label"], bad["label"]) == (True, False)
    assert "answer_cut" not in good
    assert bad["answer_cut"] is True


def test_the_same_answer_good_and_bad_is_neither() -> None:
    rows = [thumb(1, label=True), thumb(2, label=False, messages=turns("thumbed 1"))]
    rows[1] = thumb(2, label=False, messages=turns("thumbed 1"), answer=rows[0].answer)
    chosen = select_labelled(
        [], [*rows, thumb(3, label=True), thumb(4, label=True, answer="x")], ALL
    )
    assert len(chosen.files[TRAIN]) == 1
    assert chosen.refused == {"contradictory": 2, "too_short": 1}


@given(st.integers(0, 40), st.integers(0, 40))
def test_nothing_is_on_two_sides_and_everything_is_counted(pairs: int, thumbs: int) -> None:
    chosen = select_labelled(
        [pair(n, raters=(f"user-{n % 9}",)) for n in range(pairs)],
        [
            thumb(
                n, label=n % 2 == 0, messages=turns(f"question {n % 50}"), raters=(f"user-{n % 9}",)
            )
            for n in range(thumbs)
        ],
        DatasetRules(),
    )

    def prompts(name: str) -> set[str]:
        asked = ("messages", "rejected_messages")
        return {row[of][0]["content"] for row in chosen.files[name] for of in asked if of in row}

    for name in (HELDOUT, JUDGE, PROMPTS):
        assert not prompts(TRAIN) & prompts(name), name
    assert all(row.get("label", True) for row in chosen.files[HELDOUT])
    of_pairs = sum("/" in row["meta"].get("row_id", "") for row in chosen.files[TRAIN])
    kept = len(chosen.files[TRAIN]) - of_pairs // 2 + len(chosen.files[HELDOUT])
    judged = sum(2 if "rejected_messages" in row else 1 for row in chosen.files[JUDGE])
    assert kept + judged + sum(chosen.refused.values()) == pairs + thumbs


def test_an_import_of_labelled_answers_is_read_by_line() -> None:
    rows = [
        {"messages": [{"role": "user", "content": "q"}], "completion": "yes", "label": True},
        {"prompt": "q", "completion": [{"role": "assistant", "content": "no"}], "label": False},
    ]
    data = [json.dumps(row).encode() for row in rows]
    assert [one.label for one in read_labelled(data)] == [True, False]
    with pytest.raises(BadDataset, match="line 1: label: must be true for a good answer"):
        read_labelled([json.dumps({**rows[0], "label": "up"}).encode()])


def test_tool_calls_are_rows_of_their_turn_and_the_untrainable_are_counted() -> None:
    call = ToolCall(id="c1", name="get_weather", arguments='{"city":"Rome"}')
    turn = Message(role="assistant", content="", tool_calls=(call,))
    tools = (Tool(name="get_weather"),)
    chosen = select_labelled(
        [pair(1, rejected_turn=turn, tools=tools), pair(2, untrainable=("echo",))],
        [
            thumb(3, label=True, answer_turn=turn, tools=tools),
            thumb(4, label=False, untrainable=("media",)),
        ],
        ALL,
    )
    rows = {row["meta"].get("row_id"): row for row in chosen.files[TRAIN]}
    with_call = {name for name, row in rows.items() if "answer_turn" in row}
    assert len(rows) == 3
    assert with_call == {"pair-0001/rejected", thumb(3, label=True).row_id}
    assert all(row["tools"] == '[{"type":"function","function":{"name":"get_weather","parameters":{}}}]'
               for row in rows.values())  # fmt: skip
    assert chosen.refused == {"echo": 1, "media": 1}
