"""`ratchet rollout`: start, watch, pause, resume, promote and abort rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from services.cli import holdout
from services.cli.errors import CliError, Exit
from services.cli.http import ask, download_to, listing, segment
from services.cli.identity import OnBehalfOf, Why, who
from services.cli.options import DEFAULT_MODEL, Model
from services.cli.output import AsJson, percent, print_fields, print_json, print_table
from services.cli.rollout_status import show_rollout
from services.cli.settings import CliSettings, load_settings
from shared.file_faults import fault_of, load_yaml

app = typer.Typer(no_args_is_help=True, help="Start, watch and steer rollouts.")
app.add_typer(holdout.app, name="holdout")

RolloutId = Annotated[str, typer.Argument(help="The rollout; the model's present one if left out.")]
RolloutOrVersion = Annotated[
    str,
    typer.Argument(help="A rollout, or a version for its newest; else the model's present one."),
]
REPLAY_TIMEOUT_S = 900.0
"""The service reads the whole topic, and judges hundreds of thousands of looks again."""


@app.command()
def start(
    candidate: Annotated[str, typer.Argument(help="The version to roll out.")],
    reason: Why,
    *,
    model: Model = DEFAULT_MODEL,
    strategy: Annotated[
        str, typer.Option(help="A strategy's name (default, restore), or @file.yaml.")
    ] = "",
    supersede: Annotated[
        bool, typer.Option("--supersede", help="End an unfinished rollout first.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Start a version that was rejected before.")
    ] = False,
    unevaluated: Annotated[
        bool,
        typer.Option(
            "--unevaluated", help="Start though the strategy requires a passed evaluation."
        ),
    ] = False,
    one_tenant: Annotated[
        bool,
        typer.Option(
            "--one-tenant", help="Accept that one tenant gave more than half of its data."
        ),
    ] = False,
    on_behalf_of: OnBehalfOf = "",
    as_json: AsJson = False,
) -> None:
    """Start a rollout of a version."""
    body: dict[str, Any] = {"model": model, "candidate": candidate, "supersede": supersede}
    if again:
        body["again"] = True
    if unevaluated:
        body["unevaluated"] = True
    if one_tenant:
        body["one_tenant"] = True
    if strategy:
        body["strategy"] = _strategy(strategy)
    body |= {"on_behalf_of": on_behalf_of or who(), "reason": reason}
    _say(ask(load_settings(), "rollout", "POST", "/v1/rollouts", body=body), as_json=as_json)


@app.command("list")
def list_rollouts(
    *,
    model: Annotated[str, typer.Option(help="Only this model's; empty: all.")] = "",
    as_json: AsJson = False,
) -> None:
    """List all rollouts, finished ones too."""
    data = ask(load_settings(), "rollout", "GET", "/v1/rollouts", query={"model": model})
    if as_json:
        print_json(data)
        return
    print_table(
        "Rollouts",
        ("rollout", "model", "candidate", "stable", "phase", "step", "weight", "reason"),
        [
            (
                item.get("rollout_id"),
                item.get("model"),
                item.get("candidate"),
                item.get("stable"),
                item.get("phase"),
                item.get("step"),
                percent(item.get("weight") or 0),
                item.get("reason"),
            )
            for item in listing(data, "rollouts")
        ],
    )


@app.command()
def status(
    rollout_id: RolloutOrVersion = "", *, model: Model = DEFAULT_MODEL, as_json: AsJson = False
) -> None:
    """Show a rollout: phase, step, weight, the judge's last look."""
    settings = load_settings()
    if not rollout_id:
        show_rollout(current(settings, model), as_json=as_json)
        return
    path = f"/v1/rollouts/{segment(_rollout_of(settings, rollout_id, model))}"
    show_rollout(ask(settings, "rollout", "GET", path), as_json=as_json)


@app.command()
def decisions(
    rollout_id: RolloutOrVersion = "",
    *,
    model: Model = DEFAULT_MODEL,
    after: Annotated[str, typer.Option(help="Only those behind this decision's id.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Decisions of this page.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List every decision of a rollout with its evidence, oldest first."""
    settings = load_settings()
    wanted = _rollout_of(settings, rollout_id, model)
    query = {"limit": limit, "after": after or None}
    path = f"/v1/rollouts/{segment(wanted)}/decisions"
    data = ask(settings, "rollout", "GET", path, query=query)
    if as_json:
        print_json(data)
        return
    print_table(
        f"Decisions of {wanted}",
        ("at", "kind", "phase", "step", "weight", "outcome", "actor", "on behalf of", "reason"),
        [
            (
                item.get("at"),
                item.get("kind"),
                item.get("phase"),
                item.get("step"),
                f"{percent(item.get('weight_before') or 0)} → {percent(item.get('weight') or 0)}",
                item.get("outcome"),
                item.get("actor"),
                item.get("on_behalf_of"),
                item.get("reason"),
            )
            for item in listing(data, "decisions")
        ],
    )


@app.command()
def history(
    rollout_id: RolloutOrVersion = "",
    *,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Tell in sentences what was decided, by whom and why, oldest first."""
    settings = load_settings()
    wanted = _rollout_of(settings, rollout_id, model)
    path = f"/v1/rollouts/{segment(wanted)}/decisions"
    data = ask(settings, "rollout", "GET", path, query={"limit": 1000, "moves": "true"})
    if as_json:
        print_json(data)
        return
    for item in listing(data, "decisions"):
        typer.echo(f"{item.get('at')}  {item.get('sentence')}")


@app.command()
def replay(
    rollout_id: RolloutOrVersion = "", *, model: Model = DEFAULT_MODEL, as_json: AsJson = False
) -> None:
    """Recompute every decision from its record; status 1 where one differs or is not whole."""
    settings = load_settings()
    wanted = _rollout_of(settings, rollout_id, model)
    path = f"/v1/rollouts/{segment(wanted)}/replay"
    data = ask(settings, "rollout", "GET", path, timeout_s=REPLAY_TIMEOUT_S)
    if as_json:
        print_json(data)
    else:
        print_fields("Replay", data)
    if not data.get("agrees"):
        raise typer.Exit(Exit.failed)


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The CSV file to write.")],
    rollout_id: RolloutOrVersion = "",
    *,
    model: Model = DEFAULT_MODEL,
) -> None:
    """Write the judge's evidence of a rollout as CSV, one row for each look and arm."""
    settings = load_settings()
    wanted = _rollout_of(settings, rollout_id, model)
    path = f"/v1/rollouts/{segment(wanted)}/slices"
    size = download_to(settings, "rollout", path, out, query={})
    typer.echo(f"{out}: {size} bytes, the slices of {wanted}")


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A strategy as YAML.")], *, as_json: AsJson = False
) -> None:
    """Check whether a strategy is valid; name field, rule and remedy where it is not."""
    data = _explained({"strategy": _strategy(f"@{file}")})
    if as_json:
        print_json(data)
    else:
        typer.echo(f"{file}: valid; {data.get('name')}, sha256 {data.get('config_sha256')}")


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="A strategy as YAML.")],
    *,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second; left out: as in the present rollout.")
    ] = None,
    feedback: Annotated[
        float, typer.Option(help="Share of answers that get feedback, 0 to 1.")
    ] = 0.05,
    errors: Annotated[float, typer.Option(help="Error rate of stable, 0 to 1.")] = 0.005,
    score: Annotated[float, typer.Option(help="Mean satisfaction of stable, 0 to 1.")] = 0.7,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Say for each step how long it takes, and which harm is caught by when."""
    body: dict[str, Any] = {"strategy": _strategy(f"@{file}"), "model": model}
    if rate is not None:
        body["traffic"] = {
            "requests_per_s": rate,
            "feedback_share": feedback,
            "error_rate": errors,
            "score": score,
        }
    data = _explained(body)
    if as_json:
        print_json(data)
        return
    print_table(
        f"{data.get('name')} at {(data.get('traffic') or {}).get('requests_per_s', 0):.3g} requests/s",
        ("step", "weight", "takes", "ends after", "waits for", "catches"),
        [
            (
                step.get("step"),
                percent(step.get("weight") or 0),
                _duration(step.get("takes_s")),
                _duration(step.get("ends_at_s")),
                step.get("waits_for"),
                "\n".join(step.get("catches") or ()),
            )
            for step in listing(data, "steps")
        ],
    )


def _add_action(name: str, words: str) -> None:
    """Add a command that takes nothing but the rollout and the reason."""

    @app.command(name, help=words)
    def act(
        reason: Why,
        rollout_id: RolloutId = "",
        *,
        model: Model = DEFAULT_MODEL,
        on_behalf_of: OnBehalfOf = "",
        as_json: AsJson = False,
    ) -> None:
        _act(
            name, rollout_id, model=model, on_behalf_of=on_behalf_of, reason=reason, as_json=as_json
        )


_add_action("pause", "Hold a rollout at its present weight.")
_add_action("resume", "Let a paused rollout go on, or approve a step that waits for people.")


@app.command()
def promote(
    reason: Why,
    rollout_id: RolloutId = "",
    *,
    full: Annotated[bool, typer.Option("--full", help="Skip all steps that remain.")] = False,
    model: Model = DEFAULT_MODEL,
    on_behalf_of: OnBehalfOf = "",
    as_json: AsJson = False,
) -> None:
    """End the present step now, a gate too; with --full the candidate becomes stable at once."""
    more = {"full": True} if full else {}
    _act(
        "promote",
        rollout_id,
        model=model,
        on_behalf_of=on_behalf_of,
        reason=reason,
        as_json=as_json,
        **more,
    )


_add_action("abort", "Bring everyone back to stable at once.")


@app.command()
def retry(
    rollout_id: Annotated[str, typer.Argument(help="A rollout that ended Degraded.")],
    reason: Why,
    *,
    on_behalf_of: OnBehalfOf = "",
    as_json: AsJson = False,
) -> None:
    """Start the candidate of a failed rollout again, with evidence from nothing."""
    _act("retry", rollout_id, model="", on_behalf_of=on_behalf_of, reason=reason, as_json=as_json)


def current(settings: CliSettings, model: str) -> Any:
    """The model's present rollout, from the rollout service."""
    return ask(settings, "rollout", "GET", "/v1/rollouts/current", query={"model": model})


def _act(
    action: str,
    rollout_id: str,
    *,
    model: str,
    on_behalf_of: str,
    reason: str,
    as_json: bool,
    **more: Any,
) -> None:
    settings = load_settings()
    wanted = rollout_id or _current_id(settings, model)
    path = f"/v1/rollouts/{segment(wanted)}/{action}"
    body = {"on_behalf_of": on_behalf_of or who(), "reason": reason, **more}
    _say(ask(settings, "rollout", "POST", path, body=body), as_json=as_json)


def _say(rollout: Any, *, as_json: bool) -> None:
    """Where a rollout is now that somebody changed it, in one line."""
    if as_json:
        print_json(rollout)
        return
    weight = percent(rollout.get("weight") or 0)
    typer.echo(
        f"{rollout.get('rollout_id')}: {rollout.get('phase')} at {weight}: {rollout.get('reason')}\n"
        f"ratchet rollout status {rollout.get('rollout_id')} shows the evidence"
    )


def _current_id(settings: CliSettings, model: str) -> str:
    return str(current(settings, model)["rollout_id"])


def _rollout_of(settings: CliSettings, given: str, model: str) -> str:
    """The rollout of that id, else the newest of that candidate, else the model's present one."""
    if not given:
        return _current_id(settings, model)
    rollouts = listing(ask(settings, "rollout", "GET", "/v1/rollouts"), "rollouts")
    if any(one.get("rollout_id") == given for one in rollouts):
        return given
    own = [one for one in rollouts if one.get("candidate") == given]
    newest = max(own, key=lambda one: str(one.get("started_at") or ""), default={})
    return str(newest.get("rollout_id") or given)


def _explained(body: dict[str, Any]) -> dict[str, Any]:
    return dict(ask(load_settings(), "rollout", "POST", "/v1/strategies/explain", body=body))


def _duration(seconds: float | None) -> str | None:
    """A time in the largest unit that leaves at least two of it; None where it never ends."""
    if seconds is None:
        return None
    units = ((86_400, "d"), (3_600, "h"), (60, "m"))
    size, unit = next(((size, unit) for size, unit in units if seconds >= 2 * size), (1, "s"))
    return f"{seconds / size:.3g} {unit}"


def _strategy(given: str) -> Any:
    if not given.startswith("@"):
        return given
    try:
        # YAML has JSON in it.
        return load_yaml(Path(given[1:]).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = f"{given[1:]}: {fault_of(error)}; name a strategy's file of YAML or JSON"
        raise CliError(said, Exit.usage) from None
