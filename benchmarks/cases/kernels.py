"""Update rules on one core against a kernel that moves the same streams, and Adam against PyTorch's.

The goals hold where the arrays exceed the caches, so that memory is the limit: inside them roots and
divisions are, and a kernel without arithmetic says nothing about that. Those ratios are printed all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.aligned import aligned_vector
from benchmarks.case import Case, Extent
from benchmarks.contender import Field
from benchmarks.contest import SAME_STREAMS, Goal, contest
from benchmarks.load import Load, Timing, one_tensor
from benchmarks.peers.fleets import open_torch_adam
from benchmarks.processor_time import processor_seconds_alone
from benchmarks.report import Row
from benchmarks.served import measure
from benchmarks.streams import StreamPass, Streams, compiled_streams
from windlass_proto.rule_specs import (
    FTML,
    FTRL,
    LAMB,
    LARS,
    SGD,
    TRUST_RULES,
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
"""LAMB and LARS pass over memory twice, so their share of a floor that passes once is no goal."""
GOALS = (Goal("windlass", "same streams", 0.9), Goal("windlass adam", "torch", 1.1))


class Kernel:
    """Something that passes over `parameters` parameters in this process, as a contender."""

    workers = 1

    def __init__(self, name: str, passing: Callable[[int], Callable[[], None]]) -> None:
        self.name = name
        self._passing = passing
        self._passes: dict[str, Callable[[], None]] = {}

    def prepare(self, load: Load) -> None:
        self._passes[load.key] = self._passing(load.payload_bytes // FLOAT32_BYTES)
        self.measure(load, 2)

    def measure(self, load: Load, count: int) -> Timing:
        return measure(self._passes[load.key], count)

    def drop(self, load: Load) -> None:
        del self._passes[load.key]

    def processor_seconds(self) -> float:
        return processor_seconds_alone([os.getpid()])

    def close(self) -> None:
        self._passes.clear()


def update_pass(spec: RuleSpec) -> Callable[[int], Callable[[], None]]:
    """What a server runs when a contribution has arrived, without `out`."""

    def of(parameters: int) -> Callable[[], None]:
        built = registry.build(spec, "float32")
        weights, gradient = aligned_vector(parameters), aligned_vector(parameters)
        slots = tuple(aligned_vector(parameters) for _ in built.slots)
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


def stream_pass(streams: Streams) -> Callable[[int], Callable[[], None]]:
    def of(parameters: int) -> Callable[[], None]:
        return StreamPass(streams, parameters).exchange

    return of


def kernels(extent: Extent) -> Iterator[Row]:
    by_slots = {streams.arrays - 2: streams for streams in compiled_streams()}
    for rule, spec in RULES:
        streams = by_slots[len(registry.build(spec, "float32").slots)]
        with Field() as field:
            for contender in (
                Kernel(SAME_STREAMS, stream_pass(streams)),
                Kernel(f"windlass {rule}", update_pass(spec)),
            ):
                field.enter(contender.name, lambda contender=contender: contender)  # type: ignore[misc]
            if rule == "adam":
                field.enter("torch fused adam", open_torch_adam)
            for size in extent.sizes(1 << 20, 4 << 20, 64 << 20):
                parameters = size // FLOAT32_BYTES
                setting = f"{rule}, {parameters / 2**20:g} Mi parameters"
                bytes_moved = parameters * streams.bytes_a_parameter
                goals = GOALS if size >= BEYOND_CACHES_BYTES and type(spec) not in TRUST_RULES else ()
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
