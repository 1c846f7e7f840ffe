"""Whether two JSON Schemas of one event are FULL_TRANSITIVE compatible.

Full: whoever knows the one can read what the other wrote, in both directions. So between two
versions an optional property may come or go, and nothing else may change: not a required one,
not a type, not the values of an enumeration, not a bound. Anything else is a new topic.
"""

from __future__ import annotations

from typing import Any, cast

Schema = dict[str, Any]

_PROSE = {"title", "description", "default", "examples"}


def incompatibilities(old: Schema, new: Schema) -> list[str]:
    """What breaks readers, one phrase each; empty where the two are compatible."""
    return sorted(set(_compare(old, new, old, new, "", depth=0)))


def _compare(
    old: Schema, new: Schema, old_root: Schema, new_root: Schema, path: str, *, depth: int
) -> list[str]:
    old, new = _resolve(old, old_root), _resolve(new, new_root)
    where = path or "the event"
    if depth > 12:
        return []
    found: list[str] = []
    old_properties = cast("dict[str, Schema]", old.get("properties", {}))
    new_properties = cast("dict[str, Schema]", new.get("properties", {}))
    old_required = set(cast("list[str]", old.get("required", [])))
    new_required = set(cast("list[str]", new.get("required", [])))
    found += [
        f"{path}.{name}: became required; old writers do not send it"
        for name in new_required - old_required
    ]
    found += [
        f"{path}.{name}: is no longer required; old readers rely on it"
        for name in old_required - new_required
    ]
    for name in old_properties.keys() & new_properties.keys():
        found += _compare(
            old_properties[name],
            new_properties[name],
            old_root,
            new_root,
            f"{path}.{name}",
            depth=depth + 1,
        )
    for key in ("items", "additionalProperties"):
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            found += _compare(old[key], new[key], old_root, new_root, f"{path}[]", depth=depth + 1)
        elif old.get(key) != new.get(key):
            found.append(f"{where}: {key} changed from {old.get(key)} to {new.get(key)}")
    found += _compare_choices(old, new, old_root, new_root, path, depth)
    nested = {"properties", "required", "items", "additionalProperties", "anyOf", "oneOf", "$defs"}
    for key in (old.keys() | new.keys()) - nested - _PROSE:
        if old.get(key) != new.get(key):
            found.append(f"{where}: {key} changed from {old.get(key)} to {new.get(key)}")
    return found


def _compare_choices(
    old: Schema, new: Schema, old_root: Schema, new_root: Schema, path: str, depth: int
) -> list[str]:
    found: list[str] = []
    for key in ("anyOf", "oneOf"):
        before = cast("list[Schema]", old.get(key, []))
        after = cast("list[Schema]", new.get(key, []))
        if len(before) != len(after):
            found.append(f"{path or 'the event'}: the number of alternatives changed")
        for left, right in zip(before, after, strict=False):
            found += _compare(left, right, old_root, new_root, path, depth=depth + 1)
    return found


def _resolve(schema: Schema, root: Schema) -> Schema:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    name = reference.rpartition("/")[2]
    rest = {key: value for key, value in schema.items() if key != "$ref"}
    return {**cast("Schema", root["$defs"][name]), **rest}
