from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from services.inference.__main__ import check
from services.inference.launcher import CPU_HEAD_SIZES
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


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"hidden_size": 64, "num_attention_heads": 4}, 16),
        ({"hidden_size": 64, "num_attention_heads": 2, "head_dim": 48}, 48),
        ({"text_config": {"hidden_size": 288, "num_attention_heads": 4}}, 72),
    ],
)
def test_a_base_whose_heads_vllm_cannot_compute_on_cpu_is_refused_with_the_remedy(
    config: dict[str, Any], size: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    python = tmp_path / "python"
    python.touch()
    base = {"base_model": str(tmp_path), "engine_python": python}
    said = check(InferenceSettings.model_validate(base))
    assert said.startswith(f"RATCHET_INFERENCE_BASE_MODEL: {tmp_path} has attention heads of size")
    assert f"of size {size}, and vLLM on CPU computes 32, 64," in said
    assert "RATCHET_INFERENCE_ENGINE_PROFILE=gpu" in said
    assert check(InferenceSettings.model_validate(base | {"engine_profile": "gpu"})) == ""


@pytest.mark.parametrize(
    "config",
    [
        '{"hidden_size": 896, "num_attention_heads": 14}',
        '{"hidden_size": 1024, "num_attention_heads": 16, "head_dim": 128}',
        '{"hidden_size": 64, "num_attention_heads": 4, "kv_lora_rank": 512}',
        '{"hidden_size": 64, "num_attention_heads": 0}',
        '{"hidden_size": 64}',
        "[]",
        "no JSON",
    ],
)
def test_a_base_that_fits_or_does_not_say_is_left_to_vllm(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    python = tmp_path / "python"
    python.touch()
    base = {"base_model": str(tmp_path), "engine_python": python}
    assert check(InferenceSettings.model_validate(base)) == ""
    assert check(InferenceSettings.model_validate(base | {"base_model": "a-hub/model"})) == ""


def test_the_sizes_are_those_of_the_installed_vllm() -> None:
    (backend,) = Path().glob(
        ".venv-ml/lib/python3*/site-packages/vllm/v1/attention/backends/cpu_attn.py"
    )
    (sizes,) = (
        ast.literal_eval(node.body[0].value)
        for node in ast.walk(ast.parse(backend.read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.name == "get_supported_head_sizes"
        and isinstance(node.body[0], ast.Return)
        and node.body[0].value is not None
    )
    assert tuple(sizes) == CPU_HEAD_SIZES
