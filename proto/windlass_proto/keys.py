"""Keys: u64 numbers that say where a block or a row lives.

Invariant: every function is pure and the same on every machine; a key never changes once its table exists.

The key space is cut into `vshards` equal parts (a power of two); the top bits of a key name its part. The blocks of a
dense group are spread evenly over the space from a start that hashes the table: any run of 1/n of the space then holds
n-th of the blocks, give or take one. Fibonacci hashing (multiples of the golden ratio) was measured first: over 2 to 8
servers and 3 to 60 blocks its fullest server held up to 1.48 times the mean; even spacing holds 4/3, and a group's
block count is fixed.
"""

from __future__ import annotations

from typing import Final

MASK64: Final = (1 << 64) - 1
VSHARDS_DEFAULT: Final = 256


def mix64(x: int) -> int:
    """Mix the 64 bits of `x` (the finaliser of SplitMix64, Steele et al., OOPSLA 2014, figure 17)."""
    x &= MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def block_key(table_id: int, block: int, blocks: int) -> int:
    """Key of block number `block` of the `blocks` of dense table `table_id`."""
    return (mix64(table_id) + (block << 64) // blocks) & MASK64


def vshard_of(key: int, vshards: int) -> int:
    """The vshard, 0 <= result < `vshards` (a power of two), that holds `key`."""
    return key >> (64 - vshards.bit_length() + 1) if vshards > 1 else 0


def vshard_range(vshard: int, vshards: int) -> tuple[int, int]:
    """The half-open range of keys `[begin, end)` of one vshard; the last one's end is 2**64."""
    width = (1 << 64) // vshards
    return vshard * width, (vshard + 1) * width
