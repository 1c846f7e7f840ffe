"""Partition of a key: murmur2, as Kafka's Java client and aiokafka compute it."""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack, unpack, unpack_from

_SEED = 0x9747B28C
_FACTOR = 0x5BD1E995
_WORD = 0xFFFFFFFF
_POSITIVE = 0x7FFFFFFF
MANY = 8
"""Keys from which it is quicker to take them together."""


def partition_of(key: bytes, count: int) -> int:
    """The partition, of `count`, in which all records with this key lie."""
    return (murmur2(key) & _POSITIVE) % count


def partitions_of(keys: Sequence[bytes], count: int) -> list[int]:
    """The partition of each key. Many keys of one length, as ids are, take a sixth of the time."""
    size = len(keys[0]) if keys else 0
    if len(keys) < MANY or size % 4 or any(len(key) != size for key in keys):
        return [partition_of(key, count) for key in keys]
    return [(value & _POSITIVE) % count for value in _murmur2_of_many(keys, size)]


def _murmur2_of_many(keys: Sequence[bytes], size: int) -> tuple[int, ...]:
    """`murmur2` of keys of `size` bytes, a multiple of 4.

    Each key has a lane of 64 bits in one large integer, so an operation is done for all keys at once:
    a product of two 32-bit numbers stays in its lane, and the mask takes its upper half away, with
    what a shift brought over from the next lane.
    """
    lanes, words = f"<{len(keys)}Q", size // 4
    ones = int.from_bytes(pack(lanes, *(1,) * len(keys)), "little")
    mask = ones * _WORD
    every = unpack(f"<{len(keys) * words}I", b"".join(keys))
    value = ones * (_SEED ^ size)
    for place in range(words):
        word = int.from_bytes(pack(lanes, *every[place::words]), "little")
        mixed = (word * _FACTOR) & mask
        mixed ^= (mixed >> 24) & mask
        value = ((value * _FACTOR) & mask) ^ ((mixed * _FACTOR) & mask)
    value ^= (value >> 13) & mask
    value = (value * _FACTOR) & mask
    value ^= (value >> 15) & mask
    return unpack(lanes, value.to_bytes(8 * len(keys), "little"))


def murmur2(key: bytes) -> int:
    """MurmurHash2 in 32 bits (Appleby, 2008) with the seed of Kafka's Java client, as unsigned.

    aiokafka's own goes byte by byte and takes twice as long, for every record that is sent.
    """
    size = len(key)
    words = size // 4
    value = _SEED ^ size
    for word in unpack_from(f"<{words}I", key):
        mixed = (word * _FACTOR) & _WORD
        value = ((value * _FACTOR) & _WORD) ^ (((mixed ^ (mixed >> 24)) * _FACTOR) & _WORD)
    if size % 4:
        rest = int.from_bytes(key[4 * words :], "little")
        value = ((value ^ rest) * _FACTOR) & _WORD
    value = ((value ^ (value >> 13)) * _FACTOR) & _WORD
    return value ^ (value >> 15)
