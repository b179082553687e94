"""The floor of an update rule: a Numba kernel that reads and writes the same streams and does no arithmetic.

Values are moved through an integer xor, which needs every stream in and leaves every stream out (a plain copy
would skip a read) and costs one packed instruction. `np.copyto` is no floor: it swung between 18 and 32 GB/s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba

from benchmarks.aligned import Vector, aligned_vector


@dataclass(frozen=True, slots=True)
class Streams:
    """The memory traffic of one rule."""

    rule: str
    arrays: int  # distinct vectors: weights, gradient, slots
    bytes_a_parameter: int
    kernel: Callable[..., None]


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


def compiled_streams() -> tuple[Streams, ...]:
    """SGD: read w, g, write w. Momentum: and read and write m. Adam: and read and write v. AMSGrad: and its top."""

    def compiled(kernel: Callable[..., None]) -> Callable[..., None]:
        fast: Callable[..., None] = numba.njit(error_model="numpy", nogil=True, boundscheck=False)(kernel)
        return fast

    return (
        Streams("sgd", 2, 12, compiled(_weights)),
        Streams("momentum", 3, 20, compiled(_weights_and_slot)),
        Streams("adam", 4, 28, compiled(_weights_and_two_slots)),
        Streams("amsgrad", 5, 36, compiled(_weights_and_three_slots)),
    )


class StreamPass:
    """One rule's floor over `parameters` parameters, ready to run."""

    def __init__(self, streams: Streams, parameters: int) -> None:
        self._kernel = streams.kernel
        self._vectors: list[Vector] = [aligned_vector(parameters) for _ in range(streams.arrays)]
        self._views = [vector.view("int32") for vector in self._vectors]
        self.exchange()

    def exchange(self) -> None:
        self._kernel(*self._views)
