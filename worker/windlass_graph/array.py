"""Arrays that compute at once and remember, inside `autograd.record()`, how they came about.

Invariant: the memory is C-contiguous NumPy or CuPy memory of one device. What an op was given or has made while a tape
was recorded is written to by nobody but its owner between steps: in-place changes inside `record()` are refused.
The tape is the nodes of `windlass_graph.node` with their outputs' memory beside them; it lives as long as an array that
came from it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from windlass_graph import modes
from windlass_graph.device import CPU, Device, device_of
from windlass_graph.evaluate import evaluate
from windlass_graph.node import NO_LABELS, Node, Value
from windlass_graph.op import Attrs, Backward, Op, lookup
from windlass_graph.operand import Operand
from windlass_graph.tensor_type import TensorType, as_float, promoted, type_of
from windlass_proto.errors import UsageError

GRAD_REQS = ("write", "add", "null")


@dataclass(frozen=True, slots=True, eq=False)
class Recorded(Node):
    """A node of a tape: with the memory of its outputs."""

    memory: tuple[Any, ...] = ()
    device: Device = CPU
    leaf: Any = None
    """The array with a gradient of its own that a variable of the tape stands for."""


class Array(Operand):
    """A tensor in memory. Made by `wl.nd.array`, `zeros`, ... and by ops."""

    __slots__ = ("__weakref__", "_grad", "_grad_req", "_memory", "_type", "device", "grad_is_fresh", "value")

    def __init__(self, memory: Any, device: Device = CPU, value: Value | None = None) -> None:
        self._memory = memory
        self._type: TensorType | None = None
        self.device = device
        self.value = value
        """Where it stands on a tape; None if it is on none."""
        self._grad: Array | None = None
        self._grad_req = "null"
        self.grad_is_fresh = False
        """Whether a gradient came since somebody used the last one and set this back."""

    @classmethod
    def applied(cls, op: Op, operands: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """One op, now; recorded if this thread records and an operand is on a tape."""
        if "training" in op.attrs and given.get("training") is None:
            given = {**given, "training": modes.is_training()}
        attrs = op.filled(given)
        device = _common_device(op, operands)
        arrays = _lifted(operands, device)
        outs, types = evaluate(op, attrs, [array._memory for array in arrays], [array.type for array in arrays], device)
        results = [cls(memory, device) for memory in outs]
        if modes.is_recording() and any(array.value is not None for array in arrays):
            inputs = tuple(array.value or array.as_constant() for array in arrays)
            node = Recorded(op, inputs, attrs, "", "", types, NO_LABELS, tuple(outs), device)
            for index, result in enumerate(results):
                result.value = Value(node, index)
        if op.updates is not None and attrs.get("training", True):
            _update(op, attrs, arrays, results)
        return results[0] if op.visible == 1 else tuple(results[: op.visible])

    def as_constant(self) -> Value:
        """A value of the tape that leads nowhere further."""
        op, attrs = _variable()
        node = Recorded(op, (), attrs, "", "", (self.type,), NO_LABELS, (self._memory,), self.device)
        return Value(node, 0)

    @property
    def type(self) -> TensorType:
        if self._type is None:
            self._type = type_of(self._memory)
        return self._type

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._memory.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = self._memory.dtype
        return found

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(self._memory.size)

    @property
    def T(self) -> Self:  # noqa: N802 - NumPy's name
        return self.transpose()

    @property
    def memory(self) -> Any:
        """The NumPy or CuPy array itself: whoever changes it changes this array."""
        return self._memory

    def numpy(self) -> npt.NDArray[Any]:
        """A copy in NumPy's memory, which belongs to the caller."""
        return np.array(self._memory) if self.device.kind == "cpu" else np.asarray(self._memory.get())

    def item(self) -> Any:
        """The Python number of an array of one element.

        Raises:
            UsageError: it has more, or none.
        """
        if self.size != 1:
            raise UsageError("only an array of one element is a number", next_move="Reduce it first.", shape=self.shape)
        return self._memory.item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __len__(self) -> int:
        if not self.shape:
            raise UsageError("an array without axes has no length", next_move="Use item().", shape=self.shape)
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        host = self._memory if self.device.kind == "cpu" else self._memory.get()
        return np.array(host, dtype, copy=copy)

    def __dlpack__(self, **wanted: Any) -> Any:
        return self._memory.__dlpack__(**wanted)

    def __dlpack_device__(self) -> Any:
        return self._memory.__dlpack_device__()

    def __repr__(self) -> str:
        return f"{np.asarray(self)!s}\n<Array {self.type} on {self.device}>"

    def __getitem__(self, key: Any) -> Self:
        from windlass_graph.indexing import getitem

        found: Self = getitem(self, key)
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        self._refuse_change("assigned to")
        parts = tuple(map(self._there, key)) if isinstance(key, tuple) else self._there(key)
        self._memory[parts] = self._there(value)

    def _there(self, given: Any) -> Any:
        """An operand of an assignment as memory of this device; numbers and slices as they are."""
        if isinstance(given, Array):
            return given._memory
        on_host = isinstance(given, np.ndarray | list) and self.device.kind == "gpu"
        return self.device.xp.asarray(given) if on_host else given

    def _refuse_change(self, what: str) -> None:
        if modes.is_recording() and self.value is not None:
            raise UsageError(
                f"an array on a tape was {what} inside record(), and its gradient would be another's",
                next_move="Compute a new array, or write inside autograd.pause().",
                array=self.type,
            )

    def copy(self) -> Self:
        """The same values in memory of its own, on no tape."""
        return type(self)(self._memory.copy(), self.device)

    def detach(self) -> Self:
        """The same memory, on no tape."""
        return type(self)(self._memory, self.device)

    def to(self, device: str | Device) -> Self:
        """A copy on another device; itself where it is there. Not recorded."""
        place = device_of(device)
        if place == self.device:
            return self
        host = np.asarray(self) if self.device.kind == "gpu" and place.kind == "cpu" else self._memory
        return type(self)(place.xp.array(host), place)

    def attach_grad(self, grad_req: str = "write", grad: Array | None = None) -> None:
        """Give it a gradient: `backward()` writes it to `grad` ("write"), adds it ("add") or leaves it ("null").

        It begins a tape: what it was computed from is forgotten.

        Args:
            grad: where the gradient goes; an array of its own, filled with zeros, if None.

        Raises:
            UsageError: the request is none of these, or the dtype is not a float's.
        """
        check_grad_req(grad_req)
        if as_float(self.dtype.name) != self.dtype.name and grad_req != "null":
            raise UsageError("only floats have gradients", next_move="Cast it with astype.", dtype=self.dtype.name)
        self._grad_req = grad_req
        if grad is None and grad_req != "null":
            grad = type(self)(self.device.xp.zeros_like(self._memory), self.device)
        self._grad = grad
        op, attrs = _variable()
        node = Recorded(op, (), attrs, "", "", (self.type,), NO_LABELS, (self._memory,), self.device, self)
        self.value = None if grad_req == "null" else Value(node, 0)

    @property
    def grad(self) -> Array | None:
        """The gradient that `backward()` has left here; None without `attach_grad`."""
        return self._grad

    @property
    def grad_req(self) -> str:
        return self._grad_req

    def adopt(self, memory: Any, grad_memory: Any) -> None:
        """Let values and gradient lie in other memory of their type from now on; both are copied there.

        Between tapes only: what was recorded keeps the old memory.
        """
        assert self._grad is not None, "only arrays with a gradient are moved"
        memory[...], grad_memory[...] = self._memory, self._grad._memory
        self._memory, self._grad._memory = memory, grad_memory
        self.attach_grad(self._grad_req, self._grad)

    def gradient_memory(self) -> Any:
        """Where a gradient that is written may be computed at once; None where it is to be added to what is there."""
        return self._grad._memory if self._grad is not None and self._grad_req == "write" else None

    def take_gradient(self, gradient: Array) -> None:
        """Keep a gradient as `grad_req` says."""
        assert self._grad is not None, "only arrays with a gradient are asked"
        if self._grad_req == "add":
            self._grad._memory += gradient._memory
        elif gradient._memory is not self._grad._memory:
            self._grad._memory[...] = gradient._memory
        self.grad_is_fresh = True

    def backward(self, head_grad: Any = None, *, retain_graph: bool = False) -> None:
        """Gradients of this array by all arrays with a gradient that it came from; see `autograd.backward`."""
        from windlass_graph import autograd

        autograd.backward([self], [head_grad], retain_graph=retain_graph)


@functools.cache
def _variable() -> tuple[Op, Attrs]:
    """What all leaves of tapes are."""
    op = lookup("variable")
    return op, op.filled({})


def check_grad_req(grad_req: str) -> None:
    if grad_req not in GRAD_REQS:
        raise UsageError("this is no grad_req", next_move=f"Known: {', '.join(GRAD_REQS)}.", got=grad_req)


def array_of(source: Any, dtype: Any = None, device: str | Device | None = None) -> Array:
    """An array with memory of its own; float64 lists become float32, as do Python's numbers, NumPy arrays stay."""
    place = device_of(device)
    if isinstance(source, Array):
        source, place = source._memory, source.device if device is None else place
    if dtype is None and not hasattr(source, "dtype"):
        source = np.asarray(source)
        dtype = "float32" if source.dtype.kind == "f" else source.dtype
    host = source.get() if place.kind == "cpu" and hasattr(source, "get") else source
    return Array(place.xp.array(host, dtype=dtype, order="C", copy=True), place)


def _update(op: Op, attrs: Attrs, ins: list[Array], outs: list[Array]) -> None:
    """Write new values of auxiliary inputs where they lie: moving averages."""
    with modes.modes(recording=False):
        assert op.updates is not None, "the caller has looked"
        seen = [each.detach() for each in ins], [each.detach() for each in outs], [None] * len(outs)
        found = op.updates(Backward(attrs, *seen))
    for index, new in found.items():
        ins[index]._memory[...] = new._memory


def _common_device(op: Op, operands: tuple[Any, ...]) -> Device:
    devices = {operand.device for operand in operands if isinstance(operand, Array)}
    if len(devices) > 1:
        raise UsageError(
            f"{op.name} was given arrays of several devices",
            next_move="Bring them to one with to(device).",
            devices=sorted(map(str, devices)),
        )
    return devices.pop()


def _lifted(operands: tuple[Any, ...], device: Device) -> list[Array]:
    """Numbers take the dtype of the arrays they meet; NumPy arrays are taken as they are."""
    if all(isinstance(operand, Array) for operand in operands):
        return list(operands)
    common = promoted([operand.type.dtype for operand in operands if isinstance(operand, Array)])
    return [operand if isinstance(operand, Array) else _lift(operand, common, device) for operand in operands]


def _lift(operand: Any, common: str | None, device: Device) -> Array:
    if isinstance(operand, bool | int | float):
        dtype = as_float(common) if isinstance(operand, float) else common
        return Array(device.xp.asarray(operand, dtype), device)
    if hasattr(operand, "shape") or isinstance(operand, list | tuple):
        return array_of(operand, device=device)
    raise UsageError(
        "this is no operand", next_move="Use an Array, a NumPy array or a number.", got=type(operand).__name__
    )
