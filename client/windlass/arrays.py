"""Arrays of any family at the door: NumPy inside, the caller's family outside.

Invariant: what leaves `as_numpy` shares memory with what came in wherever the family allows it (DLPack, CPU). Of arrays
on a device it is a copy (`device_arrays`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass.device_arrays import OnDevice, maker_like, on_device
from windlass_proto.errors import UsageError

Array = npt.NDArray[Any]


def as_numpy(name: str, value: Any) -> Array:
    """`value` as a NumPy array of this machine's byte order, without a copy where its family shares memory.

    Raises:
        UsageError: it is no array, or lies on another device.
    """
    if is_bfloat16(value):
        return _bits_of(value)
    if isinstance(value, np.ndarray):
        if not value.dtype.isnative:
            return value.astype(value.dtype.newbyteorder("="))
        return value if type(value) is np.ndarray else np.asarray(value)
    device = on_device(name, value)
    if device is not None:
        return device.to_host()
    if hasattr(value, "detach"):  # torch refuses DLPack of what requires a gradient
        value = value.detach()
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, TypeError, RuntimeError) as cause:
            raise UsageError(
                "an array cannot be read on this host",
                name=name,
                type=type(value).__name__,
                reason=str(cause)[:200],
                next_move="Copy it to the CPU first.",
            ) from cause
    if np.isscalar(value) or isinstance(value, list | tuple):
        return np.asarray(value)
    raise UsageError(
        "a value is not an array",
        name=name,
        type=type(value).__name__,
        next_move="Pass NumPy arrays, or anything with __dlpack__.",
    )


def as_target(name: str, value: Any) -> Array:
    """`value` as a NumPy array that shares its memory and may be written to.

    Raises:
        UsageError: it does not share, or must not be written to.
    """
    if is_bfloat16(value):
        array = _bits_of(value)
    elif isinstance(value, np.ndarray):
        array = value if type(value) is np.ndarray else np.asarray(value)
    elif on_device(name, value) is not None:
        raise UsageError(
            "an out array of rows lies on a device",
            name=name,
            type=type(value).__name__,
            next_move="Leave out= away: rows come back as arrays of the gradients' family.",
        )
    elif type(value).__module__.partition(".")[0] == "torch":
        array = value.detach().numpy()
    elif hasattr(value, "__dlpack__"):
        array = as_numpy(name, value)
    else:
        raise UsageError(
            "an out value is not an array", name=name, type=type(value).__name__, next_move="Pass arrays to write to."
        )
    if not array.flags.writeable or not array.dtype.isnative:
        raise UsageError(
            "an out array cannot be written to",
            name=name,
            writeable=array.flags.writeable,
            dtype=array.dtype.str,
            next_move="Leave out= away and use what the call returns.",
        )
    return array


def is_bfloat16(value: Any) -> bool:
    """Does `value` hold bfloat16, of ml_dtypes (also JAX's) or of PyTorch? NumPy has no such type."""
    dtype = getattr(value, "dtype", None)
    return getattr(dtype, "name", None) == "bfloat16" or str(dtype) == "torch.bfloat16"


def dtype_name(dtype: Any) -> str:
    """The name of a dtype of NumPy, ml_dtypes, JAX or PyTorch, or one given as a name; what is none comes as it is."""
    said = str(dtype).removeprefix("torch.")
    if "bfloat16" in (said, getattr(dtype, "name", None)):
        return "bfloat16"
    try:
        return np.dtype(said if said != str(dtype) else dtype).name
    except TypeError:
        return said[:40]


def _bits_of(value: Any) -> Array:
    """The bits of bfloat16 as uint16, sharing memory where the family does."""
    if type(value).__module__.partition(".")[0] == "torch":
        bits: Array = value.detach().view(sys.modules["torch"].int16).numpy().view(np.uint16)
        return bits
    return np.asarray(value).view(np.uint16)


def bfloat16_family_of(value: Any) -> Callable[[Array], Any]:
    """How to turn the bits of bfloat16 into the family of `value`, sharing memory; into bits where it has none."""
    if type(value).__module__.partition(".")[0] == "torch":
        torch: Any = sys.modules["torch"]
        return lambda bits: torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    if is_bfloat16(value):
        return lambda bits: bits.view(np.asarray(value).dtype)
    return lambda bits: bits


def family_of(value: Any) -> Callable[[Array], Any]:
    """How to turn a NumPy array into the family of `value`, sharing memory; on a device it is a copy."""
    on_its_device = maker_like(value)
    if on_its_device is not None:
        return on_its_device
    module = type(value).__module__.partition(".")[0]
    if module == "torch":
        return sys.modules["torch"].from_numpy  # type: ignore[no-any-return]
    if module in ("jax", "jaxlib"):
        return sys.modules["jax"].numpy.asarray  # type: ignore[no-any-return]
    return lambda array: array


def check_like(name: str, array: Array | OnDevice, shape: tuple[int, ...], dtype: np.dtype[Any], *, what: str) -> None:
    """Does `array` have the declared shape and dtype?

    Raises:
        UsageError: it does not; both are named.
    """
    if array.shape != shape:
        raise UsageError(
            f"{what} has another shape than its tensor",
            name=name,
            got=array.shape,
            declared=shape,
            next_move="Pass an array of the declared shape.",
        )
    if array.dtype != dtype:
        raise UsageError(
            f"{what} has another dtype than its tensor",
            name=name,
            got=array.dtype,
            declared=dtype,
            next_move=f"Convert it, for example with array.astype('{dtype}').",
        )
