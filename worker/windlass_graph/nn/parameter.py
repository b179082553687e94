"""Parameters: the arrays of a block that training changes, on one device or on several.

Invariant: a parameter has a copy on each of its devices, and all copies have its shape and dtype. Its name is the path
to it from the block on which `initialize` was called ("features.0.weight"), so it is the same on every worker, and with
the seed it determines the first values. A shape may be partly unknown until a first forward tells it; until then the
parameter is deferred and has no copies. Values are set in place: arrays that `data()` gave stay those of the parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_graph.array import Array, array_of, check_grad_req
from windlass_graph.device import Device, device_of
from windlass_graph.initializers import Initializer, drawn, resolved, whole_seed
from windlass_graph.nn.trace import current_device, current_trace
from windlass_graph.tensor_type import Shape
from windlass_proto.errors import UsageError


@dataclass(frozen=True, slots=True)
class Deferred:
    """How a parameter will begin as soon as its shape is known."""

    init: Initializer
    seed: int
    devices: tuple[Device, ...]


class Parameter:
    """A tensor that a block learns.

    Args:
        shape: axes may be None (unknown until the first forward); None is a wholly unknown one.
        dtype: of the values and of the gradients.
        init: how it begins, whatever initializer the whole net is given; None takes the net's.
        grad_req: "write", "add" or "null", as in `Array.attach_grad`.
        lr_mult: factor of the learning rate.
        decay_mult: factor of the weight decay.
        differentiable: False for what no gradient reaches and forward changes, as moving averages.
    """

    def __init__(
        self,
        shape: Sequence[int | None] | None = None,
        dtype: Any = "float32",
        init: Initializer | str | None = None,
        *,
        grad_req: str = "write",
        lr_mult: float = 1.0,
        decay_mult: float = 1.0,
        differentiable: bool = True,
    ) -> None:
        check_grad_req(grad_req)
        self.name = ""
        self.shape: Shape | None = None if shape is None else tuple(shape)
        self.dtype: str = np.dtype(dtype).name
        self.init = None if init is None else resolved(init)
        self.lr_mult = lr_mult
        self.decay_mult = decay_mult
        self.differentiable = differentiable
        self._grad_req = grad_req if differentiable else "null"
        self._arrays: dict[Device, Array] = {}
        self._deferred: Deferred | None = None

    def __repr__(self) -> str:
        axes = "?" if self.shape is None else ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"<{type(self).__name__} {self.name or 'unnamed'} {self.dtype}({axes})>"

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise UsageError(
            "a parameter is no operand, its values are",
            next_move="Write parameter.data() in forward.",
            parameter=self.name or "unnamed",
        )

    @property
    def has_shape(self) -> bool:
        return self.shape is not None and None not in self.shape

    @property
    def is_initialized(self) -> bool:
        return bool(self._arrays)

    @property
    def is_deferred(self) -> bool:
        """Initialised but for the shape that a first forward will tell."""
        return self._deferred is not None

    @property
    def size(self) -> int:
        """Elements; 0 while the shape is unknown."""
        return int(np.prod(self._known_shape, dtype=np.int64)) if self.has_shape else 0

    @property
    def _known_shape(self) -> tuple[int, ...]:
        assert self.shape is not None, "the shape is unknown"
        return tuple(axis for axis in self.shape if axis is not None)

    def initialize(
        self,
        init: Initializer | str = "xavier",
        *,
        device: str | Device | Sequence[str | Device] | None = None,
        seed: int = 0,
        force: bool = False,
    ) -> None:
        """Draw first values, at once or as soon as the shape is known. What has values keeps them unless `force`.

        Args:
            init: unless the parameter has one of its own.
            device: where it shall lie; every device gets the same values.
            seed: with the parameter's name and its initializer it determines the values.
            force: draw again, into the same arrays if the devices are the same.
        """
        whole_seed(seed)
        if self._arrays and not force:
            return
        self._deferred = Deferred(self.init or resolved(init), seed, devices_of(device))
        if self.has_shape:
            self.finish_initialization()

    def finish_initialization(self) -> None:
        """Draw what was deferred.

        Raises:
            UsageError: the shape is still unknown.
        """
        if self._deferred is None:
            return
        if not self.has_shape:
            raise UsageError(
                "a parameter's shape cannot be told",
                next_move="Give the layer its input size, or use the layer in forward with an op that tells it.",
                parameter=self.name or "unnamed",
                known=self.shape,
            )
        waiting, self._deferred = self._deferred, None
        values = drawn(waiting.init, self.name, self._known_shape, self.dtype, waiting.seed)
        if list(self._arrays) == list(waiting.devices):
            self.set_data(values)
        else:
            self._place(values, waiting.devices)

    def _place(self, values: npt.NDArray[Any], devices: Sequence[Device]) -> None:
        self._arrays = {device: array_of(values, self.dtype, device) for device in devices}
        self._attach()

    def _attach(self) -> None:
        for array in self._arrays.values():
            array.attach_grad(self._grad_req)

    def data(self, device: str | Device | None = None) -> Any:
        """The values: inside `forward` the copy on the device of the inputs, or a symbol while a block is traced.

        Raises:
            UsageError: it is not initialised, does not lie on that device, or lies on several and none was named.
        """
        trace = current_trace()
        if trace is not None:
            return trace.symbol(self)
        if len(self._arrays) == 1 and device is None:
            return next(iter(self._arrays.values()))
        place = current_device() if device is None else device_of(device)
        found = None if place is None else self._arrays.get(place)
        if found is None:
            raise self._absent(place)
        return found

    def _absent(self, place: Device | None) -> UsageError:
        name = self.name or "unnamed"
        if self._deferred is not None:
            return UsageError(
                "a parameter waits for its shape",
                next_move="Call the net once with data, or give the layer its input size.",
                parameter=name,
                known=self.shape,
            )
        if not self._arrays:
            return UsageError(
                "a parameter is not initialised", next_move="Call initialize() on the net first.", parameter=name
            )
        held = ", ".join(map(str, self._arrays))
        if place is None:
            return UsageError(
                "a parameter lies on several devices", next_move="Say which: data(device).", parameter=name, on=held
            )
        return UsageError(
            "a parameter does not lie on this device",
            next_move="Name the device in initialize(device=[...]).",
            parameter=name,
            device=place,
            on=held,
        )

    def grad(self, device: str | Device | None = None) -> Array:
        """The gradient that `backward()` has left.

        Raises:
            UsageError: as `data`; or its grad_req is "null".
        """
        found: Array | None = self.data(device).grad
        if found is None:
            raise UsageError("a parameter has no gradient", parameter=self.name or "unnamed", grad_req=self._grad_req)
        return found

    def host_values(self) -> npt.NDArray[Any]:
        """The values in host memory: of moving averages, which each device moves by what it sees, their mean."""
        copies = self.list_data()
        if self.differentiable or len(copies) == 1:
            return np.asarray(copies[0])
        return np.mean([np.asarray(copy) for copy in copies], axis=0, dtype=np.float64).astype(self.dtype)

    def list_devices(self) -> list[Device]:
        return list(self._arrays)

    def list_data(self) -> list[Array]:
        """The copies, in the order of the devices.

        Raises:
            UsageError: it is not initialised.
        """
        if not self._arrays:
            raise self._absent(None)
        return list(self._arrays.values())

    def list_grad(self) -> list[Array]:
        """The gradients of the copies, in the order of the devices; none if grad_req is "null"."""
        return [array.grad for array in self.list_data() if array.grad is not None]

    def set_data(self, values: Any) -> None:
        """Write values to every copy; a deferred parameter takes its shape from them and begins so.

        Raises:
            UsageError: the shape is another, or the parameter was never initialised.
        """
        host = np.asarray(values)
        self.check_shape(host.shape)
        if self._deferred is not None:
            self.shape, waiting = host.shape, self._deferred
            self._deferred = None
            self._place(host.astype(self.dtype), waiting.devices)
            return
        for array in self.list_data():
            array.memory[...] = array.device.xp.asarray(host, self.dtype)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse values of another shape.

        Raises:
            UsageError: they have one.
        """
        fits = self.shape is None or (
            len(shape) == len(self.shape)
            and all(known in (None, given) for known, given in zip(self.shape, shape, strict=True))
        )
        if not fits:
            raise UsageError(
                "values have another shape than their parameter",
                parameter=self.name or "unnamed",
                expected=self.shape,
                got=shape,
            )

    def load(self, values: npt.NDArray[Any], device: str | Device | Sequence[str | Device] | None = None) -> None:
        """Take values as `set_data`, and begin with them on `device` if nothing has been initialised yet."""
        if self._arrays or self._deferred is not None:
            self.set_data(values)
            return
        self.check_shape(values.shape)
        self.shape = values.shape
        self._place(values.astype(self.dtype), devices_of(device))

    def reset_device(self, device: str | Device | Sequence[str | Device]) -> None:
        """Bring it to other devices, with its values; gradients begin anew."""
        values = np.asarray(self.list_data()[0])
        self._place(values, devices_of(device))

    def zero_grad(self) -> None:
        for array in self._arrays.values():
            if array.grad is not None:
                array.grad.memory.fill(0)

    def cast(self, dtype: Any) -> None:
        """Keep the values in another dtype; arrays that `data()` gave before are no longer the parameter's."""
        self.dtype = np.dtype(dtype).name
        for device, array in self._arrays.items():
            self._arrays[device] = array_of(array.memory, self.dtype, device)
        self._attach()

    @property
    def grad_req(self) -> str:
        return self._grad_req

    @grad_req.setter
    def grad_req(self, grad_req: str) -> None:
        check_grad_req(grad_req)
        if not self.differentiable and grad_req != "null":
            raise UsageError(
                "no gradient reaches this parameter", next_move='Its grad_req is "null".', parameter=self.name
            )
        if grad_req != self._grad_req:
            self._grad_req = grad_req
            self._attach()


class Constant(Parameter):
    """Values that a block holds and nobody learns: they are saved and moved with its parameters."""

    def __init__(self, value: Any) -> None:
        values = np.asarray(value.numpy() if isinstance(value, Array) else value)
        if values.dtype == np.float64 and not hasattr(value, "dtype"):
            values = values.astype(np.float32)
        self.value = values
        super().__init__(values.shape, values.dtype, _Given(values), differentiable=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Given:
    """The initializer of what has its values already."""

    value: npt.NDArray[Any]

    def draw(self, name: str, shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[Any]:
        return self.value


def devices_of(device: str | Device | Sequence[str | Device] | None) -> tuple[Device, ...]:
    """The devices meant: one, or several.

    Raises:
        UsageError: none, or one twice.
    """
    listed = device if isinstance(device, list | tuple) else [device]
    found = tuple(device_of(each) for each in listed)  # type: ignore[arg-type]
    if not found or len(set(found)) != len(found):
        raise UsageError("a parameter lies on each device once", got=[str(each) for each in found])
    return found
