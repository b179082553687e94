"""A dense group's weights and slots in the memory of a device.

What arrives is copied to the device as it arrives, where the next of its kind is still on the wire: encoded, if it
travelled so, and decoded and looked through there. It waits in a pool of device memory. When that is lent out, values
wait in host memory as they do without a device, and are copied when they are applied. All updates of a batch of effects
are one launch, unless two touch the same elements; what leaves is copied from the device in the same queue.

Invariant: `finish` comes before anything that this memory was told to do is shown or its buffers are used again
(`dense_memory`), so nothing outlives its lane's queue. A thread has one lane, and whatever it queued is behind what it
queued before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import UnavailableError
from windlass_proto.frames import aligned
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import Block
from windlass_proto.memory import Buffer, BufferPool
from windlass_rules import RuleKernels, norms, reduce
from windlass_rules import device as devices
from windlass_rules.cuda_norms import lane_sums_source, lanes_of, squares_source
from windlass_rules.cuda_rows import gather_source, scatter_source
from windlass_rules.cuda_source import CudaSource, fill_source, finite_source
from windlass_rules.device import Device, DeviceVector, Lane
from windlass_rules.registry import build_cuda, build_cuda_measure
from windlass_server.dense_memory import Bytes, Gradient, Measured, Values, Vector
from windlass_server.dense_rows import NamedRows
from windlass_server.device_wire import DeviceWire
from windlass_server.share_events import Source

# Eighths of a device's memory. The last one is for programs, lists of runs, and what is lent beyond the pool.
PARAMETER_EIGHTHS: Final = 5
GRADIENT_EIGHTHS: Final = 2


class ParameterDevice:
    """A server's device: memory for its groups, and a pool that lends to what arrives for any of them."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.in_words = f"{device.name} {device.model}"
        self.parameter_bytes_max = device.memory_bytes // 8 * PARAMETER_EIGHTHS
        self.gradients = BufferPool(device.memory_bytes // 8 * GRADIENT_EIGHTHS, self._fresh)

    def memory_for(self, spec: GroupSpec, kernels: RuleKernels) -> DeviceMemory:
        """The memory of a group; compiles its programs.

        Raises:
            UsageError: the rule has no kernel for a device.
        """
        program, measure = build_cuda(spec.rule, kernels.dtype), build_cuda_measure(spec.rule, kernels.dtype)
        return DeviceMemory(self.device, kernels, program, measure, self.gradients, DeviceWire(spec))

    def _fresh(self, nbytes: int) -> Any:
        return devices.empty(self.device, nbytes, np.dtype(np.uint8))


class _Queue:
    """What one thread has asked for since its last `finish`, beside what is on its lane already."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.runs: list[tuple[Any, ...]] = []
        self.sources: list[tuple[int, float]] = []
        self.outs: list[tuple[int, Vector]] = []  # to be copied from the weights after the launch
        self.spans: list[tuple[int, int]] = []  # addresses of the weights that `runs` change
        self.lent: list[Buffer] = []
        self.numbers: list[npt.NDArray[np.uint64]] = []  # being copied to the device
        self.found: tuple[DeviceVector, npt.NDArray[np.uint32]] | None = None


class DeviceMemory:
    """Vectors of one group on `device`.

    Args:
        kernels: the group's rule; its numbers and slots are the device's too.
        program: the CUDA twin of its kernel.
        measure: that of what it measures before, if it does.
        gradients: device memory that is lent to what arrives.
        wire: what decodes and encodes there.
    """

    measured_max = 1 << 16

    def __init__(
        self,
        device: Device,
        kernels: RuleKernels,
        program: CudaSource,
        measure: CudaSource | None,
        gradients: BufferPool,
        wire: DeviceWire,
    ) -> None:
        self.device = device
        self.kernels = kernels
        self.program = program
        self.gradients = gradients
        self.wire = wire
        self.reductions = reduce.build(kernels.dtype)
        self._fill = fill_source(kernels.dtype)
        self._finite = finite_source(kernels.dtype)
        self._squares = squares_source(kernels.dtype)
        self._gather = gather_source(kernels.dtype)
        self._scatter = scatter_source(kernels.dtype)
        self._measure = measure
        self._lane_sums = lane_sums_source()
        self._queues = threading.local()
        own = (self._fill, self._finite, self._gather, self._scatter, self._squares, self._lane_sums)
        for needed in (program, measure, *own, *wire.programs):
            if needed is not None:
                device.prepare(needed)

    def zeros(self, elements: int) -> Any:
        vector = devices.empty(self.device, elements, self.kernels.dtype)
        self.fill(vector, 0.0)
        return vector

    def receive(self, values: Values) -> tuple[Values, bool]:
        """Copy to the device, where there is room; the host's buffer is given back then."""
        array = values.array
        try:
            held = self.gradients.take(array.nbytes)
        except UnavailableError:
            return values, self.reductions.all_finite(array)
        there: Any = held.array.view(array.dtype)
        try:
            finite = self._receive(array, there)
        except BaseException:
            held.release()
            raise
        if values.buffer is not None:
            values.buffer.release()
        return values._replace(array=there, buffer=held), finite

    def receive_encoded(self, raw: Bytes, what: Gradient) -> tuple[Values, bool] | None:
        """What cannot be read is not told here: the host finds it again and says it in words."""
        if not self.wire.decodes(what.op):
            return None
        begin, end = what.block.span(what.seg_begin, what.seg_end)

        def decode(lane: Lane, staged: int, there: int, flags: int) -> None:
            lane.upload(staged, raw)
            self.wire.decode(lane, staged, there, flags, what.block, what.seg_begin, what.seg_end)

        return self._made(end - begin, raw.nbytes, decode)

    def receive_rows(self, named: NamedRows, pieces: Vector) -> tuple[Values, bool] | None:
        """The rows alone are copied to the device, where all else is 0."""
        numbers, runs = _runs_of(named, self.kernels.dtype.itemsize)

        def spread(lane: Lane, staged: int, there: int, flags: int) -> None:
            lane.launch(devices.launch_of(self._fill, [(named.segment_elements, there, 0.0)], []))
            if not pieces.size:
                return
            packed = staged + aligned(numbers.nbytes)
            lane.upload(staged, numbers)
            lane.upload(packed, pieces)
            lane.launch(devices.launch_of(self._finite, [(pieces.size, packed, flags)], []))
            lane.launch(devices.launch_of(self._scatter, _placed(runs, staged, there, packed), []))

        return self._made(named.segment_elements, aligned(numbers.nbytes) + pieces.nbytes, spread)

    def _made(
        self, elements: int, staged_bytes: int, put: Callable[[Lane, int, int, int], None]
    ) -> tuple[Values, bool] | None:
        """What `put` makes on the device of what it copies to a place there, and is it finite; None if it cannot be.

        Args:
            put: is given its lane, that place, where the values go, and the two flags.
        """
        dtype, queue = self.kernels.dtype, self._queue()
        try:
            held = self.gradients.take(elements * dtype.itemsize)
        except UnavailableError:
            return None
        there: Any = held.array.view(dtype)
        staged = self.gradients.take(staged_bytes, beyond=True)
        at: Any = staged.array
        try:
            not_finite, fault = self._looked(queue, lambda flags: put(queue.lane, at.address, there.address, flags))
        except BaseException:
            held.release()
            raise
        finally:
            staged.release()
        if fault:
            held.release()
            return None
        return Values(there, held), not not_finite

    def _receive(self, array: Vector, there: DeviceVector) -> bool:
        queue = self._queue()

        def look(flags: int) -> None:
            queue.lane.upload(there.address, array)
            if array.size:
                queue.lane.launch(devices.launch_of(self._finite, [(array.size, there.address, flags)], []))

        not_finite, _ = self._looked(queue, look)
        return not not_finite

    def _looked(self, queue: _Queue, put: Callable[[int], None]) -> list[bool]:
        """The two flags that are raised by what `put` puts on the lane, which is waited for."""
        if queue.found is None:
            queue.found = devices.empty(self.device, 2, np.dtype(np.uint32)), np.zeros(2, np.uint32)
        flags, seen = queue.found
        seen[:] = 0
        queue.lane.upload(flags.address, seen)
        put(flags.address)
        queue.lane.download(flags.address, seen)
        queue.lane.finish()
        return [bool(flag) for flag in seen]

    def update(
        self,
        w: Any,
        slots: tuple[Any, ...],
        begin: int,
        count: int,
        sources: tuple[Source, ...],
        moved: int,
        divisor: float,
        scalars: Vector,
        out: Vector | None,
    ) -> None:
        queue = self._queue()
        at, nbytes = w.address + begin * w.itemsize, count * w.itemsize
        if any(at < end and first < at + nbytes for first, end in queue.spans):
            self._launch(queue)
        first, scale = len(queue.sources), _scale(sources, divisor)
        for source in sources:
            gradient = self._there(queue, source.buffer.array, source.begin + moved, count)
            queue.sources.append((gradient, source.weight))
        moving = [slot.address + begin * slot.itemsize for slot in slots]
        queue.runs.append((count, at, *moving, first, len(sources), scale, *scalars))
        queue.spans.append((at, at + nbytes))
        if out is not None:
            queue.outs.append((at, out))

    def measure(self, runs: Sequence[Measured]) -> list[tuple[float, ...]]:
        """All of them in two launches: of the lanes of their chunks, and of the sums over chunks."""
        own = runs[0].scalars is not None
        sums = 2 if own else 1
        queue = self._queue()
        self._launch(queue)  # what is to be measured may be about to change
        sizes = [lanes_of(run.elements, sums) for run in runs]
        found = np.empty((len(runs), sums * norms.LANES))
        held = self.gradients.take(8 * sum(sizes) + found.nbytes, beyond=True)
        there: Any = held.array
        total, at = there.address, there.address + found.nbytes
        measuring: list[tuple[Any, ...]] = []
        adding: list[tuple[Any, ...]] = []
        sources: list[tuple[int, float]] = []
        for run, size in zip(runs, sizes, strict=True):
            if run.elements:
                measuring.append(self._measuring(queue, run, sources, at))
            adding.append((sums * norms.LANES, at, size // (sums * norms.LANES), total))
            total, at = total + found[0].nbytes, at + 8 * size
        program = self._measure if own else self._squares
        assert program is not None
        if measuring:
            queue.lane.launch(devices.launch_of(program, measuring, sources))
        queue.lane.launch(devices.launch_of(self._lane_sums, adding, []))
        queue.lane.download(there.address, found)
        queue.lane.finish()
        held.release()
        return [norms.folded(row) for row in found]

    def _measuring(self, queue: _Queue, run: Measured, sources: list[tuple[int, float]], lanes: int) -> tuple[Any, ...]:
        """The record of a segment; its gradients are appended to `sources`."""
        gradient = (len(sources), len(run.sources), _scale(run.sources, run.divisor))
        for source in run.sources:
            there = self._there(queue, source.buffer.array, source.begin + run.moved, run.elements)
            sources.append((there, source.weight))
        if run.scalars is None:
            return (run.elements, *gradient, lanes)
        held: Any = (run.w, *run.slots)
        vectors = [vector.address + run.begin * vector.itemsize for vector in held]
        return (run.elements, *vectors, *gradient, *run.scalars, lanes)

    def copy(self, vector: Any, to: Any) -> None:
        queue = self._queue()
        self._launch(queue)
        queue.lane.copy(to.address, vector.address, vector.nbytes)

    def read(self, vector: Any, out: Vector) -> None:
        queue = self._queue()
        self._launch(queue)
        queue.lane.download(vector.address, out)

    def read_encoded(self, vector: Any, out: Bytes, block: Block, seg_begin: int, seg_end: int) -> bool:
        if not self.wire.encodes:
            return False
        queue = self._queue()
        self._launch(queue)
        held = self.gradients.take(out.nbytes, beyond=True)
        queue.lent.append(held)
        there: Any = held.array
        self.wire.encode(queue.lane, vector.address, there.address, block, seg_begin, seg_end)
        queue.lane.download(there.address, out)
        return True

    def read_rows(self, vector: Any, named: NamedRows, out: Vector) -> None:
        """They are brought together on the device, so that nothing else is copied from it."""
        if not out.size:
            return
        queue = self._queue()
        self._launch(queue)
        numbers, runs = _runs_of(named, self.kernels.dtype.itemsize)
        held = self.gradients.take(aligned(numbers.nbytes) + out.nbytes, beyond=True)
        queue.lent.append(held)
        queue.numbers.append(numbers)
        there: Any = held.array
        packed = there.address + aligned(numbers.nbytes)
        queue.lane.upload(there.address, numbers)
        queue.lane.launch(devices.launch_of(self._gather, _placed(runs, there.address, vector.address, packed), []))
        queue.lane.download(packed, out)

    def write(self, vector: Any, values: Any) -> None:
        queue = self._queue()
        self._launch(queue)
        if isinstance(values, DeviceVector):
            queue.lane.copy(vector.address, values.address, values.nbytes)
        else:
            queue.lane.upload(vector.address, values)

    def exchange(self, vector: Any, values: Vector) -> Any:
        self.write(vector, values)
        return vector

    def fill(self, vector: Any, value: float) -> None:
        queue = self._queue()
        self._launch(queue)
        if vector.size:
            queue.lane.launch(devices.launch_of(self._fill, [(vector.size, vector.address, value)], []))

    def finish(self) -> None:
        queue = self._queue()
        self._launch(queue)
        queue.lane.finish()
        queue.numbers.clear()
        while queue.lent:
            queue.lent.pop().release()

    def _there(self, queue: _Queue, array: Any, begin: int, count: int) -> int:
        """Where elements [begin, begin + count) of a gradient are on the device; they are copied if they are not."""
        if isinstance(array, DeviceVector):
            return array.address + begin * array.itemsize
        waiting = array[begin : begin + count]
        held = self.gradients.take(waiting.nbytes, beyond=True)
        queue.lent.append(held)
        there: Any = held.array
        queue.lane.upload(there.address, waiting)
        return int(there.address)

    def _launch(self, queue: _Queue) -> None:
        """Put the updates that were collected on the lane, and the copies that follow them."""
        if not queue.runs:
            return
        queue.lane.launch(devices.launch_of(self.program, queue.runs, queue.sources))
        for at, out in queue.outs:
            queue.lane.download(at, out)
        for collected in (queue.runs, queue.sources, queue.outs, queue.spans):
            collected.clear()

    def _queue(self) -> _Queue:
        queue: _Queue | None = getattr(self._queues, "queue", None)
        if queue is None:
            queue = self._queues.queue = _Queue(self.device.lane())
        return queue


def _scale(sources: tuple[Source, ...], divisor: float) -> float:
    """What the sum of `sources` is multiplied by: of one, its weight as well, as on hosts."""
    return (sources[0].weight if len(sources) == 1 else 1.0) / divisor


def _runs_of(named: NamedRows, itemsize: int) -> tuple[npt.NDArray[np.uint64], list[tuple[int, int, int, int, int]]]:
    """Numbers of rows, and runs over them: size, first of the numbers, width, and bytes to its part of each side.

    The piece of a row that began before the segment, and that of one which ends behind it, are rows 0 of a width.
    """
    cut, width = named.pieces.cut(named.rows), named.pieces.width
    numbers = np.zeros(1 + cut.near.size, np.uint64)
    numbers[1:] = cut.near
    runs = [
        (cut.head, 0, cut.head, 0, 0),
        (cut.near.size * width, 1, width, cut.low * itemsize, cut.head * itemsize),
        (cut.tail, 0, cut.tail, cut.high * itemsize, (cut.head + cut.near.size * width) * itemsize),
    ]
    return numbers, [run for run in runs if run[0]]


def _placed(
    runs: list[tuple[int, int, int, int, int]], numbers: int, whole: int, packed: int
) -> list[tuple[int, int, int, int, int]]:
    """The records of `_runs_of` with numbers, segment and pieces at these addresses."""
    return [
        (size, numbers + 8 * first, width, whole + of_whole, packed + of_packed)
        for size, first, width, of_whole, of_packed in runs
    ]
