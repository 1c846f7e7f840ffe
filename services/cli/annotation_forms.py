"""Items of the annotation queue in the forms of other labelling tools, and labels from these. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from services.cli.pair_formats.pair import BadPair, objects
from shared.contracts.events.annotations import AnnotationKind

_SHOWN = {"response1": "left", "response2": "right"}
"""Argilla's names of the sides."""


class ToolLabel(NamedTuple):
    """A label that a person gave in another tool."""

    item_id: str
    annotator: str
    label: str
    """By the sides as the tool showed them."""
    turned: bool
    """Whether it showed the second answer on the left."""


@dataclass(frozen=True, slots=True)
class SidedItem:
    """An item and the order in which its answers are shown."""

    item: Mapping[str, Any]
    """As `GET /v1/annotations/{item_id}` gives it."""
    turned: bool

    @property
    def answers(self) -> list[str]:
        """The answers, the left one first."""
        answers = list(self.item["answers"])
        return answers[::-1] if self.turned else answers


LABELLING_CONFIG = {
    AnnotationKind.preference: """<View>
  <Header value="$guidelines"/>
  <Paragraphs name="dialogue" value="$dialogue" layout="dialogue" nameKey="author" textKey="text"/>
  <View style="display: grid; grid-template-columns: 1fr 1fr; gap: 1em">
    <Text name="answer1" value="$answer1"/>
    <Text name="answer2" value="$answer2"/>
  </View>
  <Choices name="label" toName="answer1" choice="single" showInline="true" required="true">
    <Choice value="left" hotkey="1"/>
    <Choice value="right" hotkey="2"/>
    <Choice value="tie" hotkey="3"/>
    <Choice value="both_bad" hotkey="4"/>
  </Choices>
</View>
""",
    AnnotationKind.rating: """<View>
  <Header value="$guidelines"/>
  <Paragraphs name="dialogue" value="$dialogue" layout="dialogue" nameKey="author" textKey="text"/>
  <Text name="answer1" value="$answer1"/>
  <Rating name="label" toName="answer1" maxRating="5" required="true"/>
</View>
""",
}
"""Kind of an item -> the labelling interface of a Label Studio project for it."""


def label_studio_task(shown: SidedItem) -> dict[str, Any]:
    """A task for Label Studio's import."""
    item = shown.item
    answers = {f"answer{number}": text for number, text in enumerate(shown.answers, 1)}
    dialogue = [{"author": one["role"], "text": one["content"]} for one in item["messages"]]
    return {
        "data": {
            "item": item["item_id"],
            "turned": shown.turned,
            "guidelines": item["guidelines"] or item["category"] or " ",
            "dialogue": dialogue,
            **answers,
        }
    }


def label_studio_labels(task: Mapping[str, Any]) -> Iterator[ToolLabel]:
    """The labels of a task of Label Studio's JSON export; annotations that were cancelled give none.

    Raises:
        BadPair: it is no task of ours, or has an annotation without a label.

    """
    data = _object(task.get("data"), "data")
    item_id, turned = _place(data, "item", "data")
    for given in objects(task.get("annotations") or [], "annotations"):
        if given.get("was_cancelled"):
            continue
        who = given.get("completed_by")
        if isinstance(who, dict):
            who = cast("dict[str, Any]", who).get("id")
        yield ToolLabel(item_id, f"label-studio-{who}", _label_of_results(given), turned)


def _label_of_results(given: Mapping[str, Any]) -> str:
    for result in objects(given.get("result") or [], "annotations.result"):
        value = _object(result.get("value"), "annotations.result.value")
        match result.get("type"):
            case "choices":
                return _one_of(value.get("choices"))
            case "pairwise":
                return str(value.get("selected"))
            case "rating":
                return str(value.get("rating"))
            case _:
                pass
    raise BadPair("annotations: one has neither choices, pairwise nor rating")


def argilla_record(shown: SidedItem) -> dict[str, Any]:
    """A record as Argilla's `records.to_list()` gives it."""
    item = shown.item
    answers = {f"response{number}": text for number, text in enumerate(shown.answers, 1)}
    prompt = [{"role": one["role"], "content": one["content"]} for one in item["messages"]]
    return {
        "id": item["item_id"],
        "fields": {"prompt": prompt, **answers},
        "metadata": {"item": item["item_id"], "turned": shown.turned},
        "responses": {},
    }


def argilla_labels(record: Mapping[str, Any]) -> Iterator[ToolLabel]:
    """The labels of an Argilla record with responses to `preference` or `rating`.

    Raises:
        BadPair: it is no record of ours.

    """
    metadata = _object(record.get("metadata"), "metadata")
    item_id, turned = _place(metadata, "item", "metadata")
    responses = _object(record.get("responses") or {}, "responses")
    for question in AnnotationKind:
        for given in objects(responses.get(question) or [], f"responses.{question}"):
            if given.get("status", "submitted") != "submitted":
                continue
            label = str(given.get("value"))
            who = f"argilla-{given.get('user_id')}"
            yield ToolLabel(item_id, who, _SHOWN.get(label, label), turned)


def _place(fields: Mapping[str, Any], name: str, within: str) -> tuple[str, bool]:
    item_id, turned = fields.get(name), fields.get("turned", False)
    if not isinstance(item_id, str) or not item_id:
        raise BadPair(f"{within}.{name}: must be the item's id, as `annotations push` wrote it")
    if not isinstance(turned, bool):
        raise BadPair(f"{within}.turned: must be true or false")
    return item_id, turned


def _one_of(choices: object) -> str:
    if isinstance(choices, list) and len(cast("list[object]", choices)) == 1:
        return str(cast("list[object]", choices)[0])
    raise BadPair("annotations.result.value.choices: must be one choice")


def _object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadPair(f"{name}: must be an object")
    return cast("Mapping[str, Any]", value)
