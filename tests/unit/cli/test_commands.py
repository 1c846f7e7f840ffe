"""Commands against a service of straw: what is asked, what is printed, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from services.cli import http
from services.cli.errors import CliError, Exit
from services.cli.prometheus import Alert, PrometheusClient
from services.cli.rollout_status import odds
from tests.support.command import ROOT, Ran, ratchet_here

ROLLOUT = {
    "rollout_id": "r-1",
    "model": "assistant",
    "stable": "assistant-v1.0",
    "candidate": "assistant-v1.1",
    "phase": "Progressing",
    "step": 1,
    "weight": 2000,
    "reason": "step over",
    "findings": [
        {"criterion": "errors", "state": "ok", "candidate": 0.01, "stable": 0.011, "text": "fine"}
    ],
}
HOLDOUT = {
    "model": "assistant",
    "share": 2.0,
    "reference": "assistant-v1.0",
    "set_by": {"at": "2026-01-01", "actor": "k", "on_behalf_of": "ann", "reason": "measure"},
}
VERSION = {
    "version": "assistant-v1.1",
    "model": "assistant",
    "method": "dpo",
    "parent": "assistant-v1.0",
    "state": "canary",
    "released": True,
    "gate_overridden_by": "joe",
    "created_at": "2026-01-01T00:00:00Z",
    "record": {"version": "assistant-v1.1", "base": "qwen", "fingerprint": {"texts": ["much"]}},
}
DECISION = {
    "sentence": "v2 went from 5 % to 20 % of the users: setWeight 20 %",
    "id": "0:4",
    "at": "2026-01-01T00:00:00Z",
    "kind": "weight",
    "phase": "Progressing",
    "step": 1,
    "weight_before": 500,
    "weight": 2000,
    "outcome": "Successful",
    "actor": "controller",
    "reason": "step over",
}
ANSWERS: dict[tuple[str, str], tuple[int, Any]] = {
    ("GET", "/v1/rollouts"): (200, {"rollouts": [ROLLOUT]}),
    ("POST", "/v1/rollouts"): (201, ROLLOUT),
    ("GET", "/v1/rollouts/current"): (200, ROLLOUT),
    ("GET", "/v1/rollouts/r-1"): (200, ROLLOUT | {"phase": "Degraded"}),
    ("GET", "/v1/rollouts/r-1/decisions"): (200, {"decisions": [DECISION], "next": None}),
    ("GET", "/v1/rollouts/r-1/replay"): (200, {"rollout_id": "r-1", "agrees": True}),
    ("GET", "/v1/rollouts/r-2/replay"): (200, {"rollout_id": "r-2", "agrees": False}),
    ("GET", "/v1/rollouts/r-1/slices"): (200, "look,arm\n0,stable\n"),
    ("POST", "/v1/strategies/explain"): (
        200,
        {
            "name": "mine",
            "config_sha256": "00",
            "traffic": {"requests_per_s": 12},
            "steps": [
                {
                    "step": "setWeight 5 %",
                    "weight": 500,
                    "takes_s": 0,
                    "ends_at_s": 0,
                    "waits_for": "the judge",
                    "catches": ["30% errors in 9 s"],
                }
            ],
        },
    ),
    ("GET", "/v1/versions"): (200, {"versions": [VERSION]}),
    ("GET", "/v1/versions/assistant-v1.1"): (200, VERSION),
    ("GET", "/v1/holdout"): (200, HOLDOUT),
    ("POST", "/v1/holdout"): (200, HOLDOUT),
    ("POST", "/v1/versions"): (201, {"state": "registered", "record": {"base": "qwen"}}),
    ("GET", "/v1/versions/gain"): (
        200,
        {
            "gains": [
                {
                    "version": "assistant-v1.1",
                    "reference": "assistant-v1.0",
                    "result": "promoted",
                    "confidence": 0.99,
                    "satisfaction": {"difference": 0.05, "low": 0.012, "high": 0.09},
                }
            ]
        },
    ),
    ("GET", "/v1/versions/nope"): (
        404,
        {"code": "unknown", "detail": "no version nope"},
    ),
    ("GET", "/v1/adapters"): (
        200,
        {
            "engine": {"ready": True},
            "adapters": [{"version": "v", "state": "refused", "reason": "close"}],
        },
    ),
    ("POST", "/v1/adapters/v/accept"): (200, {"version": "v", "actor": "joe"}),
    ("POST", "/v1/feedback"): (202, {"feedback_id": "f-1", "revision": 0, "trace_id": "t-1"}),
    ("DELETE", "/v1/feedback/f-1"): (
        202,
        {"feedback_id": "f-1", "revision": 9, "trace_id": "t-1"},
    ),
    ("GET", "/v1/feedback/f-1"): (
        200,
        {
            "feedback_id": "f-1",
            "trace_id": "t-1",
            "type": "rating",
            "user_id": "u",
            "reason": "so",
            "state": "counted",
            "counted": {
                "model": "assistant",
                "version": "assistant-v1.0",
                "windows": {"1m": "2026-01-01"},
                "satisfaction": 0.25,
            },
            "revisions": [
                {
                    "revision": 0,
                    "received_at": "2026-01-01",
                    "type": "rating",
                    "value": 2,
                    "withdrawn": False,
                    "counts": True,
                }
            ],
            "products": [
                {
                    "pair_id": "p-1",
                    "kind": "pair",
                    "source": "ratings",
                    "label": None,
                    "retracted_reason": None,
                    "suspicion": "",
                    "read_by": [],
                }
            ],
        },
    ),
    ("GET", "/v1/examples"): (
        200,
        {
            "examples": [
                {
                    "started_at": "2026-01-01",
                    "version": "assistant-v1.0",
                    "completion": "yes",
                    "context": {"category": "creative", "locale": "de"},
                    "messages": [{"role": "user", "content": "really?"}],
                    "feedback": [{"type": "thumbs_up"}],
                }
            ],
            "next": "abc",
            "age_s": 0.1,
        },
    ),
    ("GET", "/v1/examples/export"): (200, {"one": "row"}),
    ("POST", "/v1/read-model/reindex"): (202, {"started_at": "2026-01-01"}),
    **{
        ("POST", f"/v1/rollouts/r-1/{action}"): (200, ROLLOUT)
        for action in ("pause", "resume", "promote", "abort", "retry")
    },
}


class Straw:
    """What was asked of the service of straw."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.authorization: list[str | None] = []
        self.answers = dict(ANSWERS)
        self.first: list[tuple[int, Any]] = []
        """What the next commands are answered before `answers`."""
        self.afterwards: dict[tuple[str, str], Any] = {}
        """Answers once something was posted."""

    @property
    def last(self) -> tuple[str, str, dict[str, str], Any]:
        return self.asked[-1]


Run = Callable[..., Ran]


@pytest.fixture
def straw(monkeypatch: pytest.MonkeyPatch) -> Iterator[Straw]:
    straw = Straw()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            straw.asked.append((self.command, url.path, query, body))
            straw.authorization.append(self.headers.get("authorization"))
            nothing = (404, {"detail": "nothing here"})
            given = straw.answers.get((self.command, url.path), nothing)
            status, answer = straw.first.pop(0) if self.command == "POST" and straw.first else given
            if self.command == "POST":
                straw.answers.update(straw.afterwards)
            text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    for service in ("ROLLOUT", "FEEDBACK", "INFERENCE"):
        monkeypatch.setenv(f"RATCHET_{service}_URL", f"http://127.0.0.1:{server.server_port}/")
    yield straw
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> Ran:
        return ratchet_here(*arguments, monkeypatch=monkeypatch, capsys=capsys)

    return call


def test_start_says_who_and_why(straw: Straw, run: Run) -> None:
    ran = run(
        "rollout", "start", "assistant-v1.1", "--reason", "try it", "--on-behalf-of", "joe",
        "--strategy", "demo", "--supersede", "--json",
    )  # fmt: skip
    assert ran.status == 0
    assert ran.json == ROLLOUT
    assert straw.last[3] == {
        "model": "assistant",
        "candidate": "assistant-v1.1",
        "strategy": "demo",
        "supersede": True,
        "on_behalf_of": "joe",
        "reason": "try it",
    }


def test_a_strategy_file_is_explained_step_by_step(straw: Straw, run: Run, tmp_path: Any) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nsteps: [{setWeight: 5}]\n")
    ran = run("rollout", "explain", str(file), "--rate", "12", "--errors", "0.01")
    assert ran.status == 0, ran.err
    method, path, _, body = straw.last
    assert (method, path) == ("POST", "/v1/strategies/explain")
    assert body["strategy"] == {"name": "mine", "steps": [{"setWeight": 5}]}
    assert body["traffic"]["requests_per_s"] == 12
    assert "30% errors in 9 s" in ran.out
    assert run("rollout", "validate", str(file)).status == 0
    assert "traffic" not in straw.last[3]
    file.write_text("steps: [")
    assert run("rollout", "validate", str(file)).status == Exit.usage


def test_the_gain_of_a_version_has_its_interval(straw: Straw, run: Run) -> None:
    ran = run("versions", "gain")
    assert ran.status == 0, ran.err
    assert straw.last[2] == {"model": "assistant"}
    assert all(word in ran.out for word in ("assistant-v1.0", "0.012", "0.09", "99%", "promoted"))


def test_an_answer_over_its_limit_is_none(
    straw: Straw, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.cli.http.MAX_ANSWER", 40)
    monkeypatch.setenv("RATCHET_PROMETHEUS_URL", os.environ["RATCHET_ROLLOUT_URL"])
    straw.answers["GET", "/api/v1/rules"] = (200, {"data": {"groups": ["x" * 40]}})
    ran = run("versions", "gain")
    assert ran.status == Exit.unreachable
    assert "larger than 40 bytes" in ran.err
    with pytest.raises(CliError, match="larger than 40 bytes"):
        PrometheusClient().rules()


def test_of_prometheus_alerts_ours_that_fire_are_told(
    straw: Straw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_PROMETHEUS_URL", os.environ["RATCHET_ROLLOUT_URL"])
    notes = {"summary": "gone", "runbook_url": "http://r#down"}
    alerts = [
        {"labels": {"alertname": name}, "state": state, "annotations": notes}
        for name, state in (
            ("RatchetDown", "firing"),
            ("RatchetLate", "pending"),
            ("Theirs", "firing"),
        )
    ]
    straw.answers["GET", "/api/v1/alerts"] = (200, {"data": {"alerts": alerts}})
    assert PrometheusClient().firing() == [Alert("RatchetDown", "gone", "http://r#down")]


def test_prompts_and_settings_are_registered_as_a_version(
    straw: Straw, run: Run, tmp_path: Any
) -> None:
    system, more = tmp_path / "system.txt", tmp_path / "more.json"
    system.write_text("Be polite.\n")
    more.write_text('{"stop": ["END"], "temperature": 1}')
    options = ["--system-file", str(system), "--defaults-file", str(more), "--temperature", "0.2"]
    given = [*options, "--system-rule", "replace", "--base", "qwen", "--reason", "rude answers"]
    ran = run("versions", "register", "polite", *given)
    assert ran.status == 0, ran.err
    assert "qwen" in ran.out
    body = straw.last[3]
    assert body["settings"] == {
        "system": "Be polite.",
        "system_rule": "replace",
        "defaults": {"stop": ["END"], "temperature": 0.2},
        "precedence": "client",
    }
    assert (body["base"], body["adapter_of"], body["reason"]) == ("qwen", "", "rude answers")
    assert body["on_behalf_of"]
    more.write_text("[1]")
    assert run("versions", "register", "polite", *given).status == Exit.usage
    assert run("versions", "register", "polite", "--base", "qwen").status == Exit.usage


def test_an_evaluation_says_who_and_why_and_its_result_is_the_status(
    straw: Straw, run: Run
) -> None:
    checks = [{"name": "refusals", "passed": False, "value": 0.0, "limit": 0.01, "detail": "12"}]
    result = {"against": "v1", "prompts": 12, "gate": {"passed": False, "checks": checks}}
    shown = ("GET", "/v1/versions/polite")
    straw.answers[shown] = (200, {"evaluation": None, "evaluating": None})
    straw.answers["POST", "/v1/versions/polite/evaluation"] = (202, {"prompts": 12})
    straw.afterwards[shown] = (200, {"evaluation": result})
    ran = run("versions", "evaluate", "polite", "--prompts", "12", "--reason", "first look")
    assert ran.status == Exit.failed
    assert all(word in ran.out for word in ("failed", "refusals", "v1"))


def test_the_holdout_is_set_shown_and_cleared(straw: Straw, run: Run) -> None:
    ran = run("rollout", "holdout", "set", "--share", "2", "--reason", "measure")
    assert ran.status == 0, ran.err
    body = straw.last[3]
    assert (body["model"], body["share"], body["reason"]) == ("assistant", 2, "measure")
    assert all(word in ran.out for word in ("2 %", "assistant-v1.0", "measure"))
    assert run("rollout", "holdout", "clear", "--reason", "known").status == 0
    assert straw.last[3]["share"] == 0
    assert "assistant-v1.0" in run("rollout", "holdout", "show").out
    assert run("rollout", "holdout", "set", "--share", "2").status == Exit.usage


def test_a_replay_that_differs_is_a_failure(straw: Straw, run: Run, tmp_path: Any) -> None:
    assert run("rollout", "replay", "r-1").status == 0
    assert run("rollout", "replay", "r-2").status == Exit.failed
    out = tmp_path / "slices.csv"
    assert run("rollout", "export", "r-1", "--out", str(out)).status == 0
    assert out.read_text() == "look,arm\n0,stable\n"
    assert "v2 went from 5 % to 20 %" in run("rollout", "history", "r-1").out


def test_a_rejected_version_is_started_again_by_word(straw: Straw, run: Run) -> None:
    assert run("rollout", "start", "v", "--reason", "r", "--again").status == 0
    assert straw.last[3]["again"] is True


def test_evidence_is_shown_as_odds() -> None:
    assert odds({"log_e": 2.0, "threshold": 6.8024}) == "7.39 of 900"
    assert odds({"log_e": 0.0, "threshold": 0.0}) is None


def test_a_strategy_may_come_from_a_file(straw: Straw, run: Run, tmp_path: Any) -> None:
    file = tmp_path / "strategy.json"
    file.write_text('{"steps": []}')
    assert run("rollout", "start", "v", "--reason", "r", "--strategy", f"@{file}").status == 0
    assert straw.last[3]["strategy"] == {"steps": []}
    ran = run("rollout", "start", "v", "--reason", "r", "--strategy", f"@{tmp_path}/none")
    assert ran.status == Exit.usage


@pytest.mark.parametrize("action", ["pause", "resume", "promote", "abort"])
def test_steering_finds_the_present_rollout(straw: Straw, run: Run, action: str) -> None:
    ran = run("rollout", action, "--reason", "because")
    assert ran.status == 0
    assert straw.asked[0][:3] == ("GET", "/v1/rollouts/current", {"model": "assistant"})
    method, path, _, body = straw.last
    assert (method, path) == ("POST", f"/v1/rollouts/r-1/{action}")
    assert body["reason"] == "because"
    assert body["on_behalf_of"]
    assert ran.out.startswith("r-1: Progressing at 20 %: ")


def test_promote_to_the_end(straw: Straw, run: Run) -> None:
    assert run("rollout", "promote", "r-1", "--full", "--reason", "sure").status == 0
    assert straw.last[3]["full"] is True
    assert len(straw.asked) == 1


def test_retry_names_its_rollout(straw: Straw, run: Run) -> None:
    assert run("rollout", "retry", "r-1", "--reason", "engine was down").status == 0
    assert run("rollout", "retry", "--reason", "x").status == Exit.usage


@pytest.mark.parametrize("action", ["pause", "abort", "start", "retry"])
def test_nothing_is_changed_without_a_reason(straw: Straw, run: Run, action: str) -> None:
    assert run("rollout", action, "r-1").status == Exit.usage
    assert straw.asked == []


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("rollout", "list"), "assistant-v1.1"),
        (("rollout", "status"), "Progressing"),
        (("rollout", "status", "r-1"), "Degraded"),
        (("rollout", "decisions"), "5 % → 20 %"),
        (("rollout", "decisions", "r-1", "--after", "3", "--limit", "5"), "step over"),
        (("adapters", "list"), "close"),
        (("versions", "list"), "overridden by joe"),
        (("versions", "show", "assistant-v1.1"), "qwen"),
    ],
)
def test_people_get_tables_and_programs_json(
    straw: Straw, run: Run, arguments: tuple[str, ...], shown: str
) -> None:
    ran = run(*arguments)
    assert ran.status == 0
    assert shown in ran.out
    ran = run(*arguments, "--json")
    assert ran.json == straw.answers[straw.last[0], straw.last[1]][1]


def test_accepting_an_adapter_says_who_and_why(straw: Straw, run: Run) -> None:
    assert run("adapters", "accept", "v").status == Exit.usage
    assert (
        run("adapters", "accept", "v", "--reason", "a drill", "--on-behalf-of", "joe").status == 0
    )
    assert straw.last[3] == {"on_behalf_of": "joe", "reason": "a drill"}


def test_a_version_is_retired_with_a_reason_by_the_rollout_service(straw: Straw, run: Run) -> None:
    retired = ("POST", "/v1/versions/assistant-v1.1/retire")
    straw.answers[retired] = (200, {"state": "retired"})
    assert run("versions", "retire", "assistant-v1.1").status == Exit.usage
    ran = run("versions", "retire", "assistant-v1.1", "--reason", "bad data")
    assert (ran.status, ran.out.strip()) == (0, "assistant-v1.1: retired")
    assert straw.last[3]["reason"] == "bad data"
    assert straw.last[3]["on_behalf_of"]


def test_versions_alone_lists_them(straw: Straw, run: Run) -> None:
    assert run("versions").out == run("versions", "list").out


def test_fingerprints_are_for_programs_only(straw: Straw, run: Run) -> None:
    assert "much" not in run("versions", "show", "assistant-v1.1").out


def test_a_datasets_card_is_in_dataset_show_and_for_programs(straw: Straw, run: Run) -> None:
    dataset = {"dataset_id": "d-1", "card": {"source": {"vote": 7}}, "rules": {"min_chars": 10}}
    whole = VERSION | {"record": {"version": "assistant-v1.1", "dataset": dataset}}
    straw.answers["GET", "/v1/versions/assistant-v1.1"] = (200, whole)
    shown = run("versions", "show", "assistant-v1.1").out
    assert "d-1" in shown
    assert "min_chars" not in shown
    assert "vote" not in shown
    assert "min_chars" in run("versions", "show", "assistant-v1.1", "--json").out


def test_a_version_is_shown_by_what_is_known_of_it(straw: Straw, run: Run) -> None:
    record = {
        "version": "assistant-v1.1",
        "parent": "assistant-v1.0",
        "rebases": "",
        "metrics": {"win_rate": 0.61},
        "gate": {"passed": True, "checks": [{"name": "kl", "passed": True, "value": 0.2}]},
    }
    whole = VERSION | {"waits_for": "", "gain": None, "deployments": [], "record": record}
    straw.answers["GET", "/v1/versions/assistant-v1.1"] = (200, whole)
    shown = run("versions", "show", "assistant-v1.1").out
    names = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]
    assert names == [
        *("state", "gate", "model", "method", "parent", "created_at", "not there yet"),
        *("kl", "win_rate"),
    ]
    assert "deployments, gain" in shown


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (("thumbs_up",), {"type": "thumbs_up", "revision": 0}),
        (("rating", "4"), {"type": "rating", "value": 4, "revision": 0}),
        (("comment", "42"), {"type": "comment", "value": "42", "revision": 0}),
        (
            ("text_correction", '{"corrected": "x"}', "--user", "u", "--id", "i", "--revision", "2"),
            {"type": "text_correction", "value": {"corrected": "x"}, "user_id": "u",
             "feedback_id": "i", "revision": 2},
        ),
    ],
)  # fmt: skip
def test_feedback_send(
    straw: Straw, run: Run, arguments: tuple[str, ...], sent: dict[str, Any]
) -> None:
    ran = run("feedback", "send", "t-1", *arguments)
    assert ran.status == 0
    assert "f-1" in ran.out
    assert straw.last[3] == {"trace_id": "t-1", **sent}


def test_feedback_withdraw(straw: Straw, run: Run) -> None:
    assert run("feedback", "withdraw", "f-1", "t-1", "--user", "u").status == 0
    assert straw.last[:3] == ("DELETE", "/v1/feedback/f-1", {"trace_id": "t-1", "user_id": "u"})


def test_the_services_own_words_are_passed_on(straw: Straw, run: Run) -> None:
    ran = run("versions", "show", "nope")
    assert ran.status == Exit.refused
    assert "no version nope" in ran.err
    assert ran.out == ""
    straw.answers["POST", "/v1/feedback"] = (422, {"title": "Invalid", "detail": "value: 1 to 5"})
    ran = run("feedback", "send", "t-1", "rating", "9")
    assert ran.status == Exit.refused
    assert "value: 1 to 5" in ran.err


FOLLOWER = (503, {"code": "not_leading", "detail": "the leader is b"})


def test_a_command_looks_for_the_replica_that_leads(
    straw: Straw, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LEADER_PAUSE_S", 0.01)
    straw.first = [FOLLOWER] * 3
    ran = run("rollout", "abort", "r-1", "--reason", "wrong data", "--json")
    assert (ran.status, ran.json) == (0, ROLLOUT)
    assert [one[:2] for one in straw.asked] == [("POST", "/v1/rollouts/r-1/abort")] * 4
    assert len({str(one[3]) for one in straw.asked}) == 1


def test_it_looks_for_a_bounded_time(
    straw: Straw, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LEADER_PAUSE_S", 0.02)
    monkeypatch.setattr(http, "LEADER_WITHIN_S", 0.1)
    straw.answers["POST", "/v1/rollouts/r-1/abort"] = FOLLOWER
    ran = run("rollout", "abort", "r-1", "--reason", "wrong data")
    assert ran.status == Exit.refused
    assert "the leader is b" in ran.err
    assert 2 <= len(straw.asked) <= 6


@pytest.mark.parametrize(
    "answer",
    [
        (
            503,
            {"code": "log_unavailable", "detail": "not known whether"},
        ),
        (
            503,
            {"code": "outcome_unknown", "detail": "not known whether"},
        ),
        (503, {"error": "not_leading: not known whether"}),
        (409, {"code": "not_leading", "detail": "not known whether"}),
    ],
)
def test_what_may_have_been_done_is_not_asked_again(
    straw: Straw, run: Run, answer: tuple[int, Any]
) -> None:
    straw.first = [answer]
    ran = run("rollout", "promote", "r-1", "--reason", "sure")
    assert ran.status == Exit.refused
    assert "not known whether" in ran.err
    assert len(straw.asked) == 1


def test_feedback_show(straw: Straw, run: Run) -> None:
    ran = run("feedback", "show", "f-1", "--trace", "t-1")
    assert straw.last[:3] == ("GET", "/v1/feedback/f-1", {"trace_id": "t-1"})
    for said in ("counted", "assistant-v1.0", "rating", "p-1", "ratings"):
        assert said in ran.out


def test_feedback_examples(straw: Straw, run: Run) -> None:
    ran = run("feedback", "examples", "positive", "--locale", "de", "--segment", "gold")
    query = {
        "kind": "positive",
        "locale": "de",
        "segment": "gold",
        "order": "newest",
        "limit": "20",
    }
    assert straw.last[:3] == ("GET", "/v1/examples", query)
    for said in ("really?", "yes", "thumbs_up", "--cursor abc"):
        assert said in ran.out


def test_feedback_export(straw: Straw, run: Run, tmp_path: Path) -> None:
    ran = run("feedback", "export", "pair", "--format", "csv", "--to", str(tmp_path / "pairs.csv"))
    assert ran.status == Exit.ok
    assert straw.last[2] == {"kind": "pair", "format": "csv", "order": "oldest"}
    assert (tmp_path / "pairs.csv").read_text() == '{"one": "row"}'
    straw.answers["GET", "/v1/examples/export"] = (403, {"detail": "the key lacks operate"})
    ran = run("feedback", "export")
    assert (ran.status, ran.out) == (Exit.refused, "")
    assert "the key lacks operate" in ran.err


@pytest.mark.parametrize("command", [("feedback", "export"), ("users", "export", "ann")])
def test_an_export_that_fails_leaves_the_old_file(
    straw: Straw, run: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    old = tmp_path / "export.jsonl"
    old.write_text("of yesterday")
    for path in ("/v1/examples/export", "/v1/users/ann/export"):
        straw.answers["GET", path] = (403, {"detail": "the key lacks operate"})
    assert run(*command, "--to", str(old)).status == Exit.refused
    assert [path.name for path in tmp_path.iterdir()] == ["export.jsonl"]
    assert old.read_text() == "of yesterday"


def test_feedback_reindex(straw: Straw, run: Run) -> None:
    assert run("feedback", "reindex").status == Exit.ok
    assert straw.last[:2] == ("POST", "/v1/read-model/reindex")


def test_the_key_goes_along(straw: Straw, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("versions", "list")
    monkeypatch.setenv("RATCHET_API_KEY", "rk_secret")
    run("versions", "list")
    assert straw.authorization == [None, "Bearer rk_secret"]


def test_a_service_that_is_not_there_is_named_with_its_variable(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_ROLLOUT_URL", "http://127.0.0.1:9")
    ran = run("rollout", "list")
    assert ran.status == Exit.unreachable
    assert "RATCHET_ROLLOUT_URL" in ran.err
    assert "http://127.0.0.1:9" in ran.err


def test_an_answer_of_another_kind_is_no_traceback(straw: Straw, run: Run) -> None:
    straw.answers["GET", "/v1/rollouts"] = (200, ["something else"])
    ran = run("rollout", "list")
    assert ran.status == Exit.failed
    assert "different versions" in ran.err


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RATCHET_ROUTER_URL", "localhost:8080"),
        ("RATCHET_FEEDBACK_PORT", "http"),
        ("RATCHET_KAFKA_JOIN_PARTITIONS", "0"),
    ],
)
def test_a_wrong_variable_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    ran = run("rollout", "list")
    assert ran.status == Exit.usage
    assert variable in ran.err
    assert "allowed" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "--override-gate"), "reason"),
        (("train", "--method", "magic"), "method"),
        (("train", "--model", "acme/assistant"), "model: Value error, a name has letters"),
        (("train", "--version", "../v1"), "letters, digits"),
        (("train", "--set", "beta"), "key=value"),
        (("train", "--set", "bta=0.1"), "bta: unknown name; did you mean beta?"),
        (("train", "--set", "beta=-1"), "beta: Input should be greater than 0"),
        (("train", "--method", "sft", "--set", "beta=0.1"), "beta: unknown name"),
        (("train", "--recipe", "no-such-file.yaml"), "cannot be read"),
        (("keys", "create", "--scope", "everything"), "scopes"),
    ],
)
def test_a_wrong_request_never_reaches_kafka(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    ran = run(*arguments)
    assert ran.status == Exit.usage
    assert said in ran.err


def test_starting_loads_nothing_heavy() -> None:
    """Half the time of a command would be imports that it does not need."""
    check = (
        "import sys, services.cli.__main__; "
        "heavy = {'aiokafka', 'aiohttp', 'redis', 'rich', 'faust', 'fastapi', 'structlog'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_kubectl_finds_the_command_as_its_plugin() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["kubectl-ratchet"] == scripts["ratchet"]


@pytest.mark.parametrize("given", ["v-2", "r-new"])
def test_a_history_may_be_asked_for_by_version(straw: Straw, run: Run, given: str) -> None:
    """Who asks why a version was taken back knows the version, and another rollout is present."""
    straw.answers["GET", "/v1/rollouts"] = (
        200,
        {
            "rollouts": [
                {"rollout_id": "r-old", "candidate": "v-2", "started_at": "2026-01-01T00:00:00Z"},
                {"rollout_id": "r-new", "candidate": "v-2", "started_at": "2026-01-02T00:00:00Z"},
                {"rollout_id": "r-3", "candidate": "v-3", "started_at": "2026-01-03T00:00:00Z"},
            ]
        },
    )
    straw.answers["GET", "/v1/rollouts/r-new/decisions"] = (
        200,
        {"decisions": [{"at": "then", "sentence": "v-2 was taken back from 5 %: errors"}]},
    )
    ran = run("rollout", "history", given)
    assert ran.status == 0, ran.err
    assert "v-2 was taken back" in ran.out
