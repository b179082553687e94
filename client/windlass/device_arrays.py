"""Arrays that lie in a device's memory: CuPy's, PyTorch's, and whatever says so by its CUDA array interface or DLPack.

Windlass works on host memory, so gradients are copied down into what is sent, and values up into the caller's arrays or
into new ones of the same family. These copies go through pinned buffers of the driver's own, whoever owns the host's
memory. They are whole when a call returns or a ticket's result does: later work on any stream sees them, and what was
queued on the current stream before the call is in them.

Nothing is imported for a family: an array that is there has brought its module along. What is neither CuPy's nor
PyTorch's is read through CuPy.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import UsageError

Array = npt.NDArray[Any]
_CUDA_IN_DLPACK: Final = (2, 13)  # kDLCUDA, kDLCUDAManaged


class OnDevice:
    """One such array: its shape and dtype as NumPy has them, and copies between it and host memory of that shape."""

    __slots__ = ("dtype", "shape", "value")

    def __init__(self, value: Any, dtype: np.dtype[Any]) -> None:
        self.value = value
        self.shape: tuple[int, ...] = tuple(value.shape)
        self.dtype = dtype

    def copy_to(self, host: Array) -> None:
        """Copy down; `host` is contiguous."""
        if _family(self.value) == "torch":
            sys.modules["torch"].from_numpy(host).copy_(self.value)
        else:
            self.value.get(out=host)

    def copy_from(self, host: Array) -> None:
        """Copy up; `host` may be written to again when this returns."""
        if _family(self.value) == "torch":
            self.value.copy_(sys.modules["torch"].from_numpy(host))
            return
        cupy = sys.modules["cupy"]
        with self.value.device:
            self.value[...] = cupy.asarray(host)
            cupy.cuda.get_current_stream().synchronize()

    def to_host(self) -> Array:
        """A copy of its own in host memory."""
        host = np.empty(self.shape, self.dtype)
        self.copy_to(host)
        return host


def on_device(name: str, value: Any) -> OnDevice | None:
    """`value` as such an array; None if it is none.

    Raises:
        UsageError: it is read through CuPy, which is not installed, or NumPy lacks its dtype.
    """
    if isinstance(value, np.ndarray):
        return None
    family = _family(value)
    if family == "torch":
        if value.device.type == "cpu":
            return None
        kind = str(value.dtype).removeprefix("torch.")
        if kind not in np.sctypeDict:
            raise UsageError(
                "an array's dtype is none of NumPy's",
                name=name,
                dtype=kind,
                next_move="Convert it, for example with tensor.float().",
            )
        return OnDevice(value.detach(), np.dtype(kind))
    if family == "cupy":
        return OnDevice(value, value.dtype)
    if hasattr(value, "__cuda_array_interface__"):
        array = _cupy(name, value).asarray(value)
    elif hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] in _CUDA_IN_DLPACK:
        array = _cupy(name, value).from_dlpack(value)
    else:
        return None
    return OnDevice(array, array.dtype)


def maker_like(value: Any) -> Callable[[Array], Any] | None:
    """What makes an array of the family and device of `value` from host memory; None if it lies on none."""
    found = on_device("", value)
    if found is None or _family(value) in ("jax", "jaxlib"):  # JAX chooses a device itself
        return None
    like = found.value
    if _family(like) == "torch":
        return lambda host: sys.modules["torch"].from_numpy(host).to(like.device)

    def made(host: Array) -> Any:
        cupy = sys.modules["cupy"]
        with like.device:
            array = cupy.array(host)
            cupy.cuda.get_current_stream().synchronize()
        return array

    return made


def _family(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _cupy(name: str, value: Any) -> Any:
    try:
        return importlib.import_module("cupy")
    except ImportError as cause:
        raise UsageError(
            "an array lies on a device, and reading it needs CuPy",
            name=name,
            type=type(value).__name__,
            next_move="Install it with `pip install 'windlass[gpu]'`, or copy the array to the CPU first.",
        ) from cause
