"""A stand-in for the part of CuPy that the engine uses: arrays in ordinary memory with CuPy's promises and no more.

What differs between CuPy and NumPy is refused or done as CuPy does it: functions and keywords are those of `FUNCTIONS`
and `METHODS`, which `test_ops_on_devices` holds against CuPy where it is installed; NumPy's arrays are taken by `array`
and `asarray` alone; nothing is read as a NumPy array but by `get`; reductions and elements are arrays without axes, and
nobody is warned of what is not finite. Kernels in CUDA C are compiled for the host by `host_raw_kernel`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import numpy as np

from tests.graph.host_raw_kernel import RawKernel

_UFUNC = "out dtype casting"
_UFUNCS: Final = (
    "add", "subtract", "multiply", "divide", "true_divide", "power", "float_power", "floor_divide", "remainder",
    "mod", "fmod", "maximum", "minimum", "hypot", "arctan2", "negative", "absolute", "abs", "square", "sqrt",
    "cbrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "arcsin", "arccos",
    "arctan", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "sign", "signbit", "copysign", "floor",
    "ceil", "rint", "trunc", "reciprocal", "logaddexp", "equal", "not_equal", "less", "less_equal", "greater",
    "greater_equal", "logical_and", "logical_or", "logical_xor", "logical_not", "isnan", "isinf", "isfinite",
    "matmul", "bitwise_and", "bitwise_or",
)  # fmt: skip
FUNCTIONS: Final[dict[str, str]] = {
    **dict.fromkeys(_UFUNCS, _UFUNC),
    "sum": "axis dtype out keepdims",
    "prod": "axis dtype out keepdims",
    "mean": "axis dtype out keepdims",
    "var": "axis dtype out ddof keepdims",
    "max": "axis out keepdims",
    "min": "axis out keepdims",
    "any": "axis out keepdims",
    "all": "axis out keepdims",
    "argmax": "axis dtype out keepdims",
    "argmin": "axis dtype out keepdims",
    "cumsum": "axis dtype out",
    "sort": "axis",
    "argsort": "axis",
    "take": "axis out",
    "take_along_axis": "axis",
    "concatenate": "axis out dtype casting",
    "stack": "axis out dtype casting",
    "clip": "out",
    "where": "",
    "dot": "out",
    "outer": "out",
    "tensordot": "axes",
    "empty": "dtype order",
    "zeros": "dtype order",
    "ones": "dtype order",
    "full": "dtype order",
    "empty_like": "dtype order shape",
    "zeros_like": "dtype order shape",
    "ones_like": "dtype order shape",
    "full_like": "dtype order shape",
    "arange": "dtype",
    "array": "dtype copy order ndmin",
    "asarray": "dtype order copy",
    "ascontiguousarray": "dtype",
    "broadcast_to": "",
    "expand_dims": "",
    "squeeze": "axis",
    "moveaxis": "",
    "swapaxes": "",
    "transpose": "axes",
    "reshape": "order",
    "ravel": "order",
    "repeat": "axis",
    "tile": "",
    "flip": "axis",
    "pad": "mode constant_values",
    "nonzero": "",
    "tril": "k",
    "triu": "k",
    "eye": "k dtype",
    "einsum": "out",
    "copyto": "casting where",
}
"""Functions and the keywords that they take here."""

_FROM_HOST: Final = ("array", "asarray", "ascontiguousarray")
METHODS: Final = (
    "all", "any", "argmax", "argmin", "astype", "clip", "copy", "cumsum", "dot", "fill", "flatten", "max", "mean",
    "min", "nonzero", "prod", "ravel", "repeat", "reshape", "round", "squeeze", "sum", "swapaxes", "take",
    "transpose", "var", "view",
)  # fmt: skip
_PROPERTIES: Final = ("T", "dtype", "flags", "itemsize", "nbytes", "ndim", "shape", "size", "strides")
_ARITHMETIC: Final = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
_COMPARISONS: Final = ("eq", "ne", "lt", "le", "gt", "ge")


def _opened(value: Any) -> Any:
    """What NumPy may see of an argument.

    Raises:
        TypeError: CuPy does not take NumPy's arrays.
    """
    if isinstance(value, ndarray):
        return value._values
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, tuple | list):
        return type(value)(map(_opened, value))
    return value


def _closed(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_closed, value))
    return _of(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def _of(values: Any) -> ndarray:
    made = ndarray.__new__(ndarray)
    made._values = values
    return made


class ndarray:  # noqa: N801 - CuPy's name
    """An array on no device."""

    __array_ufunc__ = None
    _values: Any

    def __array__(self, *_: object, **__: object) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_function__(self, function: Any, *_: object) -> Any:
        raise TypeError(f"numpy.{function.__name__} was given an array of a device")

    def get(self) -> Any:
        return self._values.copy()

    def item(self) -> Any:
        return self._values.item()

    def tolist(self) -> Any:
        return self._values.tolist()

    def __bool__(self) -> bool:
        return bool(self._values)

    def __int__(self) -> int:
        return int(self._values)

    def __float__(self) -> float:
        return float(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: Any) -> Any:
        return _closed(self._values[_opened(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._values[_opened(key)] = _opened(value)

    def __neg__(self) -> Any:
        return _closed(-self._values)

    def __invert__(self) -> Any:
        return _closed(~self._values)


def _operated(symbol: Callable[[Any, Any], Any], *, swapped: bool = False) -> Callable[[Any, Any], Any]:
    def operate(self: Any, other: Any) -> Any:
        pair = (_opened(other), self._values) if swapped else (self._values, _opened(other))
        with np.errstate(all="ignore"):
            return _closed(symbol(*pair))

    return operate


def _in_place(symbol: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def operate(self: Any, other: Any) -> Any:
        with np.errstate(all="ignore"):
            symbol(self._values, _opened(other))
        return self

    return operate


def _method(name: str) -> Callable[..., Any]:
    return lambda self, *given, **named: _closed(
        getattr(self._values, name)(*map(_opened, given), **{key: _opened(value) for key, value in named.items()})
    )


def _property(name: str) -> property:
    return property(lambda self: _closed(getattr(self._values, name)) if name == "T" else getattr(self._values, name))


def _complete() -> None:
    for name in METHODS:
        setattr(ndarray, name, _method(name))
    for name in _PROPERTIES:
        setattr(ndarray, name, _property(name))
    for name in _ARITHMETIC:
        plain = getattr(operator, f"__{name}__")
        setattr(ndarray, f"__{name}__", _operated(plain))
        setattr(ndarray, f"__r{name}__", _operated(plain, swapped=True))
        setattr(ndarray, f"__i{name}__", _in_place(getattr(operator, f"__i{name}__")))
    for name in _COMPARISONS:
        setattr(ndarray, f"__{name}__", _operated(getattr(operator, f"__{name}__")))
    ndarray.__module__ = "cupy"


_complete()


def _function(name: str) -> Callable[..., Any]:
    known, numpys = FUNCTIONS[name].split(), getattr(np, name)

    def call(*given: Any, **named: Any) -> Any:
        unknown = named.keys() - set(known)
        if unknown:
            raise TypeError(f"cupy.{name}() got an unexpected keyword argument {sorted(unknown)}")
        if name in _FROM_HOST and isinstance(given[0], np.ndarray):
            return _of(numpys(*given, **named).copy())
        out = named.get("out")
        if out is not None and not isinstance(out, ndarray):
            raise TypeError(f"cupy.{name}() wrote to {type(out)}")
        with np.errstate(all="ignore"):
            found = numpys(*map(_opened, given), **{key: _opened(value) for key, value in named.items()})
        return _closed(found) if out is None else out

    call.__name__ = name
    return call


class _Device:
    current = 0

    def __init__(self, index: int | None = None) -> None:
        self.id = _Device.current if index is None else index

    def use(self) -> None:
        _Device.current = self.id

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def synchronize(self) -> None: ...


def modules(folder: Path) -> dict[str, ModuleType]:
    """What `import cupy`, `import cupyx` and `import cupyx.scipy.special` give; kernels are compiled into `folder`."""
    cupy: Any = ModuleType("cupy")
    cupy.ndarray = ndarray
    for name in FUNCTIONS:
        setattr(cupy, name, _function(name))
    cupy.float16, cupy.float32, cupy.float64, cupy.int64 = np.float16, np.float32, np.float64, np.int64
    cupy.newaxis, cupy.inf = None, np.inf
    cupy.cuda = SimpleNamespace(
        Device=_Device,
        get_current_stream=lambda: SimpleNamespace(synchronize=lambda: None),
        runtime=SimpleNamespace(getDeviceCount=lambda: 16, CUDARuntimeError=RuntimeError),
    )

    def raw_kernel(code: str, name: str, options: tuple[str, ...]) -> Any:
        compiled = RawKernel(folder, code, name, options)
        return lambda grid, block, arguments: compiled(grid, block, _opened(arguments))

    cupy.RawKernel = raw_kernel
    cupyx: Any = ModuleType("cupyx")
    cupyx.scatter_add = lambda to, at, values: np.add.at(_opened(to), _opened(at), _opened(values))
    scipy: Any = ModuleType("cupyx.scipy")
    special: Any = ModuleType("cupyx.scipy.special")
    special.erf = lambda x: _closed(np.vectorize(math.erf, otypes=[x.dtype])(_opened(x)))
    return {"cupy": cupy, "cupyx": cupyx, "cupyx.scipy": scipy, "cupyx.scipy.special": special}
