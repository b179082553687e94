"""Trigonometric and hyperbolic ops, and their inverses, as their scalar code says."""

from __future__ import annotations

from windlass_graph import functions as F
from windlass_graph.ops.elementwise import float_of, scalar_entry

scalar_entry("tan", "x", (lambda b: b.g * (F.square(b.out) + 1),), float_of)
scalar_entry("arcsin", "x", (lambda b: b.g * F.rsqrt(1 - F.square(b.x)),), float_of)
scalar_entry("arccos", "x", (lambda b: -(b.g * F.rsqrt(1 - F.square(b.x))),), float_of)
scalar_entry("arctan", "x", (lambda b: b.g / (F.square(b.x) + 1),), float_of)
scalar_entry("sinh", "x", (lambda b: b.g * F.cosh(b.x),), float_of)
scalar_entry("cosh", "x", (lambda b: b.g * F.sinh(b.x),), float_of)
scalar_entry("hypot", "x y", (lambda b: b.g * b.x / b.out, lambda b: b.g * b.y / b.out), float_of, doc="sqrt(x² + y²)")
scalar_entry(
    "arctan2",
    "x y",
    (
        lambda b: b.g * b.y / (F.square(b.x) + F.square(b.y)),
        lambda b: -(b.g * b.x / (F.square(b.x) + F.square(b.y))),
    ),
    float_of,
    doc="the angle of the point with ordinate x and abscissa y",
)
