"""Powers and exponentials for the numbers of a step, in IEEE products and sums alone.

Why not `**` and `math.exp`: those are libm's, whose last bit differs between systems, and servers of one
cluster must compute the same step. Results are within a few roundings per product of the true value.
"""

from __future__ import annotations

import functools
from typing import Final

_HALVINGS_MAX: Final = 64
_TERMS: Final = 16  # of a series in a number up to 1/2: the next is below 2^-60


@functools.lru_cache(maxsize=256)
def power(factor: float, exponent: int) -> float:
    """factor ** exponent by squaring, for an exponent >= 0. Cached: every tensor of a step asks for the same."""
    product = 1.0
    while exponent:
        if exponent & 1:
            product *= factor
        factor *= factor
        exponent >>= 1
    return product


@functools.lru_cache(maxsize=256)
def decay(rate: float) -> float:
    """exp(-rate) for a rate >= 0: its series at a halved rate of at most 1/2, squared back."""
    halvings = 0
    while rate > 0.5 and halvings < _HALVINGS_MAX:
        rate *= 0.5
        halvings += 1
    if rate > 0.5:
        return 0.0
    total = 1.0
    for term in range(_TERMS, 0, -1):
        total = 1.0 - rate * total / term
    return power(total, 1 << halvings)
