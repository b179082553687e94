"""A stand-in for the part of CuPy that a worker uses: arrays in ordinary memory that refuse to be read as if they were.

Like CuPy's they are copied by `get`, assignment and `array`, and not by NumPy; their memory is theirs alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt


class _Device:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class ndarray:  # noqa: N801 - CuPy's name
    """An array on no device."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self._values = np.array(values)
        self.device = _Device()

    @property
    def shape(self) -> tuple[int, ...]:
        return self._values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._values.dtype

    def get(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        if out is None:
            return self._values.copy()
        if out.shape != self.shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError("out does not fit")
        out[...] = self._values
        return out

    def __setitem__(self, at: Any, value: ndarray) -> None:
        self._values[at] = value._values

    def __getitem__(self, at: Any) -> ndarray:
        view = ndarray(np.empty(0))
        view._values = self._values[at]
        return view

    def __array__(self, *_: object, **__: object) -> npt.NDArray[Any]:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")


ndarray.__module__ = "cupy"


def module() -> ModuleType:
    """What `import cupy` gives."""
    cupy: Any = ModuleType("cupy")
    cupy.ndarray = ndarray
    cupy.array = cupy.asarray = ndarray
    cupy.cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(synchronize=lambda: None))
    made: ModuleType = cupy
    return made


@contextlib.contextmanager
def real() -> Iterator[Any]:
    """CuPy itself, on the first device.

    Raises:
        ImportError, RuntimeError: there is none, or CUDA does not work.
    """
    import cupy

    with cupy.cuda.Device(0):
        yield cupy
