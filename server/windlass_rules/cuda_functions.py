"""Functions of one number, in integers and single precision, read from Python into CUDA C.

The codecs' kernels say what is done to an element in small functions: half types to and from float32, chances drawn
from a place. Each of their operations is cast to its width (`U32(...)`, `np.float32(...)`) because Numba would widen
it, so C's unsigned arithmetic of 32 bits is the same operation.

Invariant: as `cuda_loops`: all of a function is read, or it is refused.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from windlass_proto.errors import InvariantError

PRELUDE: Final = """\
static __device__ inline u32 bits_of(float x) { union { float x; u32 bits; } both; both.x = x; return both.bits; }
static __device__ inline float of_bits(u32 bits) { union { u32 bits; float x; } both; both.bits = bits; return both.x; }
"""
"""What the functions call; `u32` is defined before it."""

_CASTS: Final = {"U32": "u32", "np.uint32": "u32", "np.int32": "int", "np.float32": "float"}
_NUMBERS: Final[dict[str, Any]] = {"u32": np.uint32, "int": np.int32, "float": np.float32}
_SIGNS: Final[dict[type, str]] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
    ast.Lt: "<",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
}


def function_source(function: Callable[..., Any], arguments: Mapping[str, str]) -> str:
    """`function` in CUDA C, returning a u32; `arguments`: its arguments' types, "u32" or "float".

    Raises:
        InvariantError: it has a form that is not known here.
    """
    plain = inspect.unwrap(getattr(function, "py_func", function))
    tree = ast.parse(textwrap.dedent(inspect.getsource(plain))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    given = ", ".join(f"{kind} {name}" for name, kind in arguments.items())
    body = _Body(plain.__globals__, arguments)
    lines = [line for statement in tree.body for line in body.statement(statement)]
    return (
        f"static __device__ inline u32 {plain.__name__.lstrip('_')}({given})\n{{\n"
        + "".join(f"    {line}\n" for line in lines)
        + "}\n"
    )


class _Body:
    """Statements of one function, and the types of its names."""

    def __init__(self, constants: Mapping[str, Any], arguments: Mapping[str, str]) -> None:
        self._constants = constants
        self._types = dict(arguments)

    def statement(self, node: ast.stmt) -> list[str]:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return []  # the docstring
        if isinstance(node, ast.Return) and node.value is not None:
            return [f"return {self._value(node.value)[0]};"]
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            value, kind = self._value(node.value)
            declared = "" if name in self._types else f"{kind} "
            self._types.setdefault(name, kind)
            return [f"{declared}{name} = {value};"]
        raise InvariantError("a function has no twin for devices", form=ast.unparse(node)[:80])

    def _value(self, node: ast.expr) -> tuple[str, str]:
        """An expression, and its type."""
        if isinstance(node, ast.Name):
            return (node.id, self._types[node.id]) if node.id in self._types else self._constant(node)
        if isinstance(node, ast.BinOp) and type(node.op) in _SIGNS:
            (left, kind), (right, _) = self._value(node.left), self._value(node.right)
            return f"({left} {_SIGNS[type(node.op)]} {right})", kind
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _SIGNS:
            (left, _), (right, _) = self._value(node.left), self._value(node.comparators[0])
            return f"({left} {_SIGNS[type(node.ops[0])]} {right})", "bool"
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            return f"({' && '.join(self._value(value)[0] for value in node.values)})", "bool"
        if isinstance(node, ast.IfExp):
            (test, _), (yes, kind), (no, _) = map(self._value, (node.test, node.body, node.orelse))
            return f"({test} ? {yes} : {no})", kind
        if isinstance(node, ast.Call):
            return self._call(node)
        return self._constant(node)

    def _call(self, node: ast.Call) -> tuple[str, str]:
        called = ast.unparse(node.func)
        if called in _CASTS:
            if isinstance(node.args[0], ast.Constant):
                return self._constant(node)
            kind = _CASTS[called]
            return f"({kind}){self._value(node.args[0])[0]}", kind
        if isinstance(node.func, ast.Attribute) and node.func.attr == "view":
            value, kind = self._value(node.func.value)
            seen = _CASTS[ast.unparse(node.args[0])]
            if (kind, seen) == ("float", "u32"):
                return f"bits_of({value})", "u32"
            if (kind, seen) == ("u32", "float"):
                return f"of_bits({value})", "float"
        if called == "abs":
            return f"fabs({self._value(node.args[0])[0]})", "float"
        if called in ("max", "min"):
            (left, kind), (right, _) = map(self._value, node.args)
            return f"({left} {'<' if called == 'max' else '>'} {right} ? {right} : {left})", kind
        raise InvariantError("a function has no twin for devices", form=ast.unparse(node)[:80])

    def _constant(self, node: ast.expr) -> tuple[str, str]:
        """A number that is known here: a name of the function's module, or a literal in its cast."""
        if isinstance(node, ast.Name) and node.id in self._constants:
            value = self._constants[node.id]
        elif isinstance(node, ast.Call) and isinstance(node.args[0], ast.Constant):
            value = _NUMBERS[_CASTS[ast.unparse(node.func)]](node.args[0].value)
        else:
            raise InvariantError("a function has no twin for devices", form=ast.unparse(node)[:80])
        if isinstance(value, np.float32):
            return f"of_bits({int(value.view(np.uint32)):#x}u)", "float"
        if isinstance(value, np.uint32 | np.int32):
            return (f"{int(value):#x}u", "u32") if isinstance(value, np.uint32) else (f"{int(value)}", "int")
        raise InvariantError("a number of a function has no width", form=ast.unparse(node)[:80])
