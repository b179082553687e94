"""A device in ordinary memory: the CUDA sources compiled by a C++ compiler, one thread taking every thread's part.

It keeps a device's promises the strict way: work waits on its lane until `finish`, so that what is looked at too early
is seen to be old, and device memory is filled with a pattern before it is handed out, so that nothing counts on zeros.
"""

from __future__ import annotations

import ctypes
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto import memory
from windlass_rules.cuda_source import THREADS, CudaSource
from windlass_rules.device import Launch

COMPILER = "g++"
SHIM = f"""\
#include <cmath>
using std::fabs;
using std::sqrt;
#define __global__
#define __device__
#define __restrict__ __restrict
namespace {{ struct Index {{ unsigned int x; }}; thread_local Index blockIdx, threadIdx; }}

template <typename Kernel, typename... Arguments>
static void each_thread(Kernel kernel, unsigned int tiles, Arguments... arguments)
{{
    for (blockIdx.x = 0; blockIdx.x < tiles; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < {THREADS}; ++threadIdx.x)
            kernel(arguments...);
}}
"""
PROGRAM = """
namespace of_{entry} {{
{text}
extern "C" void on_host_{entry}(unsigned int tiles, const Run *runs, u32 count, const Source *sources)
{{
    each_thread({entry}, tiles, runs, count, sources);
}}
}}
"""
# -ffp-contract=off: what --fmad=false is to NVRTC.
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wno-unused-variable", "-Werror")
UNTOUCHED = 0x7B


class HostAllocation:
    """Ordinary memory that stands for a device's."""

    def __init__(self, nbytes: int) -> None:
        self.array = memory.aligned_zeros(-(-nbytes // 8), np.float64).view(np.uint8)
        self.array.fill(UNTOUCHED)
        self.address: int = self.array.ctypes.data


class HostLane:
    """Copies and launches that wait until `finish`."""

    def __init__(self, device: HostDevice) -> None:
        self._device = device
        self._work: list[Callable[[], Any]] = []

    def upload(self, to: int, values: npt.NDArray[Any]) -> None:
        assert values.flags.c_contiguous
        self._work.append(lambda: ctypes.memmove(to, values.ctypes.data, values.nbytes))

    def download(self, at: int, out: npt.NDArray[Any]) -> None:
        assert out.flags.c_contiguous
        self._work.append(lambda: ctypes.memmove(out.ctypes.data, at, out.nbytes))

    def copy(self, to: int, at: int, nbytes: int) -> None:
        self._work.append(lambda: ctypes.memmove(to, at, nbytes))

    def launch(self, launch: Launch) -> None:
        function = self._device.function(launch.program)
        runs, sources = launch.runs, launch.sources
        self._device.launches += 1
        self._work.append(
            lambda: function(
                ctypes.c_uint(launch.tiles),
                ctypes.c_void_p(runs.ctypes.data),
                ctypes.c_uint(len(runs)),
                ctypes.c_void_p(sources.ctypes.data),
            )
        )

    def finish(self) -> None:
        for work in self._work:
            work()
        self._work.clear()


class HostDevice:
    """A device in ordinary memory, whose programs are compiled into `folder`."""

    name = "host:0"
    model = "a C++ compiler"

    def __init__(self, folder: Path, memory_bytes: int = 1 << 30) -> None:
        self.folder = folder
        self.memory_bytes = memory_bytes
        self.launches = 0
        self._functions: dict[str, Any] = {}
        self._lanes = threading.local()
        self._lock = threading.Lock()

    def allocate(self, nbytes: int) -> HostAllocation:
        return HostAllocation(nbytes)

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        return np.frombuffer(memory.map_pages(nbytes), np.uint8)

    def prepare(self, program: CudaSource) -> None:
        self.prepare_all([program])

    def prepare_all(self, programs: Iterable[CudaSource]) -> None:
        """Compile several at once: a process of the compiler costs more than a program."""
        with self._lock:
            new = [program for program in programs if program.entry not in self._functions]
            if new:
                library = self._compiled(new)
                for program in new:
                    self._functions[program.entry] = getattr(library, f"on_host_{program.entry}")

    def function(self, program: CudaSource) -> Any:
        self.prepare(program)
        return self._functions[program.entry]

    def lane(self) -> HostLane:
        lane: HostLane | None = getattr(self._lanes, "lane", None)
        if lane is None:
            lane = self._lanes.lane = HostLane(self)
        return lane

    def _compiled(self, programs: list[CudaSource]) -> ctypes.CDLL:
        source = self.folder / f"kernels{len(self._functions)}.cpp"
        library = source.with_suffix(".so")
        text = SHIM + "".join(PROGRAM.format(entry=program.entry, text=program.text) for program in programs)
        source.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [COMPILER, *FLAGS, "-o", str(library), str(source)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(library))
