"""`ratchet users rewrap-keys`: what it says, and what it refuses."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import users
from shared.contracts.subject import subject_of
from shared.kafka.user_key_issuer import UserKeyIssuer
from shared.testing.log import MemoryLog


async def issue(log: MemoryLog, secret: bytes) -> None:
    keys = UserKeyIssuer(log, secret)
    keys.key_of("default", subject_of("default", "ann"))
    await keys.acknowledged()


def test_keys_are_wrapped_by_the_first_secret_and_unreadable_ones_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog()
    monkeypatch.setattr(users, "with_log", lambda _, work: asyncio.run(work(log)))
    command = CliRunner()
    refused = command.invoke(users.app, ["rewrap-keys"])
    assert "RATCHET_TEXT_KEY_FILE: not set" in str(refused.exception)
    file = tmp_path / "secrets"
    file.write_text(f"{'n' * 32}\n{'o' * 32}\n")
    monkeypatch.setenv("RATCHET_TEXT_KEY_FILE", str(file))
    asyncio.run(issue(log, b"o" * 32))
    done = command.invoke(users.app, ["rewrap-keys", "--json"])
    assert done.exit_code == 0, done.output
    assert '"rewrapped": 1' in done.output
    asyncio.run(issue(log, b"x" * 32))
    done = command.invoke(users.app, ["rewrap-keys", "--json"])
    assert "1 keys were wrapped by a secret that the file does not have" in str(done.exception)
