"""Rows of a dataset: pairs, demonstrations and labelled answers, and the lines that hold them. Pure."""

# pyright: strict
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from services.training.sides import digest, rank
from shared.contracts.conversation import (
    compact_json,
    has_media,
    openai_tools,
    openai_turn,
    read_json,
    stored_tools,
    stored_turn,
)
from shared.contracts.events.base import Message, Tool, Untrainable, utc
from shared.contracts.events.preferences import PreferencePair, UnpairedExample
from shared.contracts.prompt_key import normal_prompt
from shared.contracts.row_sources import MACHINE_MADE

TRAIN, HELDOUT, JUDGE, PROMPTS = "train.jsonl", "heldout.jsonl", "judge.jsonl", "prompts.jsonl"
"""Files of a dataset: trained on, held out, the judge's, prompts of the evaluation."""

LEFT_OUT = "left_out.jsonl"
"""File of a dataset: one line for each row that was left out by what is in the row, see `LeftOut`."""

CUT = ("chosen_cut", "rejected_cut")
"""Flags of a pair's row, present where true: generation was truncated, so its end-of-turn token is
not learned."""

SEGMENTS = ("category", "locale", "segment")
"""What a row's `meta` may say of who asked, and of what."""

Row = dict[str, Any]


@dataclass(frozen=True)
class AskedPrompt:
    """What a model was asked: the turns, and the tools that it could call."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    untrainable: tuple[str, ...] = ()

    @property
    def normal(self) -> str:
        """The normal form, which prompt keys are hashed from."""
        return normal_prompt(self.messages, self.tools)

    @property
    def refusal(self) -> str | None:
        """Why nothing is trained on this prompt, or None."""
        if self.untrainable:
            return self.untrainable[0]
        turns = [turn.model_dump() for turn in self.messages if turn.parts]
        return Untrainable.media.value if has_media(turns) else None

    def row(self) -> Row:
        """The prompt in a line of a dataset: OpenAI's turns, and its tools as JSON.

        Tools and arguments are texts there, as lines are written with sorted keys, and a template
        renders keys in their own order.
        """
        row: Row = {"messages": [openai_turn(turn) for turn in self.messages]}
        if self.tools:
            row["tools"] = compact_json(openai_tools(self.tools))
        return row


class AboutPrompt:
    """What every row has: the prompt that its answers are to. The rows declare the fields."""

    __slots__ = ()
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    untrainable: tuple[str, ...]
    meta: Mapping[str, str]

    @property
    def asked(self) -> AskedPrompt:
        """The turns and tools that the answers are to."""
        return AskedPrompt(self.messages, self.tools, self.untrainable)

    @property
    def prompt(self) -> str:
        """The prompt's normal form, which prompt keys are hashed from."""
        return self.asked.normal

    @property
    def prompt_digest(self) -> bytes:
        """What stands for the prompt where it is compared."""
        return digest(self.prompt)

    @property
    def prompt_rank(self) -> float:
        """The prompt's fixed place in [0, 1), which its side goes by."""
        return rank(self.prompt)

    @property
    def source(self) -> str:
        """Where the row is from."""
        return self.meta.get("source", "")

    @property
    def machine_made(self) -> bool:
        """Whether a machine made or labelled the row, not a person."""
        return self.source in MACHINE_MADE


@dataclass(frozen=True, slots=True)
class Pair(AboutPrompt):
    """A preference pair from the log or from an import."""

    pair_id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_cut: bool = False
    rejected_cut: bool = False
    panel: str = ""
    raters: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict[str, str])
    tools: tuple[Tool, ...] = ()
    chosen_turn: Message | None = None
    rejected_turn: Message | None = None
    untrainable: tuple[str, ...] = ()
    tenant: str = ""
    chosen_side: str = ""

    @property
    def name(self) -> str:
        """Its id."""
        return self.pair_id

    @property
    def label(self) -> None:
        """None: a pair is a good and a bad answer at once."""
        return

    def row(self) -> Row:
        """The pair as a line of a dataset; an answer that is more than text as a turn, too."""
        return {
            **self.asked.row(),
            "chosen": self.chosen,
            "rejected": self.rejected,
            **_answer_turns(chosen=self.chosen_turn, rejected=self.rejected_turn),
            **{name: True for name in CUT if getattr(self, name)},
            "meta": {"pair_id": self.pair_id, **self.meta},
        }


@dataclass(frozen=True, slots=True)
class Demonstration(AboutPrompt):
    """A prompt and the answer a person wants."""

    row_id: str
    messages: tuple[Message, ...]
    answer: str
    meta: Mapping[str, str] = field(default_factory=dict[str, str])
    tools: tuple[Tool, ...] = ()
    answer_turn: Message | None = None
    untrainable: tuple[str, ...] = ()
    tenant: str = ""

    @property
    def name(self) -> str:
        """Its id."""
        return self.row_id

    def row(self) -> Row:
        """The demonstration as a line of a dataset."""
        return {
            **self.asked.row(),
            "answer": self.answer,
            **_answer_turns(answer=self.answer_turn),
            "meta": {"row_id": self.row_id, **self.meta},
        }


@dataclass(frozen=True, slots=True)
class LabelledAnswer(AboutPrompt):
    """One answer that was good or bad, from a thumb or from an import."""

    row_id: str
    messages: tuple[Message, ...]
    answer: str
    label: bool
    answer_cut: bool = False
    raters: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict[str, str])
    panel: str = ""
    tools: tuple[Tool, ...] = ()
    answer_turn: Message | None = None
    untrainable: tuple[str, ...] = ()
    tenant: str = ""

    @property
    def name(self) -> str:
        """Its id."""
        return self.row_id

    def row(self) -> Row:
        """The answer as a line of a dataset."""
        return {
            **self.asked.row(),
            "answer": self.answer,
            **_answer_turns(answer=self.answer_turn),
            "label": self.label,
            **({"answer_cut": True} if self.answer_cut else {}),
            "meta": {"row_id": self.row_id, **self.meta},
        }


class LeftOut(BaseModel):
    """A row that is not in a dataset, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str = Field(description="`import`, or the dataset's file before rows were left out")
    line: int = Field(ge=1, description="of that file")
    reason: Literal["bad_row", "template", "reasoning", "too_long", "erased"]
    detail: str

    @property
    def counted_as(self) -> str:
        """Its name among the manifest's refusals."""
        prefix = {JUDGE: "judge_", PROMPTS: "prompt_"}.get(self.file, "")
        return f"{prefix}{self.reason}"

    def __str__(self) -> str:
        """For people: where, why."""
        return f"{self.file} line {self.line}: {self.reason}: {self.detail}"


def pair_of(event: PreferencePair) -> Pair:
    """A pair of the log. Raters are kept for the judge's independence, and left out of rows."""
    context = event.context
    meta = {
        "source": event.source.value,
        "category": context.category,
        "locale": context.locale,
        "segment": context.segment,
        "chosen_version": event.chosen_version,
        "rejected_version": event.rejected_version,
        "created_at": utc(event.created_at),
    }
    return Pair(
        pair_id=event.pair_id,
        messages=event.messages,
        chosen=event.chosen,
        rejected=event.rejected,
        chosen_cut=event.chosen_cut,
        rejected_cut=event.rejected_cut,
        panel=event.panel,
        raters=event.raters,
        meta=meta,
        tools=event.tools,
        chosen_turn=event.chosen_turn,
        rejected_turn=event.rejected_turn,
        untrainable=event.reasons,
        tenant=event.tenant,
        chosen_side=event.chosen_side,
    )


def answer_of(event: UnpairedExample) -> LabelledAnswer:
    """An unpaired example of the log."""
    context = event.context
    return LabelledAnswer(
        row_id=event.pair_id,
        messages=event.messages,
        answer=event.completion,
        label=event.label,
        answer_cut=event.cut,
        raters=event.raters,
        meta={
            "source": "thumb",
            "category": context.category,
            "locale": context.locale,
            "segment": context.segment,
            "chosen_version": event.version,
            "rejected_version": event.version,
            "created_at": utc(event.created_at),
        },
        tools=event.tools,
        answer_turn=event.answer,
        untrainable=event.reasons,
        tenant=event.tenant,
    )


def canonical(rows: Iterable[Row]) -> bytes:
    """JSON lines with sorted keys in UTF-8: equal rows are equal bytes."""
    return b"".join(canonical_lines(rows))


def canonical_lines(rows: Iterable[Row]) -> Iterator[bytes]:
    """The lines of `canonical`, one at a time."""
    for row in rows:
        yield orjson.dumps(row, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def prompt_of(row: Row) -> AskedPrompt:
    """The prompt of a dataset's line."""
    turns = [Message.model_validate(stored_turn(turn)) for turn in row["messages"]]
    tools = stored_tools(read_json(row["tools"])) if "tools" in row else []
    return AskedPrompt(tuple(turns), tuple(Tool.model_validate(tool) for tool in tools))


def _answer_turns(**turns: Message | None) -> Row:
    """Answers as turns; those of a model with what it thought, which a recipe keeps or drops."""
    return {
        f"{side}_turn": openai_turn(turn, reasoning=True)
        for side, turn in turns.items()
        if turn is not None
    }
