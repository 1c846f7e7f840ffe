"""Passes of the reward model: every row once, bounded, and what many rows share read once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.inference.scoring_passes import (
    BATCH_ROWS,
    CACHE_TOKENS,
    PREFIX_PASS_TOKENS,
    SharedPrefix,
    passes,
)

TOKENS = 512


def read(found: list[SharedPrefix], rows: list[list[int]]) -> int:
    """Tokens that are read, padding and shared prefixes included."""
    return sum(
        shared.prefix
        + sum(
            len(batch) * (max(len(rows[index]) for index in batch) - shared.prefix)
            for batch in shared.batches
        )
        for shared in found
    )


def answers(prompt: list[int], count: int, *, length: int = 4) -> list[list[int]]:
    """Rows with a prompt in common, which differ from their next token on."""
    return [prompt + [1000 + number] * length for number in range(count)]


rows_of_tokens = st.lists(
    st.builds(
        lambda prompt, rest: [7] * prompt + rest,
        st.sampled_from([0, 3, 90, 300]),
        st.lists(st.integers(0, 2), min_size=1, max_size=40),
    ),
    min_size=1,
    max_size=40,
)


@given(rows_of_tokens, st.booleans())
def test_each_row_is_read_once_within_the_bounds_and_its_last_token_anew(
    rows: list[list[int]], shares: bool
) -> None:
    found = passes(rows, TOKENS, shares=shares)
    batches = [(shared.prefix, batch) for shared in found for batch in shared.batches]
    assert sorted(index for _, batch in batches for index in batch) == list(range(len(rows)))
    for shared in found:
        members = [rows[index] for batch in shared.batches for index in batch]
        assert all(row[: shared.prefix] == members[0][: shared.prefix] for row in members)
        assert all(len(row) > shared.prefix for row in members)
        assert shares or not shared.prefix
    for prefix, batch in batches:
        width = max(len(rows[index]) for index in batch)
        assert len(batch) <= BATCH_ROWS
        assert len(batch) == 1 or len(batch) * (width - prefix) <= TOKENS
        assert len(batch) == 1 or len(batch) * width <= CACHE_TOKENS


@given(rows_of_tokens)
def test_sharing_never_reads_more_than_it_saves(rows: list[list[int]]) -> None:
    saved = sum(
        (sum(map(len, shared.batches)) - 1) * shared.prefix - PREFIX_PASS_TOKENS
        for shared in passes(rows, TOKENS)
        if shared.prefix
    )
    assert saved >= 0


def test_a_conversation_with_many_answers_is_read_once() -> None:
    rows = answers(list(range(300)), 64)
    (shared,) = passes(rows, TOKENS)
    assert shared.prefix == 300
    assert read([shared], rows) == 300 + 64 * 4
    assert len(shared.batches) == 64 // (CACHE_TOKENS // 304) + 1


def test_two_answers_to_each_short_prompt_join_one_batch() -> None:
    rows = [row for prompt in range(8) for row in answers([prompt] * 15, 2)]
    assert passes(rows, TOKENS) == [SharedPrefix(0, [list(range(16))])]


def test_each_conversation_has_its_own_and_the_rest_is_read_together() -> None:
    many, other, alone = answers([1] * 200, 8), answers([2] * 300, 8), answers([3] * 20, 2)
    found = passes([*many, *alone, *other], TOKENS)
    assert sorted((one.prefix, sum(map(len, one.batches))) for one in found) == [
        (0, 2),
        (200, 8),
        (300, 8),
    ]


def test_a_system_prompt_before_different_questions_is_shared() -> None:
    rows = [[5] * 400 + [number, 9] for number in range(16)]
    (shared,) = passes(rows, TOKENS)
    assert shared.prefix == 400


def test_equal_rows_keep_a_token_each_to_be_scored_by() -> None:
    (shared,) = passes([[4] * 400] * 3, TOKENS)
    assert shared.prefix == 399


def test_batches_are_by_length_so_that_little_is_padding() -> None:
    rows = [[number] * length for number, length in enumerate([100, 2, 99, 1, 98, 3])]
    (found,) = passes(rows, TOKENS)
    assert found.batches == [[3, 1, 5, 4, 2], [0]]
    assert [len(rows[index]) for batch in found.batches for index in batch] == [
        1,
        2,
        3,
        98,
        99,
        100,
    ]


def test_few_rows_that_share_much_are_not_given_up_for_all_that_share_little() -> None:
    rows = [*answers([1] * 30 + [2] * 400, 4), *answers([1] * 30 + [3], 4)]
    found = passes(rows, TOKENS)
    assert sorted(one.prefix for one in found) == [0, 430]
