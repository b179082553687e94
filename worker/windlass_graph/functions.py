"""Every op as a function of symbols or of arrays: `relu(x)`, `sum(x, axis=1)`. Gradient rules are written with these.

Invariant: a function does what its entry in the op table says on either front; the front is that of its first operand
that has one, and numbers and NumPy arrays are lifted into it. Resolved by name (PEP 562), from the op table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from windlass_graph.op import Op, lookup, table
from windlass_proto.arguments import unknown_name
from windlass_proto.errors import UsageError


def apply(op: Op, operands: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """One output, or a tuple of all visible ones, by the front of the first operand that has one.

    A front is a class with `applied`, as Symbol and Array have it. The class is asked for the name: `isinstance` of a
    Protocol took a tenth of the time of a small op.
    """
    for operand in operands:
        applied: Callable[..., Any] | None = getattr(type(operand), "applied", None)
        if applied is not None:
            return applied(op, operands, given)
    raise UsageError(
        f"{op.name} was given neither a symbol nor an array",
        next_move="Make one with wl.nd.array(...) or wl.sym.Variable(...).",
        got=[type(operand).__name__ for operand in operands],
    )


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {}


def function(name: str) -> Callable[..., Any]:
    """The function of one op.

    Raises:
        UsageError: there is no such op.
    """
    found = _FUNCTIONS.get(name)
    if found is None:
        op = lookup(name)

        def call(*operands: Any, **given: Any) -> Any:
            return apply(op, operands, given)

        call.__name__ = call.__qualname__ = name
        call.__doc__ = described(op)
        found = _FUNCTIONS[name] = call
    return found


def described(op: Op) -> str:
    """The entry in words: what it computes, its inputs, its attributes with their defaults."""
    inputs = "by attributes" if callable(op.inputs) else ", ".join(op.inputs) or "none"
    attrs = ", ".join(f"{name}={default!r}" for name, default in op.attrs.items()) or "none"
    return f"{op.doc or op.name}\n\nInputs: {inputs}. Attributes: {attrs}."


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in table():
        raise unknown_name("windlass_graph.functions", name, table())
    return function(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *table()])
