"""A stand-in for the part of CuPy that a server's device uses: streams, memory and kernels, in ordinary memory.

As with CUDA, what is put on a stream is done when the stream is waited for and not before, and a kernel goes to the
current stream of its thread. Kernels are the sources compiled by a C++ compiler (`tests.host_device`).
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.host_device import HostAllocation, HostDevice

KINDS = {"memcpyHostToDevice": 1, "memcpyDeviceToHost": 2, "memcpyDeviceToDevice": 3}


class RuntimeFailureError(RuntimeError):
    """CUDA's runtime says no."""


class CompileFailureError(Exception):
    """NVRTC says no."""


class Machine:
    """One device: its compiler, its streams by number, and each thread's current one."""

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        self.compiler = HostDevice(folder)
        self.memory_bytes = memory_bytes
        self.streams: list[Stream] = []
        self.current = threading.local()

    def memcpy_async(self, to: int, at: int, nbytes: int, kind: int, stream: int) -> None:
        assert kind in KINDS.values()
        self.streams[stream].work.append(lambda: ctypes.memmove(to, at, nbytes))

    def pinned(self, nbytes: int, flags: int) -> npt.NDArray[np.uint8]:
        assert flags == 1
        return self.compiler.pinned(nbytes)


class Stream:
    def __init__(self, machine: Machine, *, non_blocking: bool) -> None:
        assert non_blocking
        self.ptr = len(machine.streams)
        self.work: list[Callable[[], Any]] = []
        self._current = machine.current
        machine.streams.append(self)

    def __enter__(self) -> None:
        self._current.stream = self

    def __exit__(self, *_: object) -> None:
        del self._current.stream

    def synchronize(self) -> None:
        for work in self.work:
            work()
        self.work.clear()


class Device:
    def __init__(self, index: int) -> None:
        assert index == 0

    def use(self) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Memory:
    def __init__(self, machine: Machine, nbytes: int) -> None:
        if nbytes > machine.memory_bytes:
            raise RuntimeFailureError("cudaErrorMemoryAllocation: out of memory")
        self.held = HostAllocation(nbytes)
        self.ptr = self.held.address


class RawKernel:
    def __init__(self, machine: Machine, code: str, name: str, *, options: tuple[str, ...]) -> None:
        assert "--fmad=false" in options
        self._machine = machine
        self._program: Any = SimpleNamespace(entry=name, text=code)

    def compile(self) -> None:
        if "refused" in self._program.entry:
            raise CompileFailureError("a word that is none")
        self._machine.compiler.prepare(self._program)

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
        runs, count, sources = arguments
        assert (block, type(count)) == ((256,), np.uint32)
        function = self._machine.compiler.function(self._program)
        given = (ctypes.c_uint(grid[0]), ctypes.c_void_p(runs), ctypes.c_uint(int(count)), ctypes.c_void_p(sources))
        self._machine.current.stream.work.append(lambda: function(*given))


def module(folder: Path, *, memory_bytes: int = 1 << 30) -> Any:
    """What `import cupy` gives, with one device of so much memory."""
    machine = Machine(folder, memory_bytes)
    runtime = SimpleNamespace(
        CUDARuntimeError=RuntimeFailureError,
        hostAllocPortable=1,
        memcpyAsync=machine.memcpy_async,
        getDeviceProperties=lambda _: {"name": b"A stand-in", "totalGlobalMem": memory_bytes},
        getDeviceCount=lambda: 1,
        **KINDS,
    )
    cuda = SimpleNamespace(
        runtime=runtime,
        driver=SimpleNamespace(CUDADriverError=RuntimeFailureError),
        compiler=SimpleNamespace(CompileException=CompileFailureError),
        Device=Device,
        Stream=functools.partial(Stream, machine),
        Memory=functools.partial(Memory, machine),
        PinnedMemory=machine.pinned,
        PinnedMemoryPointer=lambda held, offset: held[offset:],
    )
    return SimpleNamespace(cuda=cuda, RawKernel=functools.partial(RawKernel, machine), __version__="0")
