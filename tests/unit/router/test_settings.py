from pathlib import Path

import pytest

from services.router.instance import FolderTaken, RouterInstance, take
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
    with take(tmp_path), pytest.raises(FolderTaken, match="RATCHET_DATA_DIR"), take(tmp_path):
        pass
    with take(tmp_path):
        pass


def test_a_router_starts_without_a_disk(tmp_path: Path) -> None:
    """Case disk-refuses-a-segment."""
    (tmp_path / "data").touch()
    with take(tmp_path / "data" / "router"):
        pass


def test_several_processes_need_ports_to_be_scraped_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATCHET_ROUTER_PROCESSES", "2")
    with pytest.raises(SystemExit):
        RouterSettings.load()
    assert "RATCHET_ROUTER_OPERATIONS_PORT" in capsys.readouterr().err


@pytest.mark.parametrize("first", ["8080", "8077", "65533"])
def test_no_process_has_the_port_of_all_as_its_own(
    first: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATCHET_ROUTER_PROCESSES", "4")
    monkeypatch.setenv("RATCHET_ROUTER_OPERATIONS_PORT", first)
    with pytest.raises(SystemExit):
        RouterSettings.load()
    assert "RATCHET_ROUTER_OPERATIONS_PORT" in capsys.readouterr().err
    monkeypatch.setenv("RATCHET_ROUTER_OPERATIONS_PORT", "8076")
    assert RouterSettings.load().operations_port == 8076


def test_each_process_has_its_own_folder_and_scrape_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("RATCHET_ROUTER_PROCESSES", "3")
    monkeypatch.setenv("RATCHET_ROUTER_OPERATIONS_PORT", "9100")
    settings = RouterSettings.load()
    instances = [RouterInstance.of(settings, [str(number)]) for number in range(3)]
    assert [one.directory for one in instances] == [
        tmp_path / "router", tmp_path / "router-1", tmp_path / "router-2"
    ]  # fmt: skip
    assert [one.operations_port for one in instances] == [9100, 9101, 9102]


def test_fewer_processes_than_before_leave_no_spool_unshipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_DATA_DIR", str(tmp_path))
    for name in ("router", "router-1", "router-2", "router-10", "router-x"):
        (tmp_path / name).mkdir()
    alone = RouterInstance.of(RouterSettings.load(), [])
    assert {path.name for path in alone.left_behind()} == {"router-1", "router-2", "router-10"}
    monkeypatch.setenv("RATCHET_ROUTER_PROCESSES", "2")
    monkeypatch.setenv("RATCHET_ROUTER_OPERATIONS_PORT", "9100")
    settings = RouterSettings.load()
    first, second = (RouterInstance.of(settings, [number]) for number in "01")
    assert {path.name for path in first.left_behind()} == {"router-2", "router-10"}
    assert second.left_behind() == ()
