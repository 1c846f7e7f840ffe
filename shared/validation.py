"""What pydantic finds wrong with a request, as rule and remedy, without echoing the input."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from shared.errors import FieldError, RatchetError

_Error = TypeVar("_Error", bound=RatchetError)
NAMED_IN_DETAIL = 3
"""Bad fields that an error's one line names."""
_RULES = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "string_pattern_mismatch": "has a form that is not allowed",
}
_REMEDIES = {
    "missing": "send it",
    "extra_forbidden": "leave it out",
    "json_invalid": "send JSON in UTF-8",
    "string_pattern_mismatch": "send a text of the form {pattern}",
    "enum": "send {expected}",
    "literal_error": "send {expected}",
    "greater_than": "send more than {gt}",
    "greater_than_equal": "send {ge} or more",
    "less_than": "send less than {lt}",
    "less_than_equal": "send {le} or less",
    "string_too_long": "send at most {max_length} characters",
    "string_too_short": "send at least {min_length} characters",
    "too_long": "send at most {max_length} of them",
    "too_short": "send at least {min_length} of them",
    "finite_number": "send a finite number",
    "timezone_aware": "send a time with its zone, such as 2026-11-18T09:00:00Z",
}
"""By pydantic's type of error, filled from what it knows of the rule."""
_FORMS = {
    "int": "send a whole number",
    "float": "send a number",
    "decimal": "send a number",
    "bool": "send true or false",
    "string": "send a text",
    "list": "send a list",
    "tuple": "send a list",
    "dict": "send an object",
    "model": "send an object",
    "datetime": "send a time with its zone, such as 2026-11-18T09:00:00Z",
    "date": "send a day, such as 2026-11-18",
    "url": "send a URL, such as https://shop.example",
    "uuid": "send a UUID",
}
"""By the first word of the type, where the value is of another kind."""
_ANY = "send a value that meets the rule"
_PRINTABLE = r"[^\x00-\x1f\x7f]"
"""In the pattern of a text without control characters."""


def rule_and_remedy(found: Mapping[str, Any]) -> tuple[str, str]:
    """The rule that a value breaks and what to do, from one of `ValidationError.errors()`."""
    kind, known = str(found["type"]), dict(found.get("ctx") or {})
    if kind == "value_error":
        # A validator of ours may say `rule; remedy`.
        rule, _, remedy = str(found["msg"]).removeprefix("Value error, ").partition("; ")
        return rule, remedy or _ANY
    if _PRINTABLE in str(known.get("pattern")):
        return "has control characters", "send it in one line, without control characters"
    rule = _RULES.get(kind) or str(found["msg"])
    if kind in _REMEDIES:
        return rule, _REMEDIES[kind].format_map({name: _plain(known[name]) for name in known})
    return rule, _FORMS.get(kind.partition("_")[0], _ANY)


def fields_found(
    errors: Iterable[Mapping[str, Any]], *, whole: str, unsaid: Collection[str] = ()
) -> list[FieldError]:
    """What `ValidationError.errors()` gives, as field, rule and remedy.

    Args:
        errors: what pydantic found.
        whole: names what is validated, for an error that is of no field of it.
        unsaid: parts of a place that are left out of its name.

    """
    return [
        FieldError(
            ".".join(str(part) for part in found["loc"] if part not in unsaid) or whole,
            *rule_and_remedy(found),
        )
        for found in errors
    ]


def in_one_line(fields: Sequence[FieldError]) -> str:
    """The first fields with rule and remedy, and how many more there are."""
    named = [f"{one.field}: {one.rule}; {one.remedy}" for one in fields[:NAMED_IN_DETAIL]]
    if len(fields) > len(named):
        named.append(f"and {len(fields) - len(named)} more")
    return ". ".join(named)


def field_refusal(
    kind: Callable[[str, Sequence[FieldError]], _Error], field: str, rule: str, remedy: str
) -> _Error:
    """An error of this kind that names one field, the rule that it breaks, and what to do."""
    fields = [FieldError(field, rule, remedy)]
    return kind(in_one_line(fields), fields)


def _plain(value: object) -> str:
    return str(value).replace("'", "")
