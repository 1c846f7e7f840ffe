"""Whatever the script of a rater's page sends, the page answers, and the next good call succeeds."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fuzzing import Mutations
from tests.unit.feedback.voting.test_page import Visitor, visiting

CALLS = (300, pytest.param(10_000, marks=[pytest.mark.verify, pytest.mark.timeout(3600)]))
GOOD_EVERY = 25
SPAN = {"start": 0, "end": 4, "liked": False}
OPERATIONS: dict[tuple[str, str], Any] = {
    ("POST", "/next"): {"question": "Why?", "category": "factual_qa"},
    ("POST", "/comparisons/{comparison}/vote"): {"choice": "left"},
    ("POST", "/comparisons/{comparison}/undo"): {},
    ("POST", "/comparisons/{comparison}/correction"): {"side": "left", "text": "better"},
    ("POST", "/comparisons/{comparison}/spans"): {"side": "left", "spans": [SPAN]},
    ("POST", "/annotations/next"): {},
    ("POST", "/annotations/{item}/label"): {"label": "left", "corrections": [None]},
    ("POST", "/annotations/{item}/skip"): {},
    ("POST", "/sign-out"): {},
    ("GET", "/progress"): None,
    ("GET", "/annotations"): None,
}
"""Method and path below /vote/api, and a body that is taken."""


class FuzzingVisitor:
    """A signed-in rater whose script has gone wild."""

    def __init__(self, visitor: Visitor, seed: int) -> None:
        self._visitor = visitor
        self._mutations = Mutations(seed)
        self._shown = {"comparison": "none", "item": "none"}
        self.taken: set[str] = set()

    async def call(self) -> None:
        """One call of the page: its answer is no fault of the service."""
        rng = self._mutations.rng
        (method, template), valid = rng.choice(list(OPERATIONS.items()))
        headers = self._mutations.headers()
        if rng.random() < 0.9:
            headers.append((b"x-csrf-token", self._visitor.token.encode()))
        path = template.format_map(self._shown if rng.random() < 0.9 else ODD)
        content = b"" if valid is None else self._mutations.body(valid)
        answer = await self._visitor.client.request(
            method, f"/vote/api{path}", content=content, headers=headers
        )
        assert answer.status_code < 500, (method, path, content[:500], headers, answer.text)
        if answer.status_code == 200:
            self.taken.add(template)
            if template == "/sign-out":
                await self._visitor.sign_in()

    async def good(self) -> None:
        """The next comparison, and the next item where there is one."""
        await self._visitor.sign_in()
        self._shown["comparison"] = (await self._visitor.next())["comparison_id"]
        item = await self._visitor.post("/annotations/next")
        if item.status_code == 200:
            self._shown["item"] = item.json()["item_id"]


ODD = {"comparison": "%00", "item": "..%2f" * 50}


@pytest.mark.parametrize("count", CALLS)
async def test_no_call_breaks_a_raters_page(count: int) -> None:
    async with visiting() as visitor:
        await visitor.sign_in()
        items = [
            {"prompt": f"question {number}", "kind": "preference", "raters": 20}
            for number in range(2)
        ]
        added = await visitor.client.post("/v1/annotations", json={"items": items})
        assert added.status_code == 201, added.text
        wild = FuzzingVisitor(visitor, seed=23)
        for number in range(count):
            if number % GOOD_EVERY == 0:
                await wild.good()
            await wild.call()
        await wild.good()
        assert wild.taken >= {"/next", "/progress", "/comparisons/{comparison}/vote"}
