from __future__ import annotations

from pathlib import Path

import pytest

from services.inference.__main__ import check
from services.inference.settings import InferenceSettings


def test_wrong_value_names_the_variable_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATCHET_INFERENCE_ENGINE_PROFILE", "tpu")
    monkeypatch.setenv("RATCHET_INFERENCE_ENGINE_URL", "https://elsewhere")
    with pytest.raises(SystemExit) as ended:
        InferenceSettings.load()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "RATCHET_INFERENCE_ENGINE_PROFILE: Input should be 'cpu' or 'gpu' ('tpu' given)" in said
    assert "RATCHET_INFERENCE_ENGINE_URL" in said


def test_lists_and_addresses_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_INFERENCE_MODELS", "assistant, coder")
    monkeypatch.setenv("RATCHET_INFERENCE_ENGINE_URL", "http://127.0.0.1:18123")
    settings = InferenceSettings.load()
    assert settings.models == ("assistant", "coder")
    assert settings.engine_address == ("127.0.0.1", 18123)


def test_tolerance_follows_the_coarser_dtype_unless_set() -> None:
    cpu = InferenceSettings.model_validate({})
    assert cpu.tolerance_of("float32") == 0.02
    assert cpu.tolerance_of("bfloat16") == 0.1
    strict = InferenceSettings.model_validate({"tolerance": 0.001})
    assert strict.tolerance_of("bfloat16") == 0.001


def test_a_critic_s_endpoint_needs_a_model_and_a_key_that_can_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RATCHET_INFERENCE_MODERATION_CRITIC_URL", "https://critic.example")
    with pytest.raises(SystemExit):
        InferenceSettings.load()
    assert "RATCHET_INFERENCE_MODERATION_CRITIC: name the model" in capsys.readouterr().err
    monkeypatch.setenv("RATCHET_INFERENCE_MODERATION_CRITIC", "provider/big-model")
    key = tmp_path / "key"
    monkeypatch.setenv("RATCHET_INFERENCE_MODERATION_CRITIC_KEY_FILE", str(key))
    settings = InferenceSettings.load()
    assert check(settings).startswith("RATCHET_INFERENCE_MODERATION_CRITIC_KEY_FILE")
    key.write_text("secret\n")
    assert settings.critic_headers() == {"Authorization": "Bearer secret"}


def test_missing_engine_is_said_with_the_remedy(tmp_path: Path) -> None:
    nothing = InferenceSettings.model_validate({})
    assert "RATCHET_INFERENCE_BASE_MODEL" in check(nothing)
    nowhere = InferenceSettings.model_validate(
        {"base_model": "b", "engine_python": tmp_path / "python"}
    )
    assert "make setup" in check(nowhere)
    assert check(InferenceSettings.model_validate({"engine_external": True})) == ""
