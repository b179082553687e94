"""A CUDA device through CuPy: memory, compiled programs, and a stream for each thread.

CuPy is imported when a device is opened and never before; no array of CuPy's is used, so its memory pools and current
streams stay as whoever else uses them left them. Lists of runs go up through a pinned table of each lane's own, ahead
of the launch on the same stream.

Invariant: a lane's table is written to again only after what it held has been read by the device (`finish`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import InvariantError, UnavailableError, UsageError
from windlass_rules.cuda_source import OPTIONS, THREADS, CudaSource
from windlass_rules.device import Launch

_TABLE_BYTES: Final = 256 * 1024
_TABLE_ALIGN_BYTES: Final = 64
_HOW_TO_GET_CUPY: Final = "Install it with `pip install 'windlass[gpu]'` (CUDA 12) or 'windlass[gpu13]' (CUDA 13)."


def open_device(name: str) -> CupyDevice:
    """The device called `name`: "gpu" or "gpu:N", as CUDA counts them.

    Raises:
        UsageError: there is no such device, or CuPy is not installed.
        UnavailableError: CUDA does not work on this machine.
    """
    kind, _, number = name.partition(":")
    if kind != "gpu" or not (number or "0").isdecimal():
        raise UsageError("a device's name is not gpu:N", got=name, next_move="Write for example gpu:0.")
    try:
        import cupy
    except ImportError as cause:
        raise UsageError(
            "a server's device needs CuPy", device=name, reason=str(cause), next_move=_HOW_TO_GET_CUPY
        ) from cause
    index = int(number or 0)
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as cause:
        raise UnavailableError(
            "CUDA does not work on this machine",
            device=name,
            reason=str(cause),
            next_move="Look whether nvidia-smi shows the device, or serve from memory, without --device.",
        ) from cause
    if index >= count:
        raise UsageError(
            "there is no such device", device=name, devices=count, next_move="CUDA_VISIBLE_DEVICES may hide some."
        )
    return CupyDevice(cupy, index)


class _DeviceMemory:
    """One allocation; freed with its last reference."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self.address = int(memory.ptr)


class CupyLane:
    """One thread's stream."""

    def __init__(self, device: CupyDevice) -> None:
        self._device = device
        self._runtime = device.cupy.cuda.runtime
        device.cupy.cuda.Device(device.index).use()  # for this thread, which is the server's
        self._stream = device.cupy.cuda.Stream(non_blocking=True)
        self._table = device.pinned(_TABLE_BYTES)
        self._table_there = device.allocate(_TABLE_BYTES)
        self._used = 0
        self._queued = False

    def upload(self, to: int, values: npt.NDArray[Any]) -> None:
        self._copy(to, values.ctypes.data, values.nbytes, self._runtime.memcpyHostToDevice)

    def download(self, at: int, out: npt.NDArray[Any]) -> None:
        self._copy(out.ctypes.data, at, out.nbytes, self._runtime.memcpyDeviceToHost)

    def copy(self, to: int, at: int, nbytes: int) -> None:
        self._copy(to, at, nbytes, self._runtime.memcpyDeviceToDevice)

    def launch(self, launch: Launch) -> None:
        kernel = self._device.kernel(launch.program)
        runs, sources = self._put(launch.runs, launch.sources)
        arguments = (runs, np.uint32(len(launch.runs)), sources)
        with self._device.failures("a kernel could not be started"), self._stream:
            kernel((launch.tiles,), (THREADS,), arguments)
        self._queued = True

    def finish(self) -> None:
        if self._queued:
            with self._device.failures("a device failed"):
                self._stream.synchronize()
        self._queued = False
        self._used = 0

    def _copy(self, to: int, at: int, nbytes: int, kind: int) -> None:
        if nbytes:
            with self._device.failures("a copy could not be started"):
                self._runtime.memcpyAsync(to, at, nbytes, kind, self._stream.ptr)
            self._queued = True

    def _put(self, *tables: npt.NDArray[np.void]) -> list[int]:
        """Send tables up; where they are on the device."""
        sizes = [-(-table.nbytes // _TABLE_ALIGN_BYTES) * _TABLE_ALIGN_BYTES for table in tables]
        if self._used + sum(sizes) > self._table.nbytes:
            self.finish()
            if sum(sizes) > self._table.nbytes:
                self._table = self._device.pinned(2 * sum(sizes))
                self._table_there = self._device.allocate(2 * sum(sizes))
        begin, addresses = self._used, []
        for table, size in zip(tables, sizes, strict=True):
            self._table[self._used : self._used + table.nbytes] = table.view(np.uint8)
            addresses.append(self._table_there.address + self._used)
            self._used += size
        self.upload(self._table_there.address + begin, self._table[begin : self._used])
        return addresses


class CupyDevice:
    """A `windlass_rules.device.Device`.

    Args:
        cupy: the module, imported by `open_device`.
        index: CUDA's number of the device.
    """

    def __init__(self, cupy: Any, index: int) -> None:
        self.cupy = cupy
        self.index = index
        self.name = f"gpu:{index}"
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        self.model: str = properties["name"].decode()
        self.memory_bytes: int = properties["totalGlobalMem"]
        self._kernels: dict[str, Any] = {}
        self._lanes = threading.local()
        self._building = threading.Lock()

    def allocate(self, nbytes: int) -> _DeviceMemory:
        with (
            self.failures("a device has not so much memory left", bytes_asked=nbytes),
            self.cupy.cuda.Device(self.index),
        ):
            return _DeviceMemory(self.cupy.cuda.Memory(nbytes))

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        cuda = self.cupy.cuda
        with self.failures("memory could not be pinned", bytes_asked=nbytes), cuda.Device(self.index):
            held = cuda.PinnedMemoryPointer(cuda.PinnedMemory(nbytes, cuda.runtime.hostAllocPortable), 0)
        return np.frombuffer(held, np.uint8, nbytes)

    def prepare(self, program: CudaSource) -> None:
        self.kernel(program)

    def kernel(self, program: CudaSource) -> Any:
        """The program, compiled for this device when it is first asked for. CuPy keeps it on disk."""
        kernel = self._kernels.get(program.entry)
        if kernel is None:
            with self._building:
                kernel = self._kernels.get(program.entry)
                if kernel is None:
                    kernel = self._kernels[program.entry] = self._compiled(program)
        return kernel

    def lane(self) -> CupyLane:
        lane: CupyLane | None = getattr(self._lanes, "lane", None)
        if lane is None:
            lane = self._lanes.lane = CupyLane(self)
        return lane

    @contextlib.contextmanager
    def failures(self, fact: str, **values: object) -> Iterator[None]:
        """CUDA's errors in words."""
        cuda = self.cupy.cuda
        try:
            yield
        except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as cause:
            raise UnavailableError(
                fact,
                device=self.name,
                model=self.model,
                **values,
                reason=str(cause)[:200],
                next_move="Look at nvidia-smi and the kernel's log; a device that failed needs a new server process.",
            ) from cause

    def _compiled(self, program: CudaSource) -> Any:
        try:
            with self.cupy.cuda.Device(self.index):
                kernel = self.cupy.RawKernel(program.text, program.entry, options=OPTIONS)
                kernel.compile()
        except self.cupy.cuda.compiler.CompileException as cause:
            raise InvariantError("a kernel did not compile", kernel=program.entry, reason=str(cause)[:400]) from cause
        return kernel
