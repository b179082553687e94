"""The Python source of a kernel that steps whole rows, read into CUDA C for one row.

Such a kernel goes row by row: loops over the row's values, `for j in range(dim)`, numbers of the row between them, and
`sum_of_squares` of the kernel's own arrays. A thread takes a row. It keeps no array of its own, whose length it would
have to know: where one is read, its values are made once more from what it was made of, which is the same operations
on the same numbers.

Invariant: as `cuda_loops`; and weights and slots are written by the last loop over a row alone, so what is made once
more is what it was. Sums of squares go in the eight lanes of `row_sums`, in its order.
"""

from __future__ import annotations

import ast
from typing import Final

from windlass_rules.cuda_loops import expression, function_of, refusal
from windlass_rules.rule import Per, Variant

_SUM: Final = "sum_of_squares"
_LANES: Final = "((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]))"


class RowLoop:
    """What a kernel's source says of the row `row`, whose gradient is the i-th: declarations, and statements."""

    def __init__(self, variant: Variant) -> None:
        function = function_of(variant.kernel)
        self._kernel = function.name
        self._slots = variant.slots
        self._vectors: dict[str, str] = {"w": "run.w", "g": "run.g"}  # whole arrays
        self._rows: dict[str, str] = {}  # a row of one -> its element j
        self._by_row: dict[str, str] = {}  # a slot with one number a row -> this row's
        self._own: list[str] = []
        self._made: list[str] = []  # statements that make element j of the kernel's own arrays
        self._declared: set[str] = set()  # of those arrays, the ones that such a statement has declared
        self._names: set[str] = {"gscale"}
        self._written = False
        self.numbers = 0
        self.body: list[str] = []
        for statement in function.body:
            self._outside(statement)
        if not self._written:
            raise refusal(self._kernel, function)

    def _outside(self, statement: ast.stmt) -> None:
        """A statement before the loop over rows, or the loop."""
        if isinstance(statement, ast.For) and ast.unparse(statement.iter) == "range(rows)":
            for line in statement.body:
                self._of_row(line)
            return
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            return  # the docstring
        if isinstance(statement, ast.If) and len(statement.body) == 1 and isinstance(statement.body[0], ast.Raise):
            return  # sizes are the launching side's
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            raise refusal(self._kernel, statement)
        name, value = statement.targets[0].id, ast.unparse(statement.value)
        if (name, value) == ("rows", "g.size // dim"):
            return
        if value == "np.empty(dim, w.dtype)":
            self._own.append(name)
        elif value.startswith("slots[") and value[6:-1].isdecimal():
            number = int(value[6:-1])
            if self._slots[number].per is Per.ROW:
                self._by_row[name] = f"run.slot{number}[row]"
            else:
                self._vectors[name] = f"run.slot{number}"
        elif value == "w.dtype.type(dim)":
            self._number(name, "(real)dim")
        else:
            self._number(name, self._value(statement.value))

    def _number(self, name: str, value: str) -> None:
        self.body.append(f"const real {name} = {value};")
        self._names.add(name)

    def _of_row(self, statement: ast.stmt) -> None:
        """A statement of the loop over rows."""
        if isinstance(statement, ast.For) and ast.unparse(statement.iter) == "range(dim)" and not self._written:
            self._over_values(statement)
            return
        if not isinstance(statement, ast.Assign):
            raise refusal(self._kernel, statement)
        target, value = statement.targets[0], ast.unparse(statement.value)
        if isinstance(target, ast.Name) and value.endswith("[r * dim:(r + 1) * dim]"):
            vector = value.partition("[")[0]
            if vector not in self._vectors:
                raise refusal(self._kernel, statement)
            row = "i" if vector == "g" else "row"
            self._rows[target.id] = f"{self._vectors[vector]}[{row} * dim + j]"
        elif isinstance(target, ast.Name):
            self._number(target.id, self._value(statement.value))
        elif isinstance(target, ast.Subscript) and ast.unparse(target.slice) == "r":
            self.body.append(f"{self._element(target)} = {self._value(statement.value)};")
        else:
            raise refusal(self._kernel, statement)

    def _over_values(self, loop: ast.For) -> None:
        """A loop over a row's values: it makes the kernel's own arrays, or writes what is kept."""
        lines: list[str] = []
        outer = set(self._names)
        made, declared = list(self._made), set(self._declared)
        for statement in loop.body:
            if not isinstance(statement, ast.Assign):
                raise refusal(self._kernel, statement)
            target, value = statement.targets[0], self._value(statement.value)
            if isinstance(target, ast.Name):
                lines.append(f"const real {target.id} = {value};")
                self._names.add(target.id)
                continue
            place = self._element(target)
            if place in self._own:
                lines.append(f"{'' if place in declared else 'real '}{place} = {value};")
                declared.add(place)
            else:
                lines.append(f"{place} = {value};")
                self._written = True
        self._names = outer
        if self._written:
            self.body += ["for (u64 j = 0; j < dim; ++j) {", *(f"    {line}" for line in (*made, *lines)), "}"]
        else:
            self._made, self._declared = made + lines, declared

    def _element(self, node: ast.AST) -> str:
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            name, at = node.value.id, ast.unparse(node.slice)
            if at == "j" and name in self._own:
                return name
            if at == "j" and name in self._rows:
                return self._rows[name]
            if at == "r" and name in self._by_row:
                return self._by_row[name]
            if name == "scalars" and at.isdecimal():
                self.numbers = max(self.numbers, int(at) + 1)
                return f"run.number{at}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == _SUM:
            summed = ast.unparse(node.args[0])
            if summed in self._declared:
                return self._sum(summed, self._value(node.args[1]))
        raise refusal(self._kernel, node)

    def _sum(self, summed: str, zero: str) -> str:
        """A number that is the sum of the squares of one of the kernel's own arrays."""
        name = f"squares{sum(line.startswith('real squares') for line in self.body)}"
        self.body += [
            f"real {name};",
            "{",
            f"    real lane[8] = {{{', '.join([zero] * 8)}}};",
            "    for (u64 j = 0; j < dim; ++j) {",
            *(f"        {line}" for line in self._made),
            f"        lane[j % 8] = lane[j % 8] + {summed} * {summed};",
            "    }",
            f"    {name} = {_LANES};",
            "}",
        ]
        return name

    def _value(self, node: ast.AST) -> str:
        return expression(node, self._names, self._element)
