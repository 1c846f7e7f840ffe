"""Reading time: the least in which two answers can be read. Pure.

Adults read 238 words a minute in silence (Brysbaert 2019, doi 10.1016/j.jml.2019.104047). A vote is
marked where it took less than a third of that: nobody read both answers, not even skimming.
"""

from __future__ import annotations

from datetime import timedelta

WORDS_PER_MINUTE = 238
SKIMMING = 3
"""How many times faster than reading skimming may be."""
CHARACTERS_PER_WORD = 6
"""With the space after it; what counts where a script has no spaces."""
SHORTEST = timedelta(seconds=1)
LONGEST = timedelta(seconds=20)
"""Above that, both answers need not be read to the end to tell them apart."""


def words(text: str) -> float:
    """Words of a text, by its spaces or by its length, whichever is more."""
    return max(len(text.split()), len(text) / CHARACTERS_PER_WORD)


def least_reading_time(left: str, right: str) -> timedelta:
    """The time below which a vote on these two answers is faster than reading."""
    minutes = (words(left) + words(right)) / (WORDS_PER_MINUTE * SKIMMING)
    return min(max(timedelta(minutes=minutes), SHORTEST), LONGEST)
