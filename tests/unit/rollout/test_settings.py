"""What the rollout service may be told, and what a wrong value is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.rollout.settings import RolloutSettings
from services.rollout.strategy_files import read
from shared.settings import EXIT_CONFIGURATION

VARIABLE = "RATCHET_ROLLOUT_ROUTER_MATCHERS"


@pytest.mark.parametrize(
    "given",
    ["", 'namespace="prod"', ' a="1", b!="2",c=~"x.*|y" ,d!~"\\\\d" ', r'a="quoted \"b\""'],
)
def test_label_matchers_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(VARIABLE, given)
    assert RolloutSettings.load().router_matchers == given.strip()


@pytest.mark.parametrize(
    "given",
    [
        "prod",
        "namespace=prod",
        "namespace='prod'",
        '{namespace="prod"}',
        'namespace="prod',
        'namespace="prod"} or vector(1) or x{a="b"',
        'a="b" c="d"',
        'a="b",',
        '1a="b"',
        'a="' + "x" * 1000 + '"',
    ],
)
def test_anything_else_ends_the_start_with_field_rule_and_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(SystemExit) as ended:
        RolloutSettings.load()
    assert ended.value.code == EXIT_CONFIGURATION
    said = capsys.readouterr().err
    assert VARIABLE in said
    assert "label matchers" in said or "at most 1000" in said


def test_the_default_strategy_is_found_from_any_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read(RolloutSettings.load().strategy).name == "default"
