"""The scorer around its process: answers in turn, deadlines, ends and too many waiters."""

from __future__ import annotations

import asyncio
import stat
import sys
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from services.inference import scorer as module
from services.inference.adapter_cache import AdapterCache
from services.inference.base_files import BaseFiles
from services.inference.errors import (
    NoRewardModel,
    RewardModelElsewhere,
    ScorerOverloaded,
    ScorerUnavailable,
)
from services.inference.metrics import InferenceMetrics
from services.inference.scorer import Scorer
from shared.clock import SystemClock
from shared.contracts.events.versions import DatasetRef, RewardRecord, record_key, reward_key
from shared.registry.base_models import identify_base
from shared.registry.versions import Registry
from tests.support.waiting import eventually
from tests.unit.training.builders import MODEL, NOW, record

SCORES_LENGTHS = """
import json, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    rows = [row["completion"] for row in asked["rows"]]
    print(asked["base"], asked["revision"], file=open(sys.argv[1], "a"))
    if "hang" in rows: time.sleep(60)
    if "load" in rows: time.sleep(0.5)
    if "end" in rows: sys.exit(1)
    answer = {"error": "no template"} if "bad" in rows else {"scores": [len(row) for row in rows]}
    if "unsure" in rows:
        answer["uncertainties"] = [0.5 for _ in rows]
    print(json.dumps(answer), flush=True)
"""


class StubCache:
    """Every adapter is there already; holds what each pruning kept."""

    def __init__(self) -> None:
        self.kept: list[set[str]] = []

    async def fetch(self, record: RewardRecord) -> Path:
        return Path("/adapters") / record.name

    async def prune(self, needed: Collection[str]) -> None:
        self.kept.append(set(needed))


def reward(number: int, **more: str) -> RewardRecord:
    given: dict[str, Any] = {"base": "base"} | more
    return RewardRecord(
        name=f"{MODEL}-reward-v{number}",
        model=MODEL,
        **given,
        adapter_uri="file:///a",
        adapter_sha256=str(number) * 64,
        dataset=DatasetRef(dataset_id="d", uri="u", sha256="0", rows=1),
        hyperparameters={},
        seed=0,
        code_revision="c",
        metrics={},
        job_id="j",
        created_at=NOW,
    )


def publish(registry: Registry, number: int, **more: str) -> None:
    made = reward(number, **more)
    registry.apply(reward_key(made.name), made.to_json())


@pytest.fixture
def registry(base: Path) -> Registry:
    made = Registry()
    version = record(f"{MODEL}-v1.0")
    made.apply(record_key(version.version), version.to_json())
    publish(made, 1, base=str(base))
    return made


@pytest.fixture
def cache() -> StubCache:
    return StubCache()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The base that the engine serves."""
    made = tmp_path / "base"
    made.mkdir()
    (made / "model.safetensors").write_bytes(b"w")
    return made


@pytest.fixture
async def scorer(
    tmp_path: Path, registry: Registry, cache: StubCache, base: Path
) -> AsyncIterator[Scorer]:
    script, python = tmp_path / "scoring.py", tmp_path / "python"
    script.write_text(SCORES_LENGTHS)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "{tmp_path}/bases"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    made = Scorer(
        python=python,
        registry=registry,
        cache=cast("AdapterCache", cache),
        clock=SystemClock(),
        metrics=InferenceMetrics(CollectorRegistry()),
        base_files=BaseFiles(str(base), tmp_path / "hashes.json"),
    )
    yield made
    await made.close()


def rows(*completions: str) -> list[dict[str, Any]]:
    return [{"messages": [], "completion": text} for text in completions]


async def test_several_heads_say_how_unsure_they_are_and_one_says_nothing(scorer: Scorer) -> None:
    unsure = await scorer.score(MODEL, rows("unsure", "b"), timeout_s=60)
    assert (unsure.values, unsure.uncertainties) == ((6.0, 1.0), (0.5, 0.5))
    assert (await scorer.score(MODEL, rows("a"), timeout_s=60)).uncertainties == ()


async def test_requests_at_once_each_get_their_own_scores(scorer: Scorer) -> None:
    asked = [scorer.score(MODEL, rows("x" * n), timeout_s=30) for n in range(8)]
    found = await asyncio.gather(*asked)
    assert [one.values for one in found] == [(float(n),) for n in range(8)]
    assert {one.reward_model for one in found} == {f"{MODEL}-reward-v1"}


@pytest.mark.parametrize(
    ("text", "longest_s", "why"), [("hang", 0.5, "within 0.5 s"), ("end", 30, "ended")]
)
async def test_after_a_process_that_hangs_or_ends_the_next_request_has_a_new_one(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch, text: str, longest_s: float, why: str
) -> None:
    monkeypatch.setattr(module, "LONGEST_S", longest_s)
    with pytest.raises(ScorerUnavailable, match=why):
        await scorer.score(MODEL, rows(text), timeout_s=30)
    monkeypatch.setattr(module, "LONGEST_S", 30)
    assert (await scorer.score(MODEL, rows("abc"), timeout_s=30)).values == (3.0,)


async def test_a_caller_that_gives_up_leaves_the_process_to_load(scorer: Scorer) -> None:
    with pytest.raises(ScorerUnavailable, match=r"within 0\.05 s"):
        await scorer.score(MODEL, rows("load"), timeout_s=0.05)
    await eventually(lambda: scorer._process is not None, "the process is started")
    started = scorer._process
    with pytest.raises(ScorerUnavailable, match=r"within 0\.05 s"):
        await scorer.score(MODEL, rows("x" * 5), timeout_s=0.05)
    assert (await scorer.score(MODEL, rows("abc"), timeout_s=30)).values == (3.0,)
    assert scorer._process is started
    assert scorer._waiting == 0


async def test_an_answer_that_cannot_be_read_is_told_and_the_process_stays(scorer: Scorer) -> None:
    with pytest.raises(ScorerUnavailable, match="no template"):
        await scorer.score(MODEL, rows("bad"), timeout_s=30)
    assert (await scorer.score(MODEL, rows("a"), timeout_s=30)).values == (1.0,)


async def test_a_model_without_a_reward_model_is_refused(scorer: Scorer) -> None:
    with pytest.raises(NoRewardModel):
        await scorer.score("other", rows("a"), timeout_s=1)


async def test_waiters_are_bounded(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    first = asyncio.create_task(scorer.score(MODEL, rows("a"), timeout_s=30))
    await asyncio.sleep(0)
    with pytest.raises(ScorerOverloaded):
        await scorer.score(MODEL, rows("b"), timeout_s=30)
    assert (await first).values == (1.0,)


async def test_a_new_reward_model_lets_the_older_ones_go_from_the_disk(
    scorer: Scorer, registry: Registry, cache: StubCache
) -> None:
    for _ in range(2):
        await scorer.score(MODEL, rows("a"), timeout_s=30)
    assert cache.kept == [{"1" * 64}], "looked at once"
    publish(registry, 2, base=registry.rewards(MODEL)[-1].base)
    assert (await scorer.score(MODEL, rows("a"), timeout_s=30)).reward_model.endswith("-v2")
    assert cache.kept[1:] == [{"2" * 64}]


async def test_a_reward_model_made_on_other_files_of_the_base_scores_nothing(
    scorer: Scorer, registry: Registry, base: Path
) -> None:
    publish(registry, 2, base=str(base), base_sha256="a" * 64)
    with pytest.raises(ScorerUnavailable, match="reward-v2: base: its files have the SHA-256"):
        await scorer.score(MODEL, [{"messages": [], "completion": "four"}], timeout_s=60)
    here = identify_base(str(base), base.parent / "own-hashes.json").sha256
    publish(registry, 3, base=str(base), base_sha256=here)
    scores = await scorer.score(MODEL, [{"messages": [], "completion": "four"}], timeout_s=60)
    assert scores.values == (4.0,)


async def test_a_reward_model_of_another_base_is_scored_where_that_base_is(
    scorer: Scorer,
    registry: Registry,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as by the first engines, once they have moved to the next base: their volume has both."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    publish(registry, 2, base="org/older", base_revision="cafe")
    for _ in range(2):
        with pytest.raises(RewardModelElsewhere, match="reward-v2: its base org/older is not on"):
            await scorer.score(MODEL, rows("four"), timeout_s=60)
    snapshot = tmp_path / "hub" / "models--org--older" / "snapshots" / "cafe"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"o")
    assert (await scorer.score(MODEL, rows("four"), timeout_s=60)).values == (4.0,)
    same = identify_base(str(base), tmp_path / "own-hashes.json").sha256
    publish(registry, 3, base="org/same-by-another-name", base_revision="beef", base_sha256=same)
    assert (await scorer.score(MODEL, rows("four"), timeout_s=60)).values == (4.0,)
    assert (tmp_path / "bases").read_text().splitlines() == ["org/older cafe", f"{base} main"]
