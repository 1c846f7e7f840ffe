"""`ratchet versions register`: a version of prompts and settings, without training."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.errors import CliError, Exit
from services.cli.http import ask
from services.cli.identity import OnBehalfOf, Why, who
from services.cli.options import DEFAULT_MODEL
from services.cli.output import AsJson, print_json, print_known
from services.cli.settings import load_settings

NO_ADAPTER = "none"


class SystemRule(StrEnum):
    """Where the version's system prompt stands."""

    before = "before"
    in_place = "replace"


class Precedence(StrEnum):
    """Whose value of a field counts where client and version both have one."""

    client = "client"
    version = "version"


def register_version(
    version: Annotated[str, typer.Argument(help="The version's name; never used before.")],
    reason: Why,
    *,
    model: Annotated[str, typer.Option(help="The name clients ask for.")] = DEFAULT_MODEL,
    adapter_of: Annotated[
        str, typer.Option(help="Serve what this version serves: its adapter, or the base.")
    ] = NO_ADAPTER,
    base: Annotated[
        str,
        typer.Option(
            help="The base's name at the engine.", show_default="stable's, else the engine's"
        ),
    ] = "",
    system_file: Annotated[Path | None, typer.Option(help="Text of a system prompt.")] = None,
    system_rule: Annotated[
        SystemRule, typer.Option(help="Before the client's system prompt, or in its place.")
    ] = SystemRule.before,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; else the client's.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Share of likely tokens to sample from; else the client's.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of one answer; else the client's.")
    ] = None,
    defaults_file: Annotated[
        Path | None,
        typer.Option(help="JSON of more request fields: tools, response_format, stop, top_k …"),
    ] = None,
    precedence: Annotated[
        Precedence, typer.Option(help="Whose value counts where client and version have one.")
    ] = Precedence.client,
    on_behalf_of: OnBehalfOf = "",
    as_json: AsJson = False,
) -> None:
    """Register a system prompt, sampling, tools or a response format as a version."""
    given = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
    defaults = {name: value for name, value in given.items() if value is not None}
    body: dict[str, Any] = {
        "version": version,
        "model": model,
        "base": base,
        "adapter_of": "" if adapter_of == NO_ADAPTER else adapter_of,
        "settings": {
            "system": _text("--system-file", system_file).strip() if system_file else "",
            "system_rule": system_rule.value,
            "defaults": (_fields(defaults_file) if defaults_file else {}) | defaults,
            "precedence": precedence.value,
        },
        "on_behalf_of": on_behalf_of or who(),
        "reason": reason,
    }
    made = ask(load_settings(), "rollout", "POST", "/v1/versions", body=body)
    if as_json:
        print_json(made)
        return
    print_known(f"Registered {version}", {"state": made.get("state"), **made.get("record", {})})


def _fields(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(_text("--defaults-file", path))
    except ValueError as error:
        raise CliError(f"--defaults-file: {path} is no JSON: {error}", Exit.usage) from None
    if not isinstance(fields, dict):
        raise CliError(f"--defaults-file: {path} must be a JSON object of fields", Exit.usage)
    return fields


def _text(option: str, path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{option}: {path} cannot be read: {error}", Exit.usage) from None
