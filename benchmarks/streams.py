"""The floor of an update rule: a Numba kernel that reads and writes the same streams and does no arithmetic.

Values are moved through an integer xor, which needs every stream in and leaves every stream out (a plain copy
would skip a read) and costs one packed instruction. `np.copyto` is no floor: it swung between 18 and 32 GB/s.

LAMB and LARS pass twice, so their floors do: what measures writes no weights, what applies reads what was measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba

from benchmarks.aligned import Vector


@dataclass(frozen=True, slots=True)
class Streams:
    """The memory traffic of one rule: each of `passes` takes all vectors as integers: weights, gradient, slots."""

    rule: str
    arrays: int  # distinct vectors
    bytes_a_parameter: int
    passes: tuple[Callable[..., object], ...]

    def pass_over(self, vectors: Sequence[Vector]) -> Callable[[], None]:
        """One step's traffic over `vectors`; compiled by a first run of it."""
        views = [vector.view("int32") for vector in vectors[: self.arrays]]

        def step() -> None:
            for kernel in self.passes:
                kernel(*views)

        step()
        return step


def _weights(w: Any, g: Any) -> None:
    for i in range(w.size):
        w[i] ^= g[i]


def _weights_and_slot(w: Any, g: Any, m: Any) -> None:
    for i in range(w.size):
        m[i] ^= g[i]
        w[i] ^= m[i]


def _weights_and_two_slots(w: Any, g: Any, m: Any, v: Any) -> None:
    for i in range(w.size):
        m[i] ^= g[i]
        v[i] ^= g[i]
        w[i] ^= m[i]


def _weights_and_three_slots(w: Any, g: Any, m: Any, v: Any, top: Any) -> None:
    for i in range(w.size):
        m[i] ^= g[i]
        v[i] ^= g[i]
        top[i] ^= g[i]
        w[i] ^= m[i]


def _measure_lamb(w: Any, g: Any, m: Any, v: Any) -> None:
    for i in range(w.size):
        m[i] ^= g[i] ^ w[i]
        v[i] ^= g[i]


def _apply_lamb(w: Any, g: Any, m: Any, v: Any) -> None:  # noqa: ARG001 - every pass is called alike
    for i in range(w.size):
        w[i] ^= m[i] ^ v[i]


def _measure_lars(w: Any, g: Any, m: Any) -> Any:  # noqa: ARG001 - every pass is called alike
    total = w[0]
    for i in range(w.size):
        total ^= w[i] ^ g[i]
    return total


@functools.cache
def compiled_streams() -> dict[str, Streams]:
    """By rule, and the four of those that pass once by how many slots they have: "0" to "3"."""

    def compiled(kernel: Callable[..., object]) -> Callable[..., object]:
        fast: Callable[..., object] = numba.njit(error_model="numpy", nogil=True, boundscheck=False)(kernel)
        return fast

    once = compiled(_weights_and_slot)
    known = (
        Streams("0", 2, 12, (compiled(_weights),)),
        Streams("1", 3, 20, (once,)),
        Streams("2", 4, 28, (compiled(_weights_and_two_slots),)),
        Streams("3", 5, 36, (compiled(_weights_and_three_slots),)),
        Streams("lamb", 4, 40, (compiled(_measure_lamb), compiled(_apply_lamb))),
        Streams("lars", 3, 28, (compiled(_measure_lars), once)),
    )
    return {streams.rule: streams for streams in known}
