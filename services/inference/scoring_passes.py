"""Passes of the reward model over the rows of one request: little padding, a shared prefix read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

BATCH_ROWS = 32
"""Most rows of one pass."""
CACHE_TOKENS = 8192
"""Most padded tokens of one pass, with the prefix that its rows share: all of them are in memory."""
PREFIX_PASS_TOKENS = 256
"""Tokens that sharing a prefix must save: it takes a pass of its own, and its rows join no others."""


@dataclass(frozen=True)
class SharedPrefix:
    """Rows that begin with the same `prefix` tokens, in batches; 0 for those that share nothing."""

    prefix: int
    batches: list[list[int]]


def passes(
    rows: Sequence[list[int]], batch_tokens: int, *, shares: bool = True
) -> list[SharedPrefix]:
    """How to read rows of token ids, none of them empty, by their indices.

    Args:
        rows: Token ids of each.
        batch_tokens: Most padded tokens that one pass reads anew.
        shares: Whether a prefix can be read once for several rows.

    """
    runs = shared_runs(rows) if shares else []
    together = {index for run in runs for index in run.indices}
    alone = [index for index in range(len(rows)) if index not in together]
    runs = [*runs, _Run(0, alone)] if alone else runs
    return [
        SharedPrefix(run.prefix, _batches(rows, run.indices, run.prefix, batch_tokens))
        for run in runs
    ]


@dataclass(frozen=True)
class _Run:
    prefix: int
    indices: list[int]


def shared_runs(rows: Sequence[list[int]]) -> list[_Run]:
    """The disjoint runs of rows, in lexicographic order, whose shared prefixes save most tokens.

    By dynamic programming over the ends of runs: a run of n rows saves n - 1 times its prefix, less
    `PREFIX_PASS_TOKENS`.
    """
    order = sorted(range(len(rows)), key=lambda index: rows[index])
    common = [0, *(_common(rows[a], rows[b]) for a, b in pairwise(order))]
    saved, begins = [0, 0], [0, 0]
    for end in range(2, len(rows) + 1):
        best, begin, prefix = saved[end - 1], end - 1, common[end - 1]
        for start in range(end - 2, -1, -1):
            prefix = min(prefix, common[start + 1])
            if (end - 1) * prefix <= PREFIX_PASS_TOKENS:
                break
            here = saved[start] + (end - start - 1) * prefix - PREFIX_PASS_TOKENS
            if here > best:
                best, begin = here, start
        saved.append(best)
        begins.append(begin)
    found: list[_Run] = []
    end = len(rows)
    while end > 1:
        begin = begins[end]
        if end - begin > 1:
            found.append(_Run(min(common[begin + 1 : end]), order[begin:end]))
        end = begin
    return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with, less the last one of each: it is read for the score."""
    most = min(len(one), len(other)) - 1
    return next((at for at in range(most) if one[at] != other[at]), most)


def _batches(
    rows: Sequence[Sequence[int]], indices: Sequence[int], prefix: int, batch_tokens: int
) -> list[list[int]]:
    """Indices in batches, shortest first, that stay small once padded."""
    found: list[list[int]] = []
    for index in sorted(indices, key=lambda index: len(rows[index])):
        size, length = (len(found[-1]) + 1 if found else 0), len(rows[index])
        fits = size * (length - prefix) <= batch_tokens and size * length <= CACHE_TOKENS
        if not size or size > BATCH_ROWS or not fits:
            found.append([])
        found[-1].append(index)
    return found
