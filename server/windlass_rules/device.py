"""A device that runs the CUDA twins: what is asked of it, vectors in its memory, and lists of runs for one launch.

A `Device` has memory of its own, compiles programs for itself, and gives each thread a `Lane`: work put on a lane is
done in order, beside the thread, until `finish`. CuPy's is in `cupy_device`; the tests have one in ordinary memory,
whose kernels are the same sources compiled by a C++ compiler.

Invariant: whoever puts work on a lane keeps the memory it names alive and unchanged until that lane's `finish`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import InvariantError
from windlass_rules.cuda_source import CudaSource


class Allocation(Protocol):
    """Device memory, given back when nobody refers to it any more."""

    @property
    def address(self) -> int:
        """Where it begins: a multiple of 256."""


class DeviceVector:
    """One dimension of device memory, sliced and viewed as a NumPy array is; its values are the device's to read."""

    __slots__ = ("address", "dtype", "owner", "size")

    def __init__(self, owner: Allocation, address: int, size: int, dtype: np.dtype[Any]) -> None:
        self.owner = owner
        self.address = address
        self.size = size
        self.dtype = dtype

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, span: slice) -> DeviceVector:
        begin, end, step = span.indices(self.size)
        if step != 1:
            raise InvariantError("device memory is taken in runs", step=step)
        return DeviceVector(self.owner, self.address + begin * self.itemsize, max(0, end - begin), self.dtype)

    def view(self, dtype: npt.DTypeLike) -> DeviceVector:
        """The same bytes as another type."""
        kind = np.dtype(dtype)
        if self.nbytes % kind.itemsize:
            raise InvariantError("device memory is not whole elements of a type", nbytes=self.nbytes, dtype=kind.name)
        return DeviceVector(self.owner, self.address, self.nbytes // kind.itemsize, kind)


@dataclass(frozen=True, slots=True)
class Launch:
    """A program and the list of runs for one launch of it; `sources` are what the runs point into."""

    program: CudaSource
    runs: npt.NDArray[np.void]
    sources: npt.NDArray[np.void]
    tiles: int


class Lane(Protocol):
    """One thread's queue of work on a device. Addresses are the device's; arrays are contiguous host memory."""

    def upload(self, to: int, values: npt.NDArray[Any]) -> None:
        """Copy host memory to the device."""

    def download(self, at: int, out: npt.NDArray[Any]) -> None:
        """Copy device memory to the host."""

    def copy(self, to: int, at: int, nbytes: int) -> None:
        """Copy within the device."""

    def launch(self, launch: Launch) -> None:
        """Run a program over its list."""

    def finish(self) -> None:
        """Return when all is done.

        Raises:
            UnavailableError: the device failed; nothing more can be done with it.
        """


class Device(Protocol):
    """Memory and programs of one device. Thread-safe."""

    name: str
    model: str
    memory_bytes: int

    def allocate(self, nbytes: int) -> Allocation:
        """Device memory, whose contents are whatever was there.

        Raises:
            UnavailableError: there is not so much.
        """

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Host memory that the device copies from and to by itself."""

    def prepare(self, program: CudaSource) -> None:
        """Compile, so that the first launch does not have to."""

    def lane(self) -> Lane:
        """The calling thread's."""


def empty(device: Device, elements: int, dtype: np.dtype[Any]) -> DeviceVector:
    """A new vector; its contents are whatever was there."""
    owner = device.allocate(max(1, elements * dtype.itemsize))
    return DeviceVector(owner, owner.address, elements, dtype)


def launch_of(program: CudaSource, runs: list[tuple[Any, ...]], sources: list[tuple[int, float]]) -> Launch:
    """The launch for `runs`: (size, then the other fields of a record in their order), none of size 0."""
    table = np.zeros(len(runs), program.run)
    tile = 0
    for number, (size, *rest) in enumerate(runs):
        table[number] = (tile, size, *rest)
        tile += -(-size // program.tile)
    return Launch(program, table, np.array(sources, program.source), tile)
