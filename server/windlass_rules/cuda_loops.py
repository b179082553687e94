"""A kernel's Python source read into CUDA C, operation by operation.

Two forms are read. An update is one loop, `for i in range(n)`, over assignments of `+ - * /`, comparisons, `min`,
`max`, `abs` and `np.sqrt`. A kernel that measures goes chunk by chunk (`for at in range(0, n, CHUNK)`): such a loop
over the chunk, and `add_squares` of what is measured. What comes before the loop gives names to runs of the arrays and
to the numbers of a step.

Invariant: every operation of the source is one of the twin's, in brackets, so that C groups as Python does. A kernel
of another form is refused in words, not read in part.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Collection
from typing import Any, Final

from windlass_proto.errors import UsageError
from windlass_rules.rule import Kernel

_ARITHMETIC: Final[dict[type, str]] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_COMPARISONS: Final[dict[type, str]] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "=="}
_FUNCTIONS: Final = {"min": ("lesser", 2), "max": ("greater", 2), "abs": ("fabs", 1), "sqrt": ("sqrt", 1)}


class ElementLoop:
    """What a kernel's source says of element i, in CUDA C.

    names: declarations of its vectors and numbers. body: the loop's statements. squares: what its squares are added of,
    in order, where it measures. numbers: how many of the step's numbers it reaches for.
    """

    def __init__(self, kernel: Kernel) -> None:
        function = function_of(kernel)
        self._kernel = function.name
        self._vectors = {"w": "w[i]", "g": "g_i"}
        self._slots = 0
        self._own: set[str] = set()  # names of the kernel's own arrays, of which an element is a number here
        self._locals: set[str] = {"gscale"}
        self.numbers = 0
        self.names: list[str] = []
        self.body: list[str] = []
        self.squares: list[str] = []
        for statement in function.body:
            self._outside(statement)
        if not self.body:
            raise self._refusal(function)

    def _refusal(self, node: ast.AST) -> UsageError:
        return refusal(self._kernel, node)

    def _outside(self, statement: ast.stmt) -> None:
        """A statement before the loop, or the loop; checks of sizes are the launching side's."""
        if self.body:
            raise self._refusal(statement)
        if isinstance(statement, ast.For):
            form = ast.unparse(statement.iter)
            if form not in ("range(n)", "range(0, n, CHUNK)"):
                raise self._refusal(statement)
            for line in statement.body:
                self._inside(line) if form == "range(n)" else self._in_chunk(line)
            return
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            return  # the docstring
        if isinstance(statement, ast.If) and len(statement.body) == 1 and isinstance(statement.body[0], ast.Raise):
            return
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            raise self._refusal(statement)
        self._name(statement, statement.targets[0].id, ast.unparse(statement.value))

    def _name(self, statement: ast.stmt, name: str, value: str) -> None:
        """`name = value` before the loop."""
        if (name, value) in (("n", "g.size"), ("w", "w[begin:begin + n]"), ("found", "np.empty(EIGHTH, np.float64)")):
            return
        if value == "np.empty(CHUNK, scalars.dtype)":
            self._own.add(name)
        elif value == f"slots[{self._slots}][begin:begin + n]":
            self.names.append(f"real *__restrict__ {name} = run.slot{self._slots};")
            self._vectors[name] = f"{name}[i]"
            self._slots += 1
        elif value.startswith("scalars[") and value[8:-1].isdecimal():
            number = int(value[8:-1])
            self.names.append(f"const real {name} = run.number{number};")
            self._locals.add(name)
            self.numbers = max(self.numbers, number + 1)
        else:
            raise self._refusal(statement)

    def _in_chunk(self, statement: ast.stmt) -> None:
        """A statement of the loop over chunks."""
        if isinstance(statement, ast.For) and ast.unparse(statement.iter).endswith(".size)"):
            for line in statement.body:
                self._inside(line)
            return
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name, value = statement.targets[0].id, ast.unparse(statement.value)
            if (name, value) == ("end", "min(at + CHUNK, n)"):
                return
            vector = value.removesuffix("[at:end]")
            if vector != value and vector in self._vectors:
                self._vectors[name] = self._vectors[vector]
                return
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            called = statement.value
            if ast.unparse(called.func) == "add_squares" and ast.unparse(called.args[1]) == "None":
                self.squares.append(self._squared(called.args[0]))
                return
        raise self._refusal(statement)

    def _squared(self, node: ast.expr) -> str:
        """An element of the array, or of the part of one, that squares are added of."""
        name = ast.unparse(node.value if isinstance(node, ast.Subscript) else node)
        if name in self._own:
            return name
        if name in self._vectors:
            return self._vectors[name]
        raise self._refusal(node)

    def _inside(self, statement: ast.stmt) -> None:
        """A statement about element i."""
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "out is not None":
            return  # what `out` asks for is copied from the weights
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            raise self._refusal(statement)
        target, value = statement.targets[0], self._value(statement.value)
        name = target.id if isinstance(target, ast.Name) else self._element(target)
        if isinstance(target, ast.Name) or name in self._own:
            declared = "" if name in self._locals else "real "
            self._locals.add(name)
            self.body.append(f"{declared}{name} = {value};")
        else:
            self.body.append(f"{name} = {value};")

    def _element(self, node: ast.AST) -> str:
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and ast.unparse(node.slice) == "i":
            vector = node.value.id
            if vector in self._own:
                return vector
            if vector in self._vectors:
                return self._vectors[vector]
        raise self._refusal(node)

    def _value(self, node: ast.AST) -> str:
        return expression(node, self._locals, self._element)


def expression(node: ast.AST, names: Collection[str], element: Callable[[ast.AST], str]) -> str:
    """An expression in CUDA C, with every operation in brackets: C shall group as Python does.

    Args:
        names: numbers that are called alike there.
        element: what says the rest, or refuses it.
    """

    def said(part: ast.AST) -> str:
        return expression(part, names, element)

    if isinstance(node, ast.Name) and node.id in names:
        return node.id
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return f"({said(node.left)} {_ARITHMETIC[type(node.op)]} {said(node.right)})"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return f"(-{said(node.operand)})"
    if isinstance(node, ast.IfExp):
        return f"({said(node.test)} ? {said(node.body)} : {said(node.orelse)})"
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        return f"({said(node.left)} {_COMPARISONS[type(node.ops[0])]} {said(node.comparators[0])})"
    if isinstance(node, ast.Call):
        function, arity = _FUNCTIONS.get(ast.unparse(node.func).removeprefix("np."), ("", -1))
        if len(node.args) == arity:
            return f"{function}({', '.join(map(said, node.args))})"
    return element(node)


def refusal(kernel: str, node: ast.AST) -> UsageError:
    """What is said of a kernel that has another form."""
    return UsageError(
        "an update rule has no kernel for a device",
        kernel=kernel,
        form=ast.unparse(node)[:80],
        next_move="Serve its tensors from memory: start servers without --device.",
    )


def function_of(kernel: Callable[..., Any]) -> ast.FunctionDef:
    """The source of `kernel`."""
    function = ast.parse(textwrap.dedent(inspect.getsource(kernel))).body[0]
    assert isinstance(function, ast.FunctionDef)
    return function
