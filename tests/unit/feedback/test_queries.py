"""Queries over HTTP: the status of a feedback, listings with cursors, exports."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from services.feedback.read_model import export as exporting
from services.feedback.read_model import marking
from services.feedback.read_model.marking import MarkChanges, look_for_marks
from services.feedback.read_model.store import ReadModelStore
from shared.contracts.events.api_keys import ApiKeyIssued, Permission
from shared.contracts.events.base import Context, Event
from shared.contracts.events.feedback import FeedbackType
from shared.contracts.events.votes import Choice
from shared.contracts.feedback_id import default_feedback_id
from shared.contracts.topics import PREFERENCES
from shared.keys import hash_key
from shared.rater_marks import RaterRules
from shared.tenants import ModelTenants
from shared.testing.clock import ManualClock
from shared.testing.log import MemoryLog
from tests.support.aggregator import DOWN, START, UP, at, feedback, interaction, vote, withdrawn
from tests.support.feedback import FeedbackHarness, feedback_service
from tests.support.operators import operator_of
from tests.support.read_model import LogBuilder
from tests.support.rollouts import version_record

PREFERENCE = FeedbackType.preference
TENANT = "default"
"""Whose key everybody has in the local profile."""


def mine(event: Event) -> Any:
    return event.model_copy(update={"tenant": TENANT})


@asynccontextmanager
async def service_of(
    path: Path, *events: Event, log: LogBuilder | None = None, **settings: Any
) -> AsyncIterator[FeedbackHarness]:
    """The service with a read model of these events."""
    log = log or LogBuilder()
    log.take(*events)
    model = ReadModelStore(path / "model", max_bytes=100_000_000)
    model.fold(log.records, not_before_ms=0)
    if settings.pop("marked", False):
        await model.mark(RaterRules())
    model.close()
    clock = settings.pop("clock", None) or ManualClock(START + timedelta(minutes=1))
    async with feedback_service(
        MemoryLog(), read_model=path / "model", clock=clock, **settings
    ) as harness:
        yield harness


async def status_of(harness: FeedbackHarness, feedback_id: str, **query: str) -> Any:
    answer = await harness.client.get(f"/v1/feedback/{feedback_id}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_counted_feedback_names_version_windows_and_what_was_made_of_it(
    tmp_path: Path,
) -> None:
    name = default_feedback_id(TENANT, "t1", "u1", UP)
    events = (
        interaction(seconds=125),
        feedback(name),
        feedback(name, kind=DOWN, revision=1, seconds=200),
    )
    async with service_of(tmp_path, *map(mine, events)) as service:
        found = await status_of(service, name)
    assert found["state"] == "counted"
    assert found["type"] == "thumbs_down"
    assert found["user_id"] == "u1"
    assert found["counted"] == {
        "model": "assistant",
        "version": "assistant-v1.0",
        "windows": {
            "1m": "2026-03-02T09:02:00Z",
            "5m": "2026-03-02T09:00:00Z",
            "1h": "2026-03-02T09:00:00Z",
            "1d": "2026-03-02T00:00:00Z",
        },
        "satisfaction": 0.0,
    }
    assert [(one["revision"], one["counts"]) for one in found["revisions"]] == [
        (0, False),
        (1, True),
    ]
    first, second = found["products"]
    assert (first["kind"], first["label"]) == ("unpaired", True)
    assert first["retracted_reason"]
    assert (second["label"], second["retracted_at"]) == (False, None)


async def test_a_pair_names_the_versions_whose_dataset_was_read_beyond_it(tmp_path: Path) -> None:
    correction = feedback("f1", "t1", FeedbackType.text_correction, {"corrected": "Ask us."})
    log = LogBuilder()
    log.take(*map(mine, (interaction(), correction)))
    (pair,) = (one for one in log.records if one.topic == PREFERENCES)
    place = f"{PREFERENCES}/{pair.partition}"
    async with service_of(tmp_path, log=log) as service:
        for name, end in (("assistant-v1.1", pair.offset), ("assistant-v1.2", pair.offset + 1)):
            record = version_record(name)
            dataset = record.dataset.model_copy(update={"offsets": {place: end}})
            taken = record.model_copy(update={"dataset": dataset})
            service.registry.apply(f"{name}/record", taken.to_json())
        found = await status_of(service, "f1")
    (product,) = found["products"]
    assert (product["kind"], product["source"]) == ("pair", "correction")
    assert [one["version"] for one in product["read_by"]] == ["assistant-v1.2"]


@pytest.mark.parametrize(
    ("events", "after", "state"),
    [
        ((feedback(),), timedelta(0), "waiting"),
        ((feedback(),), timedelta(days=31), "unjoined"),
        ((feedback(), withdrawn()), timedelta(0), "withdrawn"),
        ((interaction(), feedback(), withdrawn()), timedelta(0), "withdrawn"),
        ((vote("f1"),), timedelta(0), "counted"),
        ((vote("f1"), withdrawn("f1", "f1", PREFERENCE)), timedelta(0), "withdrawn"),
    ],
)
async def test_states(
    tmp_path: Path, events: tuple[Event, ...], after: timedelta, state: str
) -> None:
    clock = ManualClock(START + timedelta(minutes=1) + after)
    async with service_of(tmp_path, *map(mine, events), clock=clock) as service:
        found = await status_of(service, "f1")
    assert found["state"] == state
    assert found["reason"]


async def test_feedback_that_the_join_does_not_have_is_processing_then_not_counted(
    tmp_path: Path,
) -> None:
    log = LogBuilder()
    log.take(mine(interaction()), mine(feedback("f1")))
    refused = mine(feedback("f2", user="u2", seconds=2))
    log.add("ratchet.feedback.v1", "t1", refused)
    clock = ManualClock(START + timedelta(minutes=1))
    async with service_of(tmp_path, log=log, clock=clock) as service:
        assert (await status_of(service, "f2"))["state"] == "processing"
        clock.advance(3600)
        assert (await status_of(service, "f2"))["state"] == "not_counted"


async def test_a_withdrawal_by_the_default_id_leaves_the_type_as_it_was_sent(
    tmp_path: Path,
) -> None:
    events = (feedback(kind=DOWN), withdrawn(kind=UP))
    async with service_of(tmp_path, *map(mine, events)) as service:
        found = await status_of(service, "f1")
    assert (found["type"], found["state"]) == ("thumbs_down", "withdrawn")


async def test_anonymous_feedback_says_so(tmp_path: Path) -> None:
    async with service_of(tmp_path, mine(feedback(user="", anonymous=True))) as service:
        assert "user_id" in (await status_of(service, "f1"))["reason"]


async def test_unknown_feedback_is_a_404_and_ambiguous_a_409(tmp_path: Path) -> None:
    events = (feedback("f1", "t1"), feedback("f1", "t2"))
    async with service_of(tmp_path, *map(mine, events)) as service:
        missing = await service.client.get("/v1/feedback/f9")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        both = await service.client.get("/v1/feedback/f1")
        assert (both.status_code, both.json()["code"]) == (409, "conflict")
        assert (await status_of(service, "f1", trace_id="t2"))["trace_id"] == "t2"


async def test_products_of_another_trace_under_one_id_are_not_shown(tmp_path: Path) -> None:
    events = (
        interaction("t1"), feedback("f1", "t1", UP),
        interaction("t2"), feedback("f1", "t2", DOWN),
    )  # fmt: skip
    async with service_of(tmp_path, *map(mine, events)) as service:
        (product,) = (await status_of(service, "f1", trace_id="t1"))["products"]
    assert product["label"] is True


async def test_without_a_read_model_queries_are_503_and_feedback_is_taken() -> None:
    async with feedback_service(MemoryLog(), read_model=Path("/nonexistent/model")) as service:
        for path in ("/v1/feedback/f1", "/v1/examples?kind=any", "/v1/examples/export?kind=any"):
            answer = await service.client.get(path)
            assert answer.status_code == 503
            assert answer.json()["code"] == "read_model_unavailable"
            assert int(answer.headers["retry-after"]) > 0
        body = {"trace_id": "t", "type": "thumbs_up"}
        assert (await service.post("/v1/feedback", body)).status_code == 202


async def test_each_tenant_sees_its_own_and_each_scope_its_part(tmp_path: Path) -> None:
    events = [interaction("t1"), feedback("f1", "t1")]
    log = LogBuilder()
    log.take(*events, *(one.model_copy(update={"tenant": "other"}) for one in events))
    async with service_of(tmp_path, log=log, keys_required=True) as service:
        for tenant in ("acme", "stranger"):
            for scope in Permission:
                issued = ApiKeyIssued(
                    key_id=f"{tenant}-{scope}", sha256=hash_key(f"{tenant}-{scope}"),
                    tenant=tenant, scopes=(scope,), issued_at=START,
                )  # fmt: skip
                service.keys.apply(issued.key_id, issued.to_json())

        async def status(path: str, tenant: str, scope: Permission) -> int:
            key = {"authorization": f"Bearer {tenant}-{scope}"}
            return (await service.client.get(path, headers=key)).status_code

        assert await status("/v1/feedback/f1", "acme", Permission.feedback) == 200
        assert await status("/v1/feedback/f1", "stranger", Permission.feedback) == 404
        assert await status("/v1/feedback/f1", "acme", Permission.infer) == 403
        for path in ("/v1/examples?kind=any", "/v1/examples/export?kind=any"):
            assert await status(path, "acme", Permission.operate) == 200
            assert await status(path, "acme", Permission.feedback) == 403
            assert (await service.client.get(path)).status_code == 401
        key = {"authorization": f"Bearer stranger-{Permission.operate}"}
        answer = await service.client.get("/v1/examples?kind=any", headers=key)
        assert answer.json()["examples"] == []
        key = {"authorization": f"Bearer acme-{Permission.operate}"}
        answer = await service.client.get("/v1/examples?kind=any", headers=key)
        assert [one["tenant"] for one in answer.json()["examples"]] == ["acme"]


def many(count: int) -> list[Event]:
    """Interactions with feedback: every second one negative, of two versions and locales."""
    events: list[Event] = []
    for number in range(count):
        trace = f"t{number:03}"
        context = Context(
            category="creative" if number % 3 == 0 else "explanation",
            locale="de" if number % 2 else "en",
            segment="gold" if number % 5 == 0 else "",
            labels={"shop": f"s{number % 4}", "beta": "a b"} if number % 2 else {"shop": "s10"},
        )
        version = f"assistant-v1.{number % 2}"
        events += [
            interaction(
                trace, version=version, seconds=number // 2, context=context,
                prompt=f"prompt {number}", completion=f"answer {number}",
            ),
            feedback(f"f{number}", trace, DOWN if number % 2 else UP, user=f"u{number}"),
        ]  # fmt: skip
    return [mine(event) for event in events]


async def pages(service: FeedbackHarness, **query: str) -> list[list[Any]]:
    found: list[list[Any]] = []
    while True:
        answer = await service.client.get("/v1/examples", params=query)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        found.append(body["examples"])
        if body["next"] is None:
            return found
        query["cursor"] = body["next"]


@pytest.mark.parametrize("order", ["newest", "oldest"])
async def test_pages_hold_every_example_once_in_order(tmp_path: Path, order: str) -> None:
    async with service_of(tmp_path, *many(23)) as service:
        found = await pages(service, kind="any", limit="5", order=order)
    assert [len(page) for page in found] == [5, 5, 5, 5, 3]
    names = [one["trace_id"] for page in found for one in page]
    expected = [f"t{number:03}" for number in range(23)]
    assert names == (expected if order == "oldest" else expected[::-1])


async def test_rows_that_come_between_two_pages_neither_shift_nor_repeat(tmp_path: Path) -> None:
    log = LogBuilder()
    async with service_of(tmp_path, *many(10), log=log) as service:
        first = await service.client.get("/v1/examples?kind=any&limit=4")
        before = len(log.records)
        newer = (interaction("u1", seconds=900), feedback("x1", "u1"))
        older = (interaction("a1", seconds=-900), feedback("x2", "a1"))
        log.take(*map(mine, (*newer, *older)))
        log.take(mine(feedback("late", "t007", UP, user="late", seconds=50)))  # an edit of a row
        model = ReadModelStore(tmp_path / "model", max_bytes=100_000_000)
        model.fold(log.records[before:], not_before_ms=0)
        model.close()
        rest = await pages(service, kind="any", limit="4", cursor=first.json()["next"])
    names = [one["trace_id"] for page in (first.json()["examples"], *rest) for one in page]
    assert names == [*(f"t{number:03}" for number in range(9, -1, -1)), "a1"]


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({"kind": "positive"}, range(0, 12, 2)),
        ({"kind": "negative"}, range(1, 12, 2)),
        ({"kind": "any", "version": "assistant-v1.1"}, range(1, 12, 2)),
        ({"kind": "any", "category": "creative"}, range(0, 12, 3)),
        ({"kind": "any", "segment": "gold"}, range(0, 12, 5)),
        ({"kind": "any", "locale": "de", "category": "creative"}, range(3, 12, 6)),
        ({"kind": "any", "since": at(2).isoformat(), "until": at(4).isoformat()}, range(4, 8)),
        ({"kind": "correction"}, ()),
        ({"kind": "any", "tag": "shop=s1"}, range(1, 12, 4)),
        ({"kind": "any", "tag": "beta=a b", "category": "creative"}, range(3, 12, 6)),
        ({"kind": "any", "tag": "beta"}, range(1, 12, 2)),
        ({"kind": "any", "tag": "bet"}, ()),
        ({"kind": "any", "tag": "s1"}, ()),
    ],
)
async def test_filters(tmp_path: Path, query: dict[str, str], numbers: Any) -> None:
    async with service_of(tmp_path, *many(12)) as service:
        (found,) = await pages(service, order="oldest", **query)
    assert [one["trace_id"] for one in found] == [f"t{number:03}" for number in numbers]


async def test_pairs_are_found_by_either_version_and_retracted_ones_are_not_listed(
    tmp_path: Path,
) -> None:
    events = (
        vote("c1", Choice.left), vote("c2", Choice.tie),
        interaction("t1"), feedback("f1", "t1"), withdrawn("f1", "t1"),
        interaction("t2"), feedback("f2", "t2", DOWN),
        interaction("t3"), feedback("f3", "t3", FeedbackType.text_correction, {"corrected": "So."}),
    )  # fmt: skip
    async with service_of(tmp_path, *map(mine, events)) as service:
        for version in ("assistant-v1.0", "assistant-v1.1"):
            (found,) = await pages(service, kind="pair", version=version)
            assert "vote" in [one["source"] for one in found]
        (found,) = await pages(service, kind="unpaired")
        assert [one["label"] for one in found] == [False]
        (found,) = await pages(service, kind="correction")
        assert [one["trace_id"] for one in found] == ["t3"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "kind"),
        ("kind=nice", "kind"),
        ("kind=any&limit=0", "limit"),
        ("kind=any&limit=501", "limit"),
        ("kind=any&since=yesterday", "since"),
        ("kind=any&since=2026-01-01T00:00:00", "since"),
        ("kind=any&colour=red", "colour"),
        ("kind=any&cursor=xxxx", "cursor"),
        ("kind=any&cursor=%00", "cursor"),
    ],
)
async def test_a_bad_parameter_is_named(tmp_path: Path, query: str, field: str) -> None:
    async with service_of(tmp_path) as service:
        answer = await service.client.get(f"/v1/examples?{query}")
    assert answer.status_code == 422, answer.text
    assert [one["field"] for one in answer.json()["errors"]] == [field]


async def test_a_cursor_is_refused_with_other_filters(tmp_path: Path) -> None:
    async with service_of(tmp_path, *many(6)) as service:
        cursor = (await service.client.get("/v1/examples?kind=any&limit=2")).json()["next"]
        answer = await service.client.get(f"/v1/examples?kind=positive&cursor={cursor}")
    assert answer.status_code == 422
    assert "other filters" in answer.text


async def test_an_export_holds_every_row_in_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "PAGE_ROWS", 4)
    async with service_of(tmp_path, *many(11)) as service:
        answer = await service.client.get("/v1/examples/export?kind=any&order=oldest")
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [one["trace_id"] for one in lines] == [f"t{number:03}" for number in range(11)]
        (page,) = await pages(service, kind="any", order="oldest")
        assert lines == page
        empty = await service.client.get("/v1/examples/export?kind=comment")
        assert (empty.status_code, empty.text) == (200, "")


async def test_a_parquet_export_has_the_columns_of_the_table_whatever_the_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(exporting, "PAGE_ROWS", 2)
    events = [
        one
        for n in range(5)
        for one in (interaction(f"t{n}", completion=f"answer {n}"), feedback(f"f{n}", f"t{n}"))
    ]
    async with service_of(tmp_path, *map(mine, events)) as service:
        path = "/v1/examples/export?kind=positive&order=oldest"
        answer = await service.client.get(f"{path}&format=parquet")
        assert answer.headers["content-type"] == "application/vnd.apache.parquet"
        table = parquet.read_table(io.BytesIO(answer.content)).to_pylist()
        rows = list(
            csv.DictReader(io.StringIO((await service.client.get(f"{path}&format=csv")).text))
        )
        empty = await service.client.get("/v1/examples/export?kind=comment&format=parquet")
    assert len(table) == len(rows) == 5
    assert [list(row) for row in table] == [list(row) for row in rows]
    assert [row["completion"] for row in table] == [row["completion"] for row in rows]
    assert parquet.read_table(io.BytesIO(empty.content)).num_rows == 0


async def test_a_service_without_pyarrow_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    async with service_of(tmp_path) as service:
        answer = await service.client.get("/v1/examples/export?kind=any&format=parquet")
    assert answer.status_code == 406
    assert "ratchet[parquet]" in answer.json()["detail"]


async def test_a_csv_export_is_a_table_without_formulas(tmp_path: Path) -> None:
    events = (
        interaction("t1", completion='=HYPERLINK("x")', prompt='line\nbreak, "quoted"'),
        feedback("f1", "t1"),
    )  # fmt: skip
    async with service_of(tmp_path, *map(mine, events)) as service:
        answer = await service.client.get(
            "/v1/examples/export?kind=positive", headers={"accept": "text/csv, */*;q=0.1"}
        )
        assert answer.headers["content-type"].startswith("text/csv")
        assert 'filename="positive.csv"' in answer.headers["content-disposition"]
        (row,) = csv.DictReader(io.StringIO(answer.text))
    assert row["completion"] == '\'=HYPERLINK("x")'
    assert json.loads(row["prompt"])[0]["content"] == 'line\nbreak, "quoted"'
    assert (row["id"], row["version"], row["kind"]) == ("t1", "assistant-v1.0", "positive")
    assert json.loads(row["feedback"])[0]["feedback_id"] == "f1"


async def test_a_format_that_is_not_had_is_a_406(tmp_path: Path) -> None:
    async with service_of(tmp_path) as service:
        headers = {"accept": "application/xml"}
        path = "/v1/examples/export?kind=any"
        answer = await service.client.get(path, headers=headers)
        assert answer.status_code == 406
        named = await service.client.get(f"{path}&format=csv", headers=headers)
        assert named.status_code == 200


async def test_a_burst_is_marked_and_the_reason_is_visible(tmp_path: Path) -> None:
    events: list[Event] = [
        mine(
            vote(f"c{number}", (Choice.left, Choice.right)[number % 2], user="fast").model_copy(
                update={"submitted_at": at(number)}
            )
        )
        for number in range(25)
    ]
    events.append(mine(vote("c99", user="slow")))
    async with service_of(tmp_path, *events, marked=True) as service:
        fast, slow = await status_of(service, "c3"), await status_of(service, "c99")
    assert [one["suspicion"] for one in fast["products"]] == ["burst"]
    assert [one["suspicion"] for one in slow["products"]] == [""]
    assert fast["state"] == "counted"


async def test_marks_follow_what_stands_and_only_changes_are_written(tmp_path: Path) -> None:
    log = LogBuilder()
    log.take(
        *(
            mine(
                vote(f"c{n}", (Choice.left, Choice.right)[n % 2], user="fast").model_copy(
                    update={"submitted_at": at(n)}
                )
            )
            for n in range(25)
        )
    )
    path = tmp_path / "model"
    model = ReadModelStore(path, max_bytes=100_000_000)
    model.fold(log.records, not_before_ms=0)
    await model.mark(RaterRules())
    nothing = MarkChanges(frozenset(), frozenset())
    assert look_for_marks(path, RaterRules()) == nothing
    unmarked = look_for_marks(path, RaterRules(burst=0))
    assert (len(unmarked.new), len(unmarked.gone)) == (0, 25)
    model.close()


def test_a_look_that_takes_too_long_is_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marking, "STEPS_PER_CHECK", 1)
    ReadModelStore(tmp_path / "model", max_bytes=100_000_000).close()
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        look_for_marks(tmp_path / "model", RaterRules(), timeout_s=-1.0)


async def test_a_key_over_its_limit_of_queries_is_told_when_to_come_back() -> None:
    async with feedback_service(MemoryLog(), queries_per_minute=2) as service:
        for _ in "ab":
            assert (await service.client.get("/v1/examples?kind=any")).status_code != 429
        refused = await service.client.get("/v1/examples?kind=any")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 60


async def test_the_read_model_is_rebuilt_by_the_operators_alone() -> None:
    tenants = ModelTenants({"m": "acme"}, operators="ops")
    async with feedback_service(MemoryLog(), tenants=tenants, keys_required=True) as service:
        for tenant, status in (("acme", 403), ("ops", 202)):
            _, headers = operator_of(tenant, service.keys)
            answer = await service.client.post("/v1/read-model/reindex", headers=headers)
            assert answer.status_code == status
