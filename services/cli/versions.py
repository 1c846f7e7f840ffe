"""`ratchet versions`: registered versions, through the rollout service."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli.http import ask, listing, segment
from services.cli.identity import OnBehalfOf, Why, who
from services.cli.options import DEFAULT_MODEL, Model
from services.cli.output import AsJson, print_json, print_known, print_table
from services.cli.record_tables import print_checks, print_figures
from services.cli.settings import load_settings
from services.cli.version_compare import diff_versions, rebuild_version
from services.cli.version_evaluate import evaluate_version
from services.cli.version_export import export_version
from services.cli.version_rebase import rebase_chain
from services.cli.version_register import register_version
from services.cli.version_trajectory import show_trajectory

SHOWN_APART = frozenset({"version", "record", "metrics", "gate_overridden_by"})
"""What `ratchet versions show` has as its title, or in other fields and tables."""
CARD_FIELDS = frozenset({"card", "rules", "splits"})
"""What `ratchet dataset show` and the console have of a version's dataset."""
VERSION_FIELDS = (
    *(
        "state",
        "reason",
        "retired_by",
        "waits_for",
        "gate",
        "gain",
        "deployments",
        "moved_at",
        "rollout",
    ),
    *("model", "method", "parent", "base", "created_at", "rebases", "evaluated", "evaluation"),
    *("record.reason", "settings", "dataset", "erased_rows", "tenants", "hyperparameters", "seed"),
)
"""Fields of a version in the order of `ratchet versions show`."""

app = typer.Typer(
    help="List versions, register, evaluate, compare, rebuild, rebase, export and retire them."
)
app.command("register")(register_version)
app.command("evaluate")(evaluate_version)
app.command("trajectory")(show_trajectory)
app.command("diff")(diff_versions)
app.command("rebuild")(rebuild_version)
app.command("rebase")(rebase_chain)
app.command("export")(export_version)


@app.callback(invoke_without_command=True)
def versions(context: typer.Context) -> None:
    """List versions, register, evaluate, compare, rebuild, rebase, export and retire them."""
    if context.invoked_subcommand is None:
        list_versions()


@app.command("list")
def list_versions(
    *,
    model: Annotated[str, typer.Option(help="Only this model's.")] = "",
    as_json: AsJson = False,
) -> None:
    """List all versions in the order they were registered, each with its base.

    Engines of the stable version's base refuse those of another; ratchet adapters has their words.
    """
    data = ask(load_settings(), "rollout", "GET", "/v1/versions", query={"model": model})
    if as_json:
        print_json(data)
        return
    versions = list(listing(data, "versions"))
    served = {one.get("model"): one.get("base") for one in versions if one.get("state") == "stable"}
    print_table(
        "Versions",
        ("version", "model", "state", "method", "parent", "base", "gate", "created"),
        [_row(one, served.get(one.get("model"))) for one in versions],
        sparse=True,
    )


@app.command()
def show(
    version: Annotated[str, typer.Argument(help="A version's name, such as assistant-v1.1.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show everything that is recorded of one version."""
    data = ask(load_settings(), "rollout", "GET", f"/v1/versions/{segment(version)}")
    if as_json:
        print_json(data)
        return
    record = dict(data.get("record") or {})
    record.pop("fingerprint", None)  # thousands of figures; --json has them
    if "dataset" in record:  # tables of their own, of `ratchet dataset show`
        record["dataset"] = {
            name: value for name, value in record["dataset"].items() if name not in CARD_FIELDS
        }
    figures, gate = record.pop("metrics", {}), record.pop("gate", {})
    if "reason" in record:  # of settings: why they were registered
        record["record.reason"] = record.pop("reason")
    shown = {**record, **{name: one for name, one in data.items() if name not in SHOWN_APART}}
    erased = data.get("erased_rows") or None
    shown |= {"version": "", "algorithm": "", "released": None, "erased_rows": erased}
    shown["gate"] = _verdict(data) if gate else ""
    print_known(version, shown, order=VERSION_FIELDS, awaited=_awaited(data))
    print_checks(gate.get("checks", []))
    print_figures(figures)


@app.command()
def retire(
    version: Annotated[str, typer.Argument(help="A version without traffic.")],
    reason: Why,
    *,
    on_behalf_of: OnBehalfOf = "",
) -> None:
    """Take a version out of the engines and the queue; ratchet rollout start brings it back."""
    body = {"on_behalf_of": on_behalf_of or who(), "reason": reason}
    path = f"/v1/versions/{segment(version)}/retire"
    data = ask(load_settings(), "rollout", "POST", path, body=body)
    typer.echo(f"{version}: {data['state']}")


@app.command()
def gain(*, model: Model = DEFAULT_MODEL, as_json: AsJson = False) -> None:
    """Show what each version gained over the stable one and over the holdout's reference."""
    data = ask(load_settings(), "rollout", "GET", "/v1/versions/gain", query={"model": model})
    if as_json:
        print_json(data)
        return
    print_table(
        "Gain in satisfaction (0 to 1) over the version that was stable",
        ("version", "over", "gain", "at least", "at most", "confidence", "scores", "how it ended"),
        [_gain(one) for one in listing(data, "gains")],
    )
    shown = [
        _measure(one, against, measure, found)
        for one in listing(data, "gains")
        for against, measure, key in (
            ("reference", "votes won", "win_rate"),
            ("holdout_reference", "satisfaction", "since_reference"),
            ("holdout_reference", "votes won", "win_rate_since_reference"),
        )
        if (found := one.get(key))
    ]
    if shown:
        print_table(
            "Votes won (a tie is half), and gain since the holdout's reference",
            ("version", "over", "measure", "value", "at least", "at most", "of", "of reference"),
            shown,
        )


def _measure(
    one: dict[str, Any], against: str, measure: str, found: dict[str, Any]
) -> tuple[Any, ...]:
    return (
        one.get("version"),
        one.get(against),
        measure,
        found.get("difference", found.get("rate")),
        found.get("low"),
        found.get("high"),
        f"{found.get('candidate_n', found.get('votes', 0)):g}",
        f"{found['stable_n']:g}" if "stable_n" in found else "",
    )


def _gain(one: dict[str, Any]) -> tuple[Any, ...]:
    shown = one.get("satisfaction") or {}
    scores = f"{shown.get('candidate_n', 0):g}, {shown.get('stable_n', 0):g}"
    return (
        one.get("version"),
        one.get("reference"),
        shown.get("difference"),
        shown.get("low"),
        shown.get("high"),
        f"{one.get('confidence', 0):.0%}",
        scores,
        one.get("result"),
    )


def _awaited(version: dict[str, Any]) -> tuple[str, ...]:
    """Fields that a version gets with its rollout."""
    ended = version.get("state") in ("retired", "rejected")
    return () if ended else ("deployments", "gain")


def _verdict(version: dict[str, Any]) -> str:
    """What the gate said of a version."""
    if by := version.get("gate_overridden_by"):
        return f"overridden by {by}"
    return "passed" if version.get("released") else "no"


def _row(version: dict[str, Any], served: Any) -> tuple[Any, ...]:
    base = version.get("base")
    if served is not None and base != served and version.get("method") != "settings":
        base = f"{base} (not served)"
    return (
        version.get("version"),
        version.get("model"),
        version.get("state"),
        version.get("method"),
        version.get("parent"),
        base,
        _verdict(version),
        version.get("created_at"),
    )
