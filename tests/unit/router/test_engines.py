"""Which engine is tried first."""

from __future__ import annotations

from collections import Counter

from services.router.engines import AFFINITY_LOAD, DOWN_FOR_S, LACKS_FOR_S, MAX_LACKED, Engines
from shared.testing.clock import ManualClock

URLS = tuple(f"http://engine-{number}:8000" for number in range(4))


def engines_of(urls: tuple[str, ...] = URLS) -> tuple[Engines, ManualClock]:
    clock = ManualClock()
    return Engines(urls, clock, affinity=True), clock


def first(engines: Engines, prefix: int) -> str:
    return engines.order(str(prefix).encode())[0].name


async def test_without_a_prefix_the_least_busy_engine_is_first() -> None:
    engines, _ = engines_of()
    for number, engine in enumerate(engines.order()):
        engine.in_flight = 3 - number
    assert [one.in_flight for one in engines.order()] == [0, 1, 2, 3]


async def test_a_prefix_stays_with_its_engine_and_prefixes_spread() -> None:
    engines, _ = engines_of()
    chosen = [first(engines, prefix) for prefix in range(400)]
    assert chosen == [first(engines, prefix) for prefix in range(400)]
    assert min(Counter(chosen)[url] for url in URLS) > 50


async def test_one_prefix_cannot_fill_its_engine() -> None:
    engines, _ = engines_of()
    for _ in range(200):
        engines.order(b"the same system prompt")[0].in_flight += 1
    assert max(one.in_flight for one in engines.order()) <= AFFINITY_LOAD * 200 / len(URLS) + 1


async def test_an_engine_that_is_down_loses_its_prefixes_alone_until_it_is_back() -> None:
    engines, clock = engines_of()
    before = [first(engines, prefix) for prefix in range(100)]
    lost = next(one for one in engines.order() if one.name == before[0])
    engines.unreachable(lost)
    now = [first(engines, prefix) for prefix in range(100)]
    assert lost.name not in now
    assert all(a == b for a, b in zip(before, now, strict=True) if a != lost.name)
    clock.advance(DOWN_FOR_S * 2)
    assert [first(engines, prefix) for prefix in range(100)] == before


async def test_with_all_engines_down_all_are_tried() -> None:
    engines, _ = engines_of()
    for engine in engines.order():
        engines.unreachable(engine)
    assert {one.name for one in engines.order(b"prefix")} == set(URLS)


async def test_an_engine_that_lacks_a_model_is_last_for_it_alone_and_for_a_while() -> None:
    engines, clock = engines_of()
    lacking = engines.order(b"prefix", "m-v2")[0]
    engines.missing(lacking, "m-v2")
    assert engines.order(b"prefix", "m-v2")[-1] is lacking
    assert engines.order(b"prefix", "m-v1")[0] is lacking
    for engine in engines.order():
        if engine is not lacking:
            engines.unreachable(engine)
    assert engines.order(b"prefix", "m-v2")[-1] is lacking, "those that are down may have it"
    clock.advance(LACKS_FOR_S)
    assert engines.order(b"prefix", "m-v2")[0] is lacking


async def test_models_that_an_engine_lacks_are_bounded() -> None:
    engines, _ = engines_of()
    engine = engines.order()[0]
    for number in range(MAX_LACKED * 2):
        engines.missing(engine, f"m-{number}")
    assert list(engine.lacks_until) == [
        f"m-{number}" for number in range(MAX_LACKED, 2 * MAX_LACKED)
    ]
