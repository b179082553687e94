"""Where a dense group's weights and slots lie, and what is done to them there.

Two kinds: `HostMemory` here, NumPy arrays under compiled kernels; and `device_memory.DeviceMemory`. A group decides
what is done to which run of which block, in which order; its memory does it. Work on a device may be queued, so what a
group lets others see or use again waits for `finish`.

Invariant: work is done in the order in which it was asked for. The caller holds the lock of the share whose vectors it
names, from the first call to `finish`; `receive` needs no lock.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from windlass_proto import memory
from windlass_proto.layout import Block
from windlass_proto.memory import Buffer
from windlass_rules import RuleKernels, norms, reduce
from windlass_server.share_events import Source

if TYPE_CHECKING:
    from windlass_server.dense_rows import NamedRows

Vector = npt.NDArray[np.floating]
Bytes = npt.NDArray[np.uint8]

# A sum over workers is made in runs that stay in the core's cache: 16 Ki float32 are 64 KiB.
SUM_RUN_ELEMENTS = 16 * 1024


class Values(NamedTuple):
    """Values of one entry where they arrived: in a pooled buffer, or (buffer None) in a worker's shared memory.

    `named`: of a lazy tensor the rows whose pieces they are; None: they are whole segments. `read`: of a gradient, the
    number of the read whose weights it was made from, as the answer said it (`read_counts`); 0: not said. `replaced`:
    so many of them were not finite, and are what the policy made of them.
    """

    array: Vector
    buffer: Buffer | None
    named: NamedRows | None = None
    read: int = 0
    replaced: int = 0


class Gradient(NamedTuple):
    """What an entry's values are for. `extends`: it belongs to an open step, so there must be room for them."""

    op: int
    block: Block
    seg_begin: int
    seg_end: int
    rank: int
    extends: bool


class Measured(NamedTuple):
    """A segment whose norms are taken, of the gradient that `update` would be given with the same arguments.

    scalars: of the step, where the rule's own phase (`Norm.TRUST`) is meant; None: the gradient alone.
    """

    w: Vector
    slots: tuple[Vector, ...]
    begin: int
    elements: int
    sources: tuple[Source, ...]
    moved: int
    divisor: float
    scalars: Vector | None


class DenseMemory(Protocol):
    """What a dense group asks of the memory it lies in. Vectors are this memory's own, or slices of them.

    measured_max: how many segments are best measured at a time before they are updated.
    """

    measured_max: int

    def zeros(self, elements: int) -> Vector:
        """A new vector."""

    def receive(self, values: Values) -> tuple[Values, bool]:
        """Values have arrived: where they wait until they are applied, and whether all are finite."""

    def receive_encoded(self, raw: Bytes, what: Gradient) -> tuple[Values, bool] | None:
        """What `receive` says of values that arrived encoded, decoded here; None: the host is to decode them."""

    def receive_rows(self, named: NamedRows, pieces: Vector) -> tuple[Values, bool] | None:
        """The gradient of a segment that these pieces of its rows stand for, as `receive`; None: the host makes it."""

    def update(
        self,
        w: Vector,
        slots: tuple[Vector, ...],
        begin: int,
        count: int,
        sources: tuple[Source, ...],
        moved: int,
        divisor: float,
        scalars: Vector,
        out: Vector | None,
    ) -> None:
        """Run the rule on w[begin : begin + count] with the weighted sum of `sources` over `divisor`.

        Args:
            moved: how far this run lies behind the beginning of what the sources say they begin with.
            out: host memory that the new weights are copied to as well.
        """

    def measure(self, runs: Sequence[Measured]) -> list[tuple[float, ...]]:
        """Sums of squares of each segment, as one phase of the rule takes them."""

    def copy(self, vector: Vector, to: Vector) -> None:
        """Copy to another vector of this memory."""

    def read(self, vector: Vector, out: Vector) -> None:
        """Copy to host memory of the same size."""

    def read_encoded(self, vector: Vector, out: Bytes, block: Block, seg_begin: int, seg_end: int) -> bool:
        """Copy segments of `block` to host memory as they travel to workers; False: encode them on the host."""

    def read_rows(self, vector: Vector, named: NamedRows, out: Vector) -> None:
        """Copy the rows that are named, of the segment `vector`, to host memory."""

    def write(self, vector: Vector, values: Vector) -> None:
        """Store what was received, or other host memory."""

    def exchange(self, vector: Vector, values: Vector) -> Vector:
        """What holds `values` from now on in place of `vector`. They are host memory that the caller gives away."""

    def fill(self, vector: Vector, value: float) -> None:
        """Store one value everywhere."""

    def finish(self) -> None:
        """Return when all that this thread asked for is done."""


class HostMemory:
    """NumPy arrays; every call has done its work when it returns."""

    measured_max = 1  # so that a segment is still in the cache when it is updated

    def __init__(self, kernels: RuleKernels) -> None:
        self.kernels = kernels
        self.reductions = reduce.build(kernels.dtype)
        self._scratch = threading.local()

    def zeros(self, elements: int) -> Vector:
        return memory.aligned_zeros(elements, self.kernels.dtype)

    def receive(self, values: Values) -> tuple[Values, bool]:
        return values, self.reductions.all_finite(values.array)

    def receive_encoded(self, raw: Bytes, what: Gradient) -> None:
        """`GroupWire` decodes them."""

    def receive_rows(self, named: NamedRows, pieces: Vector) -> None:
        """`dense_rows` makes it."""

    def update(
        self,
        w: Vector,
        slots: tuple[Vector, ...],
        begin: int,
        count: int,
        sources: tuple[Source, ...],
        moved: int,
        divisor: float,
        scalars: Vector,
        out: Vector | None,
    ) -> None:
        if len(sources) == 1:
            source = sources[0]
            at = source.begin + moved
            gradient = source.buffer.array[at : at + count]
            scale = source.weight / divisor
            if out is None:
                self.kernels.update(w, slots, begin, gradient, scale, scalars)
            else:
                self.kernels.update_out(w, slots, begin, gradient, scale, scalars, out)
            return
        scale = 1.0 / divisor
        scratch = self._scratch_run()
        for done in range(0, count, SUM_RUN_ELEMENTS):
            size = min(SUM_RUN_ELEMENTS, count - done)
            total = self._sum(sources, moved + done, scratch[:size])
            if out is None:
                self.kernels.update(w, slots, begin + done, total, scale, scalars)
            else:
                self.kernels.update_out(w, slots, begin + done, total, scale, scalars, out[done : done + size])

    def copy(self, vector: Vector, to: Vector) -> None:
        np.copyto(to, vector)

    def measure(self, runs: Sequence[Measured]) -> list[tuple[float, ...]]:
        return [self._measure(run) for run in runs]

    def _measure(self, run: Measured) -> tuple[float, ...]:
        lanes = np.zeros(norms.LANES if run.scalars is None else 2 * norms.LANES)
        if len(run.sources) == 1:
            (source,) = run.sources
            at = source.begin + run.moved
            gradient = source.buffer.array[at : at + run.elements]
            self._measure_run(run, run.begin, gradient, source.weight / run.divisor, lanes)
            return norms.folded(lanes)
        scratch = self._scratch_run()
        for done in range(0, run.elements, SUM_RUN_ELEMENTS):  # a multiple of norms.CHUNK
            total = self._sum(run.sources, run.moved + done, scratch[: min(SUM_RUN_ELEMENTS, run.elements - done)])
            self._measure_run(run, run.begin + done, total, 1.0 / run.divisor, lanes)
        return norms.folded(lanes)

    def read(self, vector: Vector, out: Vector) -> None:
        np.copyto(out, vector)

    def read_encoded(self, vector: Vector, out: Bytes, block: Block, seg_begin: int, seg_end: int) -> bool:
        return False

    def read_rows(self, vector: Vector, named: NamedRows, out: Vector) -> None:
        named.read(vector, out)

    def write(self, vector: Vector, values: Vector) -> None:
        np.copyto(vector, values)

    def exchange(self, vector: Vector, values: Vector) -> Vector:
        return values

    def fill(self, vector: Vector, value: float) -> None:
        vector.fill(value)

    def finish(self) -> None:
        """Nothing is queued."""

    def _measure_run(self, run: Measured, begin: int, gradient: Vector, scale: float, lanes: norms.Lanes) -> None:
        if run.scalars is None:
            assert self.kernels.squares is not None
            self.kernels.squares(gradient, scale, lanes)
        else:
            assert self.kernels.measure is not None
            self.kernels.measure(run.w, run.slots, begin, gradient, scale, run.scalars, lanes)

    def _sum(self, sources: tuple[Source, ...], moved: int, total: Vector) -> Vector:
        """total = sum of weight * source, in the order given."""
        size = total.size
        for i, source in enumerate(sources):
            at = source.begin + moved
            run = source.buffer.array[at : at + size]
            if i == 0:
                self.reductions.scaled_copy(total, run, source.weight)
            else:
                self.reductions.scaled_add(total, run, source.weight)
        return total

    def _scratch_run(self) -> Vector:
        scratch: Any = getattr(self._scratch, "run", None)
        if scratch is None:
            scratch = self._scratch.run = memory.aligned_zeros(SUM_RUN_ELEMENTS, self.kernels.dtype)
        run: Vector = scratch
        return run
