"""`wl.nd`: arrays that compute at once, and every op as a function of them."""

from __future__ import annotations

from typing import Any

from windlass_graph import composed
from windlass_graph import device as devices
from windlass_graph.array import Array, array_of
from windlass_graph.device import Device, device_of
from windlass_graph.functions import function
from windlass_graph.mxnet_arrays import load_mxnet
from windlass_graph.op import table
from windlass_proto.arguments import unknown_name

__all__ = [
    "Array",
    "arange",
    "array",
    "full",
    "load_mxnet",
    "ones",
    "random_normal",
    "random_uniform",
    "seed",
    "waitall",
    "zeros",
]


def array(source: Any, dtype: Any = None, device: str | Device | None = None) -> Array:
    """An array with memory of its own; lists of Python's floats become float32."""
    return array_of(source, dtype, device)


def zeros(shape: Any, dtype: Any = "float32", device: str | Device | None = None) -> Array:
    place = device_of(device)
    return Array(place.xp.zeros(shape, dtype), place)


def ones(shape: Any, dtype: Any = "float32", device: str | Device | None = None) -> Array:
    place = device_of(device)
    return Array(place.xp.ones(shape, dtype), place)


def full(shape: Any, value: float, dtype: Any = "float32", device: str | Device | None = None) -> Array:
    place = device_of(device)
    return Array(place.xp.full(shape, value, dtype), place)


def arange(*bounds: float, dtype: Any = "float32", device: str | Device | None = None) -> Array:
    place = device_of(device)
    return Array(place.xp.arange(*bounds, dtype=dtype), place)


def random_uniform(low: float = 0.0, high: float = 1.0, shape: Any = (1,), device: str | Device | None = None) -> Array:
    place = device_of(device)
    return array_of(devices.stream(place).uniform(low, high, shape), "float32", place)


def random_normal(mean: float = 0.0, std: float = 1.0, shape: Any = (1,), device: str | Device | None = None) -> Array:
    place = device_of(device)
    return array_of(devices.stream(place).normal(mean, std, shape), "float32", place)


def seed(value: int) -> None:
    """Begin this thread's random numbers anew."""
    devices.seed(value)


def waitall(device: str | Device | None = None) -> None:
    """Wait until a GPU has computed all that it was given; on a CPU nothing is ever under way."""
    place = device_of(device)
    if place.kind == "gpu":
        place.xp.cuda.Device(place.index).synchronize()


def __getattr__(name: str) -> Any:
    if name in composed.__all__:
        return getattr(composed, name)
    if name.startswith("_") or name not in table():
        raise unknown_name("windlass.nd", name, [*__all__, *composed.__all__, *table()])
    return function(name)
