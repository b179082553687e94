"""Memory that plans of a device share.

Invariant: a block is lent to one frame at a time. It is given back when the frame is done and lent again, grown where
the next plan needs more, so that graphs of many lengths need the memory of the longest. A frame that is dropped takes
its block with it.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import numpy as np

from windlass_graph.device import Device
from windlass_graph.memory import ALIGNMENT

_BLOCKS_MAX: Final = 8


class Arena:
    """The free blocks of one device; any thread may borrow."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._lock = threading.Lock()
        self._free: list[Any] = []

    def borrow(self, nbytes: int) -> Any:
        """A block of at least so many bytes, aligned to 64, uninitialised: the smallest that fits, else a new one."""
        with self._lock:
            fitting = [block for block in self._free if block.nbytes >= nbytes]
            if fitting:
                chosen = min(fitting, key=lambda block: int(block.nbytes))
                self._free = [block for block in self._free if block is not chosen]
                return chosen
            if self._free:  # too small: the new block takes its place
                self._free.pop()
        return _block(self.device, nbytes)

    def give_back(self, block: Any) -> None:
        with self._lock:
            if len(self._free) < _BLOCKS_MAX:
                self._free.append(block)

    @property
    def free_bytes(self) -> int:
        with self._lock:
            return sum(int(block.nbytes) for block in self._free)


def _block(device: Device, nbytes: int) -> Any:
    """As many bytes, rounded up: to a power of two where only what is touched takes memory, else to an eighth of it.

    Frames that are idle keep views of the block they ran in, so blocks that grew would add up if they grew by little.
    """
    power = 1 << max(nbytes - 1, 4095).bit_length()
    nbytes = power if device.kind == "cpu" else -(-nbytes // (power // 8)) * (power // 8)
    if device.kind == "gpu":
        return device.xp.empty(nbytes, "uint8")
    raw = np.empty(nbytes + ALIGNMENT, "uint8")
    begin = -raw.ctypes.data % ALIGNMENT
    return raw[begin : begin + nbytes]


_ARENAS: Final[dict[Device, Arena]] = {}
_ARENAS_LOCK: Final = threading.Lock()


def arena_of(device: Device) -> Arena:
    """The one arena of a device."""
    with _ARENAS_LOCK:
        return _ARENAS.setdefault(device, Arena(device))
