"""Arrays for a graph's variables: those that were given, checked, and those that are made.

Invariant: a binding has an array of the inferred type for every variable of its graph, all on one device, and a
gradient array for each argument whose request is "write" or "add". Arrays that were given as `wl.nd` arrays are shared
with the caller; anything else was copied.

Prior art: MXNet's bind and simple_bind, whose words these are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from windlass_graph.array import Array, array_of, check_grad_req
from windlass_graph.device import Device, device_of
from windlass_graph.graph import Graph
from windlass_graph.inference import infer
from windlass_graph.node import Node, Value
from windlass_graph.tensor_type import TensorType, as_float
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError

DEFAULT_DTYPE: Final = "float32"
GradReq = str | Mapping[str, str] | Sequence[str]
Given = Mapping[str, Any] | Sequence[Any] | None


@dataclass(frozen=True, slots=True)
class Binding:
    """What an executor computes with.

    Args:
        device: where all arrays lie.
        args: by name, in the graph's order.
        grads: of the arguments that have one.
        reqs: "write", "add" or "null" for every argument.
        auxiliaries: by name.
        fresh: names of arguments and auxiliaries whose arrays were made for this binding and hold zeros.
    """

    device: Device
    args: dict[str, Array]
    grads: dict[str, Array]
    reqs: dict[str, str]
    auxiliaries: dict[str, Array]
    fresh: tuple[str, ...] = field(default=())

    @property
    def types(self) -> dict[str, TensorType]:
        return {name: array.type for name, array in [*self.args.items(), *self.auxiliaries.items()]}


def bound(
    graph: Graph, device: str | Device | None, args: Given, args_grad: Given, grad_req: GradReq, aux_states: Given
) -> Binding:
    """A binding to arrays that exist already.

    Raises:
        UsageError: an array is missing or surplus, lies elsewhere, or has a type that the graph refuses.
    """
    place = device_of(device)
    values = _taken(_listed(graph.arguments, args, "arguments"), place, share=True)
    states = _taken(_listed(graph.auxiliaries, aux_states, "auxiliary states"), place, share=True)
    _refuse_unbound(graph.arguments, values, "arguments")
    _refuse_unbound(graph.auxiliaries, states, "auxiliary states")
    infer(graph, {name: array.type for name, array in [*values.items(), *states.items()]})
    given = _listed(graph.arguments, args_grad, "gradients")
    reqs = requests(graph, {name: array.type for name, array in values.items()}, grad_req)
    reqs = {name: req if name in given else "null" for name, req in reqs.items()}
    wanted = {name: grad for name, grad in given.items() if reqs[name] != "null"}
    grads = _taken(wanted, place, share=False)
    for name, grad in grads.items():
        if grad.type != values[name].type:
            raise UsageError(
                f"the gradient array of {name!r} is of another type", argument=values[name].type, gradient=grad.type
            )
    return Binding(place, values, grads, reqs, states)


def allocated(
    graph: Graph,
    device: str | Device | None,
    types: Mapping[str, TensorType],
    reqs: Mapping[str, str],
    arrays: Mapping[str, Array],
    grads: Mapping[str, Array],
) -> Binding:
    """A binding for variables of known types. Of `arrays` and `grads` those are taken that have the right name, type
    and device; all others are made and filled with zeros."""
    place = device_of(device)

    def taken(name: str, there: Mapping[str, Array]) -> Array:
        found = there.get(name)
        if found is not None and found.type == types[name] and found.device == place:
            return found
        return Array(place.xp.zeros(types[name].known_shape, types[name].known_dtype), place)

    args = {node.name: taken(node.name, arrays) for node in graph.arguments}
    states = {node.name: taken(node.name, arrays) for node in graph.auxiliaries}
    kept_grads = {name: taken(name, grads) for name in args if reqs[name] != "null"}
    fresh = [name for name, array in [*args.items(), *states.items()] if arrays.get(name) is not array]
    return Binding(place, args, kept_grads, dict(reqs), states, tuple(fresh))


def types_of_variables(graph: Graph, known: Mapping[str, TensorType]) -> dict[str, TensorType]:
    """The type of every variable; a dtype that nothing tells is float32.

    Raises:
        UsageError: types contradict each other, or a shape cannot be told.
    """
    types = infer(graph, known)
    told = {node.name: types[Value(node, 0)] for node in graph.variables}
    told = {name: TensorType(each.shape, each.dtype or DEFAULT_DTYPE) for name, each in told.items()}
    missing = [name for name, each in told.items() if not each.is_known]
    if missing:
        raise UsageError("shapes of variables cannot be told", next_move="Give them.", variables=", ".join(missing))
    infer(graph, told)
    return told


def requests(graph: Graph, types: Mapping[str, TensorType], grad_req: GradReq) -> dict[str, str]:
    """The request of each argument. One word for all leaves integers out; what a mapping omits is "null"."""
    names = [node.name for node in graph.arguments]
    if isinstance(grad_req, str):
        check_grad_req(grad_req)
        return {name: grad_req if is_float(types[name]) else "null" for name in names}
    if isinstance(grad_req, Mapping):
        _refuse_unknown(grad_req, names, "grad_req")
        found = {name: grad_req.get(name, "null") for name in names}
    else:
        _refuse_length(grad_req, names, "grad_req")
        found = dict(zip(names, grad_req, strict=True))
    for name, req in found.items():
        check_grad_req(req)
        if req != "null" and not is_float(types[name]):
            raise UsageError("only floats have gradients", argument=name, type=types[name], grad_req=req)
    return found


def is_layer_parameter(graph: Graph, variable: Node) -> bool:
    """Whether a variable is read only as what ops call their parameter (a weight, a bias, a label)."""
    return all(
        _input_name(node, index) in node.op.parameters
        for node in graph.nodes
        for index, value in enumerate(node.inputs)
        if value.node is variable
    )


def _input_name(node: Node, index: int) -> str:
    names = node.op.input_names(node.attrs)
    return names[min(index, len(names) - 1)]


def is_float(type_: TensorType) -> bool:
    return type_.dtype is not None and as_float(type_.dtype) == type_.dtype


def _listed(nodes: Sequence[Node], given: Given, what: str) -> dict[str, Any]:
    """By name what was given by name or in order; None in a list is left out."""
    names = [node.name for node in nodes]
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        _refuse_length(given, names, what)
        given = dict(zip(names, given, strict=True))
    _refuse_unknown(given, names, what)
    return {name: given[name] for name in names if given.get(name) is not None}


def _taken(given: Mapping[str, Any], device: Device, *, share: bool) -> dict[str, Array]:
    """Arrays of `given`; a gradient that is no Array could not be seen by who gave it, so it is refused."""
    found = {}
    for name, value in given.items():
        if isinstance(value, Array):
            if value.device != device:
                raise UsageError(
                    f"the array of {name!r} lies on another device",
                    next_move="Bring it over with to(device).",
                    array=value.device,
                    executor=device,
                )
            found[name] = value
        elif share:
            found[name] = array_of(value, device=device)
        else:
            raise UsageError(
                f"the gradient array of {name!r} would be a copy",
                next_move="Give a wl.nd array, into which gradients are written.",
                got=type(value).__name__,
            )
    return found


def _refuse_unbound(nodes: Sequence[Node], given: Mapping[str, Array], what: str) -> None:
    missing = [node.name for node in nodes if node.name not in given]
    if missing:
        raise UsageError(f"{what} are unbound", next_move="Give an array for each.", missing=", ".join(missing))


def _refuse_unknown(given: Iterable[str], names: Sequence[str], what: str) -> None:
    for name in given:
        if name not in names:
            raise UsageError(f"{what}: the graph has no {name!r}", next_move=did_you_mean(name, names))


def _refuse_length(given: Sequence[Any], names: Sequence[str], what: str) -> None:
    if len(given) != len(names):
        raise UsageError(
            f"{what}: a list has one entry for each argument", names=", ".join(names), wanted=len(names), got=len(given)
        )


def type_given(shape: Any, dtype: Any) -> TensorType:
    """A type from a shape and a dtype, either of which may be None.

    Raises:
        UsageError: the shape is no sequence of sizes.
    """
    if shape is None:
        axes = None
    elif isinstance(shape, tuple | list) and all(isinstance(n, int | np.integer) and n >= 0 for n in shape):
        axes = tuple(int(n) for n in shape)
    else:
        raise UsageError("this is no shape", next_move="Give a tuple of sizes.", got=shape)
    return TensorType(axes, None if dtype is None else np.dtype(dtype).name)
