"""A week's report: what is counted, what is advised, and that pages hold it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from datetime import UTC, date, datetime, timedelta
from typing import Any, cast

import pytest

from services.cli.errors import CliError, Exit
from services.cli.prometheus import Sample
from services.cli.report import gain_rows, incidents, weekly, with_gains
from services.cli.weekly_page import bars, chat_message, html, markdown, summary
from shared.contracts.events.preferences import PreferencePair
from shared.contracts.events.rollouts import Decision, DecisionKind, Phase
from shared.reports.weekly import (
    Audience,
    Consistency,
    Correlation,
    Incident,
    Weekly,
    count_preferences,
    week_of,
)
from shared.reports.weekly_events import WeekEvents, rollout_rows

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def pair(number: int, chosen: str = "a long answer", rejected: str = "other", **more: Any) -> Any:
    fields: dict[str, Any] = {
        "pair_id": f"p{number}",
        "tenant": "default",
        "model": "assistant",
        "messages": ({"role": "user", "content": "why?"},),
        "chosen": chosen,
        "rejected": rejected,
        "source": "vote",
        "causes": (f"f{number}:0",),
        "created_at": MONDAY + timedelta(hours=number),
    }
    return PreferencePair.model_validate(fields | more)


def report(pairs: list[Any], retracted: set[str] | None = None, **more: Any) -> Weekly:
    counted = count_preferences(pairs, retracted or set(), MONDAY)
    fields: dict[str, Any] = {
        "start": MONDAY.date(),
        "end": MONDAY.date() + timedelta(days=7),
        "target": 3,
        "versions": (),
        "rollouts": (),
        "trainings": (),
    }
    return Weekly(preferences=counted, **(fields | more))


def test_pairs_count_by_day_and_retracted_ones_do_not() -> None:
    found = report([pair(1), pair(2), pair(30)], {"p2"}).preferences
    assert (found.total, found.retracted) == (2, 1)
    assert list(found.per_day.values()) == [1, 1, 0, 0, 0, 0, 0]
    assert found.by_source == {"vote": 2}


def test_what_no_person_chose_meets_no_target_and_stands_by_its_source() -> None:
    found = report([pair(1), pair(2, source="synthetic", chosen_version="a")]).preferences
    assert (found.total, found.mean_length) == (1, {})
    assert found.by_source == {"vote": 1, "synthetic": 1}


@pytest.mark.parametrize(
    ("hours", "forecast"), [(23, None), (24, 14), (84, 4), (167, 2), (168, None), (900, None)]
)
def test_a_week_under_way_says_what_its_pace_brings(hours: float, forecast: int | None) -> None:
    week = WeekEvents(MONDAY, MONDAY + timedelta(days=7), lambda _: True)
    for number in (1, 2):
        week.add(pair(number))
    found = week.report((), 20, MONDAY + timedelta(hours=hours))
    assert found.forecast == forecast
    outlook = f", about {forecast} by its end at this pace" if forecast is not None else ""
    assert found.actions()[0] == f"Collect 18 more pairs: 2 of 20{outlook}."
    assert f"2 pairs of 20 (10%){outlook}." in markdown(found)


def test_win_rate_and_mean_length_are_by_version() -> None:
    ab = {"chosen_version": "a", "rejected_version": "b"}
    ba = {"chosen_version": "b", "rejected_version": "a"}
    same = {"chosen_version": "a", "rejected_version": "a"}
    found = report(
        [
            pair(1, "1234", "12", **ab),
            pair(2, "1234", "12", **ab),
            pair(3, "12", "1234", **ba),
            pair(4, "12345678", "1234", **same),
        ]
    ).preferences
    rates = {duel.version: duel.rate for duel in found.duels}
    assert rates == {"a": pytest.approx(2 / 3), "b": pytest.approx(1 / 3)}
    assert found.mean_length == {"a": pytest.approx(24 / 5), "b": 2}


def test_doubtful_pairs_are_counted() -> None:
    found = report(
        [pair(1, "yes", "a long no"), pair(2, "a long no", "yes"), pair(3, "yes", "a long no")]
    ).preferences
    assert (found.short_chosen, found.duplicates, found.contradictions) == (2, 1, 1)


def test_actions_follow_from_what_was_found() -> None:
    assert report([pair(n, f"answer {n}") for n in range(3)]).actions() == [
        "Nothing: every target was met."
    ]
    poor = report(
        [pair(1)],
        figures={"v": {"feedback_rate": 0.03, "positive_ratio": 0.8, "correction_rate": 0.2}},
        trainings=({"job": "j", "phase": "failed"},),
    ).actions()
    assert [one.partition(":")[0] for one in poor] == [
        "Collect 2 more pairs",
        "v",
        "v",
        "Look at failed trainings",
    ]
    assert "correction rate is 20.0 %, the target is < 10.0 %" in poor[1]


def test_a_quiet_week_has_a_report_too() -> None:
    text = markdown(report([], missing="Prometheus gave no answer"))
    assert "0 pairs of 3 (0%)" in text
    assert "Missing: Prometheus gave no answer." in text


def test_the_page_is_whole_and_escapes_what_people_wrote() -> None:
    page = html(report([pair(1)], versions=({"version": "<script>x</script>"},)))
    assert "<script>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") == 1
    assert "<table>" in page


def test_bars_are_as_high_as_their_counts() -> None:
    root = ET.fromstring(bars({"2026-11-23": 4, "2026-11-24": 0, "2026-11-25": 2}))
    heights = [float(one.get("height", "")) for one in root.iter("rect")]
    assert heights == [120, 0, 60]


def test_a_week_is_monday_to_monday_or_the_last_seven_days() -> None:
    now = datetime(2026, 11, 26, 12, tzinfo=UTC)
    assert week_of("2026-11-25", now) == (MONDAY, MONDAY + timedelta(days=7))
    start, end = week_of("", now)
    assert (start.date(), end.date()) == (date(2026, 11, 20), date(2026, 11, 27))
    with pytest.raises(CliError, match="--week"):
        weekly(week="last")


def test_a_rollout_is_shown_by_its_last_word_of_the_newest_leader() -> None:
    def decision(token: int, seq: int, kind: DecisionKind, phase: Phase, reason: str) -> Decision:
        return Decision(
            token=token,
            seq=seq,
            kind=kind,
            model="assistant",
            rollout_id="r",
            stable="a",
            candidate="b",
            phase=phase,
            actor="controller",
            reason=reason,
            at=MONDAY,
        )

    rows = rollout_rows(
        [
            decision(1, 0, DecisionKind.start, Phase.progressing, "begun"),
            decision(2, 0, DecisionKind.pause, Phase.paused, "by hand"),
            decision(1, 1, DecisionKind.weight, Phase.progressing, "by one who led before"),
            decision(2, 1, DecisionKind.hold, Phase.paused, "nothing new"),
        ]
    )
    assert [(one["phase"], one["decisions"], one["last reason"]) for one in rows] == [
        ("Paused", "3", "by hand")
    ]
    assert "Decide on r, which wait" in report([pair(1)], rollouts=tuple(rows)).actions()[1]


def test_signals_stand_beside_satisfaction_with_their_correlation() -> None:
    found = report(
        [],
        figures={
            "a": {"satisfaction": 0.8, "implied_satisfaction": 0.625, "session_length": 3.25},
            "b": {"satisfaction": 0.9},
        },
        correlations={"a": Correlation(0.8, 0.744, 0.845)},
    )
    page = markdown(found)
    assert "| a | 62.5 % | – | – | – | – | – | 0.80 (0.74 to 0.84) | 3.2 |" in page
    assert "| b | – | – | – | – | – | – | – | – |" in page
    assert not any("session" in action for action in found.actions())


def test_parts_of_the_audience_are_warned_of_both_ways() -> None:
    found = report(
        [pair(n) for n in range(3)],
        audiences=(
            Audience("locale", "de", 0.1), Audience("locale", "en", 1.9),
            Audience("segment", "pro", 2.5),
        ),
    )  # fmt: skip
    said = [action for action in found.actions() if action.startswith("Ask")]
    assert [action.partition(":")[0] for action in said] == [
        "Ask more of locale de", "Ask less of segment pro",
    ]  # fmt: skip
    assert "| locale | en | 1.90 |" in markdown(found)


def test_agreement_of_raters_is_shown_and_warned_of_where_enough_was_labelled() -> None:
    poor = Consistency(raw=0.7, items=40, alpha=0.41, low=0.2, high=0.6)
    page = markdown(report([], consistency=poor))
    assert "| 40 | 70.0 % | 0.41 (0.20 to 0.60) |" in page
    assert any("guidelines" in action for action in report([], consistency=poor).actions())
    for well in (Consistency(raw=0.7, items=29), Consistency(raw=0.8, items=40), None):
        actions = report([], consistency=well).actions()
        assert not any("guidelines" in action for action in actions)
    assert "Nothing was labelled by several raters" in markdown(report([]))


def test_a_chat_gets_the_total_and_what_to_do() -> None:
    first, *actions = summary(report([pair(0)])).splitlines()
    assert "week 2026-11-23 to 2026-11-29: 1 pairs of 3 (33%)" in first
    assert actions == [f"- {action}" for action in report([pair(0)]).actions()]


def test_a_webhook_gets_the_text_and_its_figures() -> None:
    found = report([pair(0)])
    made = chat_message(found, datetime(2026, 11, 30, 7, tzinfo=UTC))
    body = json.loads(json.dumps(made.body()))
    assert body["text"] == summary(found)
    assert (body["type"], body["id"]) == ("report.weekly", "report.weekly/2026-11-23/2026-11-30")
    assert (body["data"]["collected"], body["data"]["target"]) == (1, 3)
    assert body["data"]["actions"] == found.actions()


def test_the_gain_since_the_reference_stands_with_its_interval() -> None:
    since = {"difference": 0.0512, "low": 0.011, "high": 0.0914}
    known = {
        "version": "v2",
        "holdout_reference": "v1",
        "since_reference": since,
        "win_rate_since_reference": {"rate": 0.6, "low": 0.52, "high": 0.68},
    }
    without = {"version": "v3", "holdout_reference": "", "since_reference": None}
    page = markdown(report([pair(1)], gains=tuple(gain_rows([known, without]))))
    assert "| v2 | v1 | satisfaction gained | 0.051 | 0.011 | 0.091 |" in page
    assert "| v2 | v1 | votes won | 0.600 | 0.520 | 0.680 |" in page
    assert "v3" not in page
    away = markdown(report([pair(1)], gains_missing="rollout does not answer"))
    _, _, section = away.partition("## Gain since the holdout's reference")
    assert section.lstrip().startswith("Missing: rollout does not answer.")


def test_the_rollout_service_is_asked_for_each_model_and_may_be_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def answer(*_: Any, query: dict[str, str]) -> dict[str, Any]:
        asked.append(query["model"])
        if query["model"] == "gone":
            raise CliError("rollout does not answer.", Exit.unreachable)
        return {"gains": [{"version": "v2", "holdout_reference": ""}]}

    monkeypatch.setattr("services.cli.report.ask", answer)
    assert with_gains(report([], trajectories={"assistant": ()})).gains == ()
    away = with_gains(report([], trajectories={"assistant": (), "gone": ()}))
    assert asked == ["assistant", "assistant", "gone"]
    assert away.gains_missing == "rollout does not answer"


def test_pairs_are_shown_by_category_with_their_quality() -> None:
    asked: dict[str, Any] = {"context": {"category": "factual_qa"}}
    told = report(
        [pair(1, **asked), pair(2, "It ships today. It is on its way.", **asked), pair(3)]
    )
    assert told.preferences.per_category == {"factual_qa": 2, "": 1}
    text = markdown(told)
    assert "| factual_qa | 2 |" in text
    assert "| none named | 1 |" in text
    assert f"| with a clear winner | {told.preferences.quality['clear_winner_percent']} % |" in text
    assert "| quality score, mean |" in text
    assert "| quality score, mean |" not in markdown(report([]))


class FiredAlerts:
    """A Prometheus that knows how many minutes each alert fired."""

    def __init__(self, *samples: Sample) -> None:
        self.asked: list[str] = []
        self._samples = [*samples]

    def query(self, promql: str, *, at: float) -> list[Sample]:
        assert at == 5.0
        self.asked.append(promql)
        return self._samples


def test_incidents_are_the_alerts_that_fired_and_those_that_called_people_are_looked_into() -> None:
    client = FiredAlerts(
        Sample({"alertname": "RatchetDeadLetters", "severity": "ticket"}, 90.0),
        Sample({"alertname": "RatchetEngineLost", "severity": "page"}, 12.0),
    )
    found = incidents(cast("Any", client), 5.0)
    assert found == (
        Incident("RatchetDeadLetters", "ticket", 90),
        Incident("RatchetEngineLost", "page", 12),
    )
    assert 'alertstate="firing"' in client.asked[0]
    told = report([pair(n, f"answer {n}") for n in range(3)], incidents=found)
    assert "| RatchetEngineLost | page | 12 |" in markdown(told)
    assert told.actions() == [
        "Find out why RatchetEngineLost called people (12 minutes); "
        "see docs/runbooks.md#ratchetenginelost."
    ]
