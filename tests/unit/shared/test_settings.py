import pytest

from services.aggregator.settings import AggregatorSettings
from services.feedback.intake.settings import IntakeSettings
from services.feedback.settings import FeedbackSettings
from services.inference.settings import InferenceSettings
from services.rollout.settings import RolloutSettings
from services.router.settings import RouterSettings
from services.training.settings import TrainingSettings
from shared.settings import ServiceSettings, service_config
from shared.tenants import ModelTenants


class Settings(ServiceSettings):
    model_config = service_config("router")
    port: int = 8080


def test_own_fields_take_the_prefix_and_shared_ones_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RATCHET_ROUTER_PORT", "81")
    monkeypatch.setenv("RATCHET_KAFKA_BOOTSTRAP", "broker:9092")
    monkeypatch.setenv("RATCHET_TENANTS", "acme, umbrella")
    monkeypatch.setenv("RATCHET_MODEL_TENANTS", "chat=acme, code=umbrella")
    settings = Settings.load()
    assert settings.tenants_of_models() == ModelTenants({"chat": "acme", "code": "umbrella"})
    assert settings.port == 81
    assert settings.kafka_bootstrap == "broker:9092"
    assert settings.tenants == ("acme", "umbrella")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RATCHET_ROUTER_PORT", "many"),
        ("RATCHET_PROFILE", "prod"),
        ("RATCHET_TENANTS", "team a"),
        ("RATCHET_MODEL_TENANTS", "chat"),
        ("RATCHET_MODEL_TENANTS", "chat=acme,=globex"),
        ("RATCHET_MODEL_TENANTS", "chat=acme,chat=globex"),
        ("RATCHET_OPERATORS_TENANT", "team a"),
        ("RATCHET_BASE_REVISION", "a b"),
        ("RATCHET_BASE_REVISION", "qwen@"),
        ("RATCHET_BASE_REVISION", "@cafe"),
        ("RATCHET_BASE_REVISION", "cafe,beef"),
        ("RATCHET_BASE_REVISION", "qwen@cafe,qwen@beef"),
    ],
)
def test_a_wrong_value_ends_the_process_with_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        Settings.load()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"{variable}: ")


@pytest.mark.parametrize(
    ("given", "revisions"),
    [
        ("", ("", "")),
        ("cafe", ("cafe", "cafe")),
        ("org/older@cafe", ("cafe", "")),
        ("org/older@cafe, org/newer@refs/pr/1", ("cafe", "refs/pr/1")),
        ("main,org/newer@beef", ("main", "beef")),
    ],
)
def test_each_base_has_its_revision_and_one_alone_is_for_all_others(
    monkeypatch: pytest.MonkeyPatch, given: str, revisions: tuple[str, str]
) -> None:
    monkeypatch.setenv("RATCHET_BASE_REVISION", given)
    settings = Settings.load()
    assert (settings.revision_of("org/older"), settings.revision_of("org/newer")) == revisions


@pytest.mark.parametrize(
    "service",
    [
        AggregatorSettings,
        FeedbackSettings,
        InferenceSettings,
        IntakeSettings,
        RolloutSettings,
        RouterSettings,
        TrainingSettings,
    ],
)
def test_every_service_reads_the_shared_lists(
    monkeypatch: pytest.MonkeyPatch, service: type[ServiceSettings]
) -> None:
    """A validator of the same name in a service's class would take the place of the shared one."""
    monkeypatch.setenv("RATCHET_TENANTS", "acme,umbrella")
    monkeypatch.setenv("RATCHET_ADAPTER_ROOTS", "/a,/b")
    settings = service.load()
    assert settings.tenants == ("acme", "umbrella")
    assert settings.adapter_roots == ("/a", "/b")
