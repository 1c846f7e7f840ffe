from pathlib import Path

import pytest

from services.router.__main__ import take
from services.router.settings import RouterSettings


@pytest.mark.parametrize("given", ["http://a:8000", "http://a:8000/v1", "http://a:8000/v1/"])
def test_engine_url_with_v1_names_the_same_engine(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case engine-url-with-v1."""
    monkeypatch.setenv("RATCHET_ROUTER_ENGINES", f"{given},http://b/x/v1")
    assert RouterSettings.load().engines == ("http://a:8000", "http://b/x")


def test_lists_are_given_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_ROUTER_USER_SOURCES", "X-Person, user")
    monkeypatch.setenv("RATCHET_ROUTER_PASS_FIELDS", "cache_salt,guided_json")
    settings = RouterSettings.load()
    assert settings.user_sources == ("X-Person", "user")
    assert settings.pass_fields == ("cache_salt", "guided_json")


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://a b"])
def test_origins_have_a_scheme_and_no_path(
    origin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATCHET_ROUTER_CORS_ORIGINS", f"https://ok.example:8443,{origin}")
    with pytest.raises(SystemExit):
        RouterSettings.load()
    assert "RATCHET_ROUTER_CORS_ORIGINS" in capsys.readouterr().err


def test_the_folder_is_one_routers_own(tmp_path: Path) -> None:
    with take(tmp_path), pytest.raises(SystemExit, match="RATCHET_DATA_DIR"):
        take(tmp_path)
    with take(tmp_path):
        pass


def test_a_router_starts_without_a_disk(tmp_path: Path) -> None:
    """Case disk-refuses-a-segment."""
    (tmp_path / "data").touch()
    with take(tmp_path / "data" / "router"):
        pass
