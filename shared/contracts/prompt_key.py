"""Prompt key: whether two prompts are the same question, for pairs and for datasets alike.

Rows of the aggregator and the held-out share of datasets follow from it. `prompt-key-vectors.json`
holds examples; whoever changes the normal form raises the version and adds vectors.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

from shared.contracts.events.base import Message, prompt_text

PROMPT_KEY_VERSION = 1
"""Of the normal form and the hash over it."""


def prompt_key(tenant: str, messages: Sequence[Message]) -> str:
    """Hash of the tenant and the prompt's normal form, 32 hexadecimal digits."""
    return digest(tenant, normal_prompt(messages))


def normal_prompt(messages: Sequence[Message]) -> str:
    """The prompt as one text in normal form: equal for prompts that ask the same."""
    return normal_text(prompt_text(tuple(messages)))


def normal_text(text: str) -> str:
    """The text without its case, width (NFKC) and repeated white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def digest(*parts: str) -> str:
    """128-bit BLAKE2b of the NUL-joined parts in UTF-8, as hexadecimal digits."""
    return hashlib.blake2b("\x00".join(parts).encode(), digest_size=16).hexdigest()
