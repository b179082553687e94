"""Sums over the values of a row, in an order of their own: the same bits on any CPU, and vectors at a time.

    sum of x[j] * x[j]: value j goes to lane j % 8; then ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))

Invariant: IEEE products and sums in the order above, each rounded to the row's dtype; a compiler may put lanes into one
register, but may not reorder them. A chain of sums one after the other would wait four cycles for each value.
"""

from __future__ import annotations

from numba.extending import register_jitable

from windlass_rules.rule import Vector


@register_jitable(error_model="numpy")
def sum_of_squares(x: Vector, zero: float) -> float:
    """The sum of the squares of `x`; `zero` is 0 in its dtype."""
    a = b = c = d = e = f = g = h = zero
    whole = x.size & ~7
    for j in range(0, whole, 8):
        a = a + x[j] * x[j]
        b = b + x[j + 1] * x[j + 1]
        c = c + x[j + 2] * x[j + 2]
        d = d + x[j + 3] * x[j + 3]
        e = e + x[j + 4] * x[j + 4]
        f = f + x[j + 5] * x[j + 5]
        g = g + x[j + 6] * x[j + 6]
        h = h + x[j + 7] * x[j + 7]
    rest = x.size - whole
    if rest > 0:
        a = a + x[whole] * x[whole]
    if rest > 1:
        b = b + x[whole + 1] * x[whole + 1]
    if rest > 2:
        c = c + x[whole + 2] * x[whole + 2]
    if rest > 3:
        d = d + x[whole + 3] * x[whole + 3]
    if rest > 4:
        e = e + x[whole + 4] * x[whole + 4]
    if rest > 5:
        f = f + x[whole + 5] * x[whole + 5]
    if rest > 6:
        g = g + x[whole + 6] * x[whole + 6]
    return ((a + b) + (c + d)) + ((e + f) + (g + h))
