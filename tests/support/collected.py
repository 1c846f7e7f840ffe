"""Spans that an OpenTelemetry collector took, read from what its debug exporter printed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_FIELD = re.compile(r"^\s*(?:-> )?(?P<name>[\w. ]+?)\s*: (?P<value>.*)$")
_TEXT = re.compile(r"^\w+\((?P<value>.*)\)$")


@dataclass
class CollectedSpan:
    """A span with the ids of its trace, its parent and its links, in hex."""

    service: str
    name: str = ""
    trace_id: str = ""
    span_id: str = ""
    parent_id: str = ""
    links: list[str] = field(default_factory=list[str])
    """Span ids."""
    attributes: dict[str, str] = field(default_factory=dict[str, str])


def collected_spans(printed: str) -> list[CollectedSpan]:
    """The spans in a detailed print; one that is not printed whole may lack fields."""
    spans: list[CollectedSpan] = []
    service = part = ""
    for line in printed.splitlines():
        if line.startswith("Resource"):
            part = "resource"
        elif line.startswith("Span #"):
            part = "span"
            spans.append(CollectedSpan(service))
        elif line.strip() == "Attributes:":
            # A link's follow those of its span.
            part = "attributes" if part == "span" else "of a link"
        elif line.startswith("SpanLink #"):
            part = "link"
        elif (found := _FIELD.match(line)) and part:
            name, value = found["name"], found["value"]
            text = _TEXT.match(value)
            if part == "resource" and name == "service.name" and text:
                service = text["value"]
            elif part == "span":
                _set(spans[-1], name, value)
            elif part == "attributes" and text:
                spans[-1].attributes[name] = text["value"]
            elif part == "link" and name == "ID":
                spans[-1].links.append(value.strip())
    return spans


def _set(span: CollectedSpan, name: str, value: str) -> None:
    match name:
        case "Trace ID":
            span.trace_id = value.strip()
        case "Parent ID":
            span.parent_id = value.strip()
        case "ID":
            span.span_id = value.strip()
        case "Name":
            span.name = value.strip()
        case _:
            pass
