"""The op table: all that the engine knows of an op is its entry here, and every op is one entry.

Invariant: entries are immutable; a name is entered once, when its module is imported, and all modules of
`windlass_graph.ops` are imported with the table's first lookup. What an entry says is enough to infer types, run the op
on NumPy or CuPy, differentiate it, fuse it and plan its memory; no other module tests for an op by name, but for
`variable` and `constant`, which are where a graph begins, and for `passes.algebra`, a table of identities.

Prior art: micrograd's and tinygrad's gradients as tables of one line an op; MXNet's NNVM registry.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from windlass_graph.tensor_type import TensorType
from windlass_graph.threads import Threads, of_process
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import InvariantError, UsageError

Attrs = Mapping[str, Any]
Infer = Callable[[Attrs, Sequence[TensorType]], tuple[TensorType, ...]]
"""Types of the outputs from those of the inputs, either of which may be partly unknown. A contradiction is raised as
ContradictionError with the two sides in words; the caller adds the node."""


@dataclass(slots=True)
class Run:
    """What one run lends to forward functions: the stream of random numbers, scratch memory and threads.

    `scratch` is uninitialised bytes, as many as the op's `scratch` asked for, valid during the call.
    """

    rng: np.random.Generator
    scratch: Any = None
    threads: Threads = field(default_factory=of_process)


Forward = Callable[[Any, Attrs, Sequence[Any], Sequence[Any], Run], None]
"""`forward(xp, attrs, ins, outs, run)` writes all of `outs`; `xp` is numpy or cupy, arrays are C-contiguous."""


class Required:
    """The default of an attribute that has none."""

    def __repr__(self) -> str:
        return "required"


REQUIRED: Final = Required()


class Backward:
    """What a gradient rule sees of one node: its attributes, inputs, outputs, and the gradients of its outputs.

    Operands are symbols or arrays, as in the front that asks; rules compute with `windlass_graph.functions` and the
    operators of operands, and so hold for both, and for gradients of gradients.
    """

    __slots__ = ("_shared", "announce", "attrs", "grads", "ins", "outs", "target")

    def __init__(self, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], grads: Sequence[Any]) -> None:
        self.attrs = attrs
        self.ins = ins
        self.outs = outs
        self.grads = grads
        self._shared: dict[Any, Any] = {}
        self.announce: Callable[[int, Any], None] = _untold
        """A rule of many inputs may tell of each gradient (by its input's index) as soon as it has it."""
        self.target: Callable[[int], Any] = _nowhere
        """Memory in which the gradient of an input may be left, where it is wanted and nothing is added to it."""

    @property
    def x(self) -> Any:
        """The first input."""
        return self.ins[0]

    @property
    def y(self) -> Any:
        """The second input."""
        return self.ins[1]

    @property
    def out(self) -> Any:
        """The first output."""
        return self.outs[0]

    @property
    def g(self) -> Any:
        """The gradient of the first output."""
        return self.grads[0]

    def shared(self, compute: Callable[[Backward], Any]) -> Any:
        """`compute(self)`, once for all inputs of this node."""
        if compute not in self._shared:
            self._shared[compute] = compute(self)
        return self._shared[compute]


def _untold(index: int, grad: Any) -> None:  # noqa: ARG001 - nobody asked to be told
    return


def _nowhere(index: int) -> Any:  # noqa: ARG001 - nobody lends memory
    return None


Rule = Callable[[Backward], Any]


@dataclass(frozen=True, slots=True)
class Missing:
    """A gradient that exists in mathematics and not here. Asking for it is an error that gives the reason."""

    why: str


class Flat:
    """The gradient of what is constant almost everywhere or discrete: comparisons, sign, floor, argmax. No path."""


FLAT: Final = Flat()

Gradient = Sequence[Rule | Flat | Missing] | Callable[[Backward, int], Any] | Flat | Missing
"""One rule an input, or one for all by its index, or why there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One entry.

    Args:
        name: as it is called in `wl.nd` and `wl.sym`.
        inputs: their names, or a function of the attributes that gives them; a last one `"*data"` takes any number.
        infer: types of the outputs.
        forward: computes the outputs.
        gradient: see `Gradient`.
        attrs: defaults by name; `REQUIRED` where there is none.
        complete: types of the inputs from all that is known, for those that the op can tell (a layer's weight).
        parameters: names of inputs that a symbol makes as variables of its own where they are not given.
        auxiliary: those of `parameters` that no gradient reaches and training updates (moving averages).
        updates: for training, the new values of auxiliary inputs by index, from what a gradient rule would see.
        visible: how many outputs users see; those behind it are for the gradient.
        elementwise: each element of the outputs depends on the same element of the (broadcast) inputs alone.
        same_shape: the output has the shape of the first input, which therefore is told by the output's; elementwise
            ops of one input have it unsaid.
        scalar: of an elementwise op, its entry in `scalar_code.SCALARS`, by which it is fused. The entry reads the
            leading inputs; attributes in their order are its constants.
        view: the output is the first input's memory in another shape; `forward` is not called.
        inplace: indices of inputs into whose memory an output of as many bytes may be written.
        unread: indices of inputs of which the type alone is taken, never an element.
        random: draws from `run.rng`, so two like nodes are not one.
        prepare: `prepare(xp, attrs, in_types, out_types)` gives the forward function for just these: work that depends
            on nothing else is done once, when a program is made.
        scratch: bytes of scratch memory, from attributes and the inputs' types.
        check: refuses wrong attributes, with UsageError, before anything is made of them.
        doc: one line for the list of ops.
    """

    name: str
    inputs: tuple[str, ...] | Callable[[Attrs], tuple[str, ...]]
    infer: Infer
    forward: Forward
    gradient: Gradient
    attrs: Attrs = field(default_factory=dict)
    complete: Callable[[Attrs, Sequence[TensorType]], Sequence[TensorType]] | None = None
    parameters: frozenset[str] = frozenset()
    auxiliary: frozenset[str] = frozenset()
    updates: Callable[[Backward], dict[int, Any]] | None = None
    visible: int = 1
    elementwise: bool = False
    same_shape: bool = False
    scalar: str = ""
    view: bool = False
    inplace: tuple[int, ...] = ()
    unread: tuple[int, ...] = ()
    random: bool = False
    prepare: Callable[[Any, Attrs, Sequence[TensorType], Sequence[TensorType]], Forward] | None = None
    scratch: Callable[[Attrs, Sequence[TensorType]], int] | None = None
    check: Callable[[Attrs], None] | None = None
    doc: str = ""

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def input_names(self, attrs: Attrs) -> tuple[str, ...]:
        return self.inputs(attrs) if callable(self.inputs) else self.inputs

    def filled(self, given: Mapping[str, Any]) -> Attrs:
        """Attributes with the defaults filled in.

        Raises:
            UsageError: an attribute is unknown or missing, or its value is refused by the op.
        """
        if given.keys() - self.attrs.keys():
            wrong = sorted(given.keys() - self.attrs.keys())[0]
            move = did_you_mean(wrong, self.attrs)
            raise UsageError(f"{self.name} has no attribute {wrong!r}", next_move=move)
        full = {name: _frozen(given.get(name, default)) for name, default in self.attrs.items()}
        for name, value in full.items():
            if value is REQUIRED:
                raise UsageError(f"{self.name} needs {name}=", next_move=f"Its attributes: {', '.join(self.attrs)}.")
        if self.check is not None:
            self.check(full)
        return MappingProxyType(full)


def _frozen(value: Any) -> Any:
    """Lists become tuples, NumPy's numbers Python's and dtypes their names, so that attributes are hashable and print
    alike."""
    if type(value) in (int, float, bool, str, type(None)):
        return value
    if isinstance(value, list | tuple):
        return tuple(_frozen(each) for each in value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return np.dtype(value).name
    return value


_TABLE: Final[dict[str, Op]] = {}
FAMILIES: Final = (
    "windlass_graph.ops.leaves",
    "windlass_graph.ops.elementwise",
    "windlass_graph.ops.activations",
    "windlass_graph.ops.trigonometry",
    "windlass_graph.ops.reductions",
    "windlass_graph.ops.shapes",
    "windlass_graph.ops.linear",
    "windlass_graph.ops.indexing",
    "windlass_graph.ops.arrangement",
    "windlass_graph.ops.losses",
    "windlass_graph.ops.randomness",
    "windlass_graph.ops.convolution",
    "windlass_graph.ops.pooling",
    "windlass_graph.ops.normalisation",
    "windlass_graph.ops.sequence",
    "windlass_graph.ops.recurrent",
    "windlass_graph.ops.attention",
)
_LOADED: list[bool] = []


def enter(*ops: Op) -> None:
    """Put entries into the table; called once by each module of `windlass_graph.ops`."""
    for op in ops:
        if op.name in _TABLE:
            raise InvariantError("two ops carry one name", name=op.name)
        _TABLE[op.name] = op


def table() -> Mapping[str, Op]:
    """Every op by name."""
    if not _LOADED:
        for family in FAMILIES:
            importlib.import_module(family)
        _LOADED.append(True)
    return _TABLE


def lookup(name: str) -> Op:
    """The entry of an op.

    Raises:
        UsageError: there is none; the nearest name is said.
    """
    found = table().get(name)
    if found is None:
        raise UsageError(f"there is no op {name!r}", next_move=did_you_mean(name, table()))
    return found
