"""Update rules on one core against a kernel that moves the same streams, and Adam against PyTorch's.

Rule and floor pass over the same vectors, of the memory that servers use: of two allocations one may lie better in
caches and pages, and a ratio of the two swung between 0.6 and 1.3. Vectors are filled anew before a round of either,
since what a floor leaves are no numbers.

The goals hold where the arrays exceed the caches, so that memory is the limit: inside them roots and
divisions are, and a kernel without arithmetic says nothing about that. Those ratios are printed all the same.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.aligned import Vector, aligned_vector
from benchmarks.case import Case, Extent
from benchmarks.contender import Field
from benchmarks.contest import SAME_STREAMS, Goal, contest
from benchmarks.load import Load, Timing, one_tensor
from benchmarks.peers.fleets import open_torch_adam
from benchmarks.processor_time import processor_seconds_alone
from benchmarks.report import Row
from benchmarks.served import measure
from benchmarks.streams import Streams, compiled_streams
from windlass_proto import memory
from windlass_proto.rule_specs import (
    FTML,
    FTRL,
    LAMB,
    LARS,
    SGD,
    AdaBelief,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lion,
    NAdam,
    RMSprop,
    RuleSpec,
    Signum,
    Sum,
)
from windlass_rules import norms, registry

FLOAT32_BYTES = 4
STEP = 1000
BEYOND_CACHES_BYTES = 64 << 20  # one stream
RULES: tuple[tuple[str, RuleSpec], ...] = (
    ("sgd", SGD(lr=1e-3)),
    ("momentum", SGD(lr=1e-3, momentum=0.9)),
    ("nesterov", SGD(lr=1e-3, momentum=0.9, nesterov=True)),
    ("sum", Sum()),
    ("signsgd", Signum(momentum=0.0)),
    ("signum", Signum()),
    ("lion", Lion()),
    ("adagrad", Adagrad(lr=1e-3)),
    ("adadelta", Adadelta()),
    ("rmsprop", RMSprop()),
    ("rmsprop momentum", RMSprop(momentum=0.9)),
    ("rmsprop centered", RMSprop(centered=True)),
    ("rmsprop centered momentum", RMSprop(momentum=0.9, centered=True)),
    ("ftrl", FTRL()),
    ("adam", Adam(lr=1e-3)),
    ("adamw", AdamW(lr=1e-3)),
    ("amsgrad", Adam(lr=1e-3, amsgrad=True)),
    ("nadam", NAdam()),
    ("adamax", Adamax()),
    ("adabelief", AdaBelief()),
    ("ftml", FTML()),
    ("lamb", LAMB()),
    ("lars", LARS()),
)
GOALS = (Goal("windlass", "same streams", 0.9), Goal("windlass adam", "torch", 1.1))


class Kernel:
    """Something that passes over `parameters` parameters in this process, as a contender."""

    workers = 1

    def __init__(
        self,
        name: str,
        passing: Callable[[int], Callable[[], None]],
        refill: Callable[[int], None] = lambda _parameters: None,
    ) -> None:
        self.name = name
        self._passing = passing
        self._refill = refill
        self._passes: dict[str, Callable[[], None]] = {}

    def prepare(self, load: Load) -> None:
        self._passes[load.key] = self._passing(load.payload_bytes // FLOAT32_BYTES)
        self.measure(load, 2)

    def measure(self, load: Load, count: int) -> Timing:
        self._refill(load.payload_bytes // FLOAT32_BYTES)
        return measure(self._passes[load.key], count)

    def drop(self, load: Load) -> None:
        del self._passes[load.key]

    def processor_seconds(self) -> float:
        return processor_seconds_alone([os.getpid()])

    def close(self) -> None:
        self._passes.clear()


class SharedVectors:
    """Weights, a gradient and slots, the same for whoever passes over them; those of one size at a time."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._vectors: list[Vector] = []

    def of(self, parameters: int) -> list[Vector]:
        if not self._vectors or self._vectors[0].size != parameters:
            self._vectors = [memory.aligned_zeros(parameters, np.float32) for _ in range(self._count)]
            self.refill(parameters)
        return self._vectors

    def refill(self, parameters: int) -> None:
        for vector in self.of(parameters):
            vector.fill(0.5)


def update_pass(spec: RuleSpec, shared: SharedVectors) -> Callable[[int], Callable[[], None]]:
    """What a server runs when a contribution has arrived, without `out`."""

    def of(parameters: int) -> Callable[[], None]:
        built = registry.build(spec, "float32")
        weights, gradient, *rest = shared.of(parameters)
        slots = tuple(rest)
        scalars = built.scalars(spec, STEP)
        if built.measure is None:
            return lambda: built.update(weights, slots, 0, gradient, 1.0, scalars)
        measure, lanes = built.measure, np.zeros(2 * norms.LANES)

        def both() -> None:
            measure(weights, slots, 0, gradient, 1.0, scalars, lanes)
            built.update(weights, slots, 0, gradient, 1.0, scalars)

        return both

    return of


def squares_pass(parameters: int) -> Callable[[], None]:
    """The norm of a gradient, as clipping takes it."""
    squares = norms.build_squares(np.dtype(np.float32))
    gradient, lanes = aligned_vector(parameters), np.zeros(norms.LANES)
    return lambda: squares(gradient, 1.0, lanes)


def dot_pass(parameters: int) -> Callable[[], None]:
    """The same by NumPy's BLAS, in float32."""
    gradient = aligned_vector(parameters)

    def dot() -> None:
        np.dot(gradient, gradient)

    return dot


def stream_pass(streams: Streams, shared: SharedVectors) -> Callable[[int], Callable[[], None]]:
    return lambda parameters: streams.pass_over(shared.of(parameters))


def kernels(extent: Extent) -> Iterator[Row]:
    for rule, spec in RULES:
        known = compiled_streams()
        slots = len(registry.build(spec, "float32").slots)
        streams = known[rule] if rule in known else known[str(slots)]
        shared = SharedVectors(streams.arrays)
        passes = {
            SAME_STREAMS: stream_pass(streams, shared),
            f"windlass {rule}": update_pass(spec, shared),
        }
        with Field() as field:
            for name, passing in passes.items():
                field.enter(name, functools.partial(Kernel, name, passing, shared.refill))
            if rule == "adam":
                field.enter("torch fused adam", open_torch_adam)
            for size in extent.sizes(1 << 20, 4 << 20, 64 << 20):
                parameters = size // FLOAT32_BYTES
                setting = f"{rule}, {parameters / 2**20:g} Mi parameters"
                bytes_moved = parameters * streams.bytes_a_parameter
                goals = GOALS if size >= BEYOND_CACHES_BYTES else ()
                load = one_tensor(size)
                yield from contest("kernels", setting, field, load, extent.pace, goals, bytes_moved)


def gradient_norms(extent: Extent) -> Iterator[Row]:
    with Field() as field:
        for contender in (Kernel("numpy dot", dot_pass), Kernel("windlass squares", squares_pass)):
            field.enter(contender.name, lambda contender=contender: contender)  # type: ignore[misc]
        for size in extent.sizes(1 << 20, 4 << 20, 64 << 20):
            setting = f"norm of a gradient, {size / FLOAT32_BYTES / 2**20:g} Mi parameters"
            yield from contest("kernels", setting, field, one_tensor(size), extent.pace, (), size)


CASES = (
    Case("kernels", "each update rule on one core against its same-streams floor", kernels),
    Case("norms", "the norm of a gradient on one core against NumPy's dot product", gradient_norms),
)
