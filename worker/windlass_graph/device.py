"""Where arrays lie and ops run: `cpu:0`, `cpu:1`, ..., `gpu:0`.

Invariant: a device is a name, equal to any other of that name. Several CPU devices share the processor and keep memory
and random numbers of their own, so that whatever runs over several devices can be tried without a GPU.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np

from windlass_proto.errors import UnavailableError, UsageError


@dataclass(frozen=True, slots=True)
class Device:
    """One device; `wl.cpu(0)`, `wl.gpu(1)`."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}"

    @property
    def xp(self) -> ModuleType:
        """NumPy, or CuPy with this GPU as the thread's current one: whoever works on a device asks it for this first.

        Raises:
            UnavailableError: a GPU is asked for and CuPy cannot be used, or there is none of this number.
        """
        return np if self.kind == "cpu" else _cupy(self.index)


CPU: Final = Device("cpu", 0)


def cpu(index: int = 0) -> Device:
    return Device("cpu", index)


def gpu(index: int = 0) -> Device:
    return Device("gpu", index)


def device_of(text: str | Device | None) -> Device:
    """The device of a name such as "gpu:1"; None is `cpu:0`.

    Raises:
        UsageError: it is no device's name.
    """
    if isinstance(text, Device):
        return text
    kind, _, number = (text or "cpu:0").partition(":")
    if kind not in ("cpu", "gpu") or not (number or "0").isdecimal():
        raise UsageError("this is no device", next_move='Write "cpu:0" or "gpu:0".', got=text)
    return Device(kind, int(number or 0))


def _cupy(index: int) -> ModuleType:
    try:
        import cupy
    except ImportError as cause:
        raise UnavailableError(
            "CuPy is not installed, and a GPU was asked for", next_move="pip install windlass[gpu], or use cpu:0."
        ) from cause
    count, refusal = _gpus(cupy)
    if index >= count:
        raise UnavailableError("there is no such GPU", next_move="Use cpu:0.", asked=index, gpus=count, reason=refusal)
    cupy.cuda.Device(index).use()
    found: ModuleType = cupy
    return found


@functools.cache
def _gpus(cupy: Any) -> tuple[int, str]:
    """How many CuPy finds, and why none; asked once, as the driver takes its time to answer."""
    try:
        return int(cupy.cuda.runtime.getDeviceCount()), "there are fewer"
    except cupy.cuda.runtime.CUDARuntimeError as cause:
        return 0, str(cause)


class _Streams(threading.local):
    """The streams of random numbers of one thread, by device."""

    def __init__(self) -> None:
        self.seed_value: int | None = None
        self.by_device: dict[Device, np.random.Generator] = {}


_STREAMS = _Streams()


def seed(value: int) -> None:
    """Begin all of this thread's streams of random numbers anew: each device's from (value, its index)."""
    _STREAMS.seed_value = value
    _STREAMS.by_device.clear()


def stream(device: Device) -> np.random.Generator:
    """This thread's stream of random numbers for a device; without `seed` it begins anywhere."""
    found = _STREAMS.by_device.get(device)
    if found is None:
        words: Any = None if _STREAMS.seed_value is None else (_STREAMS.seed_value, device.index, len(device.kind))
        found = _STREAMS.by_device[device] = np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
    return found


def seed_of_thread() -> int:
    """What `seed` was last given in this thread; 0 if nothing."""
    return _STREAMS.seed_value or 0
