"""The CUDA twin of an update rule, written out from the Python function that Numba compiles.

A rule has one source, its kernel: `for i in range(n)` over assignments of `+ - * /`, comparisons, `min`, `max`, `abs`
and `np.sqrt`. `update_source` reads that loop and says the same in CUDA C, operation by operation, so a twin cannot
drift from its rule, and a rule that keeps to the form has its twin for nothing. A kernel of another form has none, and
`update_source` says so.

One launch works on a list of runs (weights, slots, gradients, and the step's numbers, each run with its own), so a
block list costs one launch however many tensors it has. A run is cut into tiles of `TILE_ELEMENTS`; a thread block
takes one tile and finds its run by halving. Where a run has several gradients they are summed in the order given, as
`windlass_rules.reduce` does it, without a pass of its own.

Invariant: with `OPTIONS` every operation is IEEE and rounded once, nothing fused, reordered or flushed to zero, so the
bits are those of the Numba twin on any CPU (NaN for NaN; their payloads differ). `min` and `max` are Python's: the
first argument stays unless the second is beyond it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from windlass_proto.errors import UsageError
from windlass_rules.norms import CHUNK, LANES
from windlass_rules.rule import Kernel, Variant

TILE_ELEMENTS: Final = 2048
THREADS: Final = 256
OPTIONS: Final = ("--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")
"""For NVRTC. None of them may be left out: fused products would change the last bit."""

_REALS: Final = {"float32": "float", "float64": "double"}
_PATTERNS: Final = {"float32": ("u32", "0x7f800000u"), "float64": ("u64", "0x7ff0000000000000ull")}
_ARITHMETIC: Final[dict[type, str]] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_COMPARISONS: Final[dict[type, str]] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "=="}
_FUNCTIONS: Final = {"min": ("lesser", 2), "max": ("greater", 2), "abs": ("fabs", 1), "sqrt": ("sqrt", 1)}

_SOURCE_FIELDS: Final = (("at", "u8"), ("weight", "real"))

_PRELUDE: Final = """\
typedef unsigned int u32;
typedef unsigned long long u64;
typedef {real} real;

struct Source {{ const real *at; real weight; }};

struct Run {{
    u64 tile;  // tiles of the runs before this one
    u64 size;
{fields}}};

static_assert(sizeof(Source) == {source_bytes} && sizeof(Run) == {run_bytes}, "the host packs these otherwise");

static __device__ inline real lesser(real a, real b) {{ return b < a ? b : a; }}
static __device__ inline real greater(real a, real b) {{ return b > a ? b : a; }}

// The gradient of element i: as it came, or the sum of several in their order.
static __device__ inline real gradient(const Source *sources, u32 count, u64 i)
{{
    if (count == 1)
        return sources[0].at[i];
    real total = sources[0].weight * sources[0].at[i];
    for (u32 s = 1; s < count; ++s)
        total = total + sources[s].weight * sources[s].at[i];
    return total;
}}

// The run that a tile belongs to: the last that begins with it or before it.
static __device__ inline const Run &run_of(const Run *runs, u32 count, u64 tile)
{{
    u32 low = 0;
    for (u32 high = count; high - low > 1;) {{
        const u32 middle = low + (high - low) / 2;
        if (runs[middle].tile <= tile)
            low = middle;
        else
            high = middle;
    }}
    return runs[low];
}}
"""

_KERNEL: Final = """
extern "C" __global__ void {entry}(const Run *runs, u32 count, const Source *sources)
{{
    const Run &run = run_of(runs, count, blockIdx.x);
    const u64 tile_begin = (blockIdx.x - run.tile) * {tile};
    const u64 tile_end = tile_begin + {tile} < run.size ? tile_begin + {tile} : run.size;
{names}    for (u64 i = tile_begin + threadIdx.x; i < tile_end; i += {threads}) {{
{body}    }}
}}
"""


_SQUARES: Final = """
extern "C" __global__ void {entry}(const Run *runs, u32 count, const Source *sources)
{{
    const Run &run = run_of(runs, count, blockIdx.x);
    const u64 tile_begin = (blockIdx.x - run.tile) * {tile};
    const real gscale = run.gscale;
    for (u32 at = threadIdx.x; at < {tile} / {chunk} * {lanes}; at += {threads}) {{
        const u64 begin = tile_begin + at / {lanes} * {chunk};
        const u32 lane = at % {lanes};
        if (begin >= run.size)
            continue;
        double found[{chunk} / {lanes}];
        for (u32 k = 0; k < {chunk} / {lanes}; ++k) {{
            const u64 i = begin + lane + k * {lanes};
            const double x = i < run.size ? (double)(gscale * gradient(sources + run.first, run.sources, i)) : 0.0;
            found[k] = x * x;
        }}
        for (u32 half = {chunk} / {lanes} / 2; half > 0; half /= 2)
            for (u32 k = 0; k < half; ++k)
                found[k] = found[k] + found[half + k];
        run.lanes[begin / {chunk} * {lanes} + lane] = found[0];
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class CudaSource:
    """A program of one kernel, `entry(const Run *runs, u32 count, const Source *sources)`.

    `run` and `source` are the NumPy types of the records that it reads.
    """

    entry: str
    text: str
    run: np.dtype[Any]
    source: np.dtype[Any]

    @property
    def digest(self) -> str:
        """Of the text, so that a record of a test can say which text was tested."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@functools.cache
def update_source(variant: Variant, dtype: np.dtype[Any]) -> CudaSource:
    """The twin of `variant.kernel`, for runs with fields `w`, `slot0` ..., `gscale`, `number0` ..., `first`, `sources`.

    `number0` ... are `RuleKernels.scalars`; sources [first, first + sources) are the run's gradients.

    Raises:
        UsageError: the kernel has a form that has no twin.
    """
    loop = _Loop(variant.kernel)
    fields = [("w", "real *", "u8"), *((f"slot{k}", "real *", "u8") for k in range(len(variant.slots)))]
    fields += [("first", "u32", "u4"), ("sources", "u32", "u4"), ("gscale", "real", "real")]
    fields += [(f"number{k}", "real", "real") for k in range(loop.numbers)]
    names = ["real *__restrict__ w = run.w;", *loop.names, "const real gscale = run.gscale;"]
    body = ["const real g_i = gradient(sources + run.first, run.sources, i);", *loop.body]
    name = "".join(letter if letter.isalnum() else "_" for letter in variant.name)
    return _program(f"update_{name}_{dtype.name}", dtype, fields, names, body)


@functools.cache
def fill_source(dtype: np.dtype[Any]) -> CudaSource:
    """Every element of a run becomes `value`; runs have fields `w` and `value`."""
    fields = [("w", "real *", "u8"), ("value", "real", "real")]
    return _program(f"fill_{dtype.name}", dtype, fields, [], ["run.w[i] = run.value;"])


@functools.cache
def finite_source(dtype: np.dtype[Any]) -> CudaSource:
    """The twin of `reduce.all_finite`: `*found` becomes 1 where an element of the run at `at` is infinite or a NaN."""
    pattern, exponent = _PATTERNS[dtype.name]
    fields = [("at", f"const {pattern} *", "u8"), ("found", "u32 *", "u8")]
    body = [f"if ((run.at[i] & {exponent}) == {exponent})", "    *run.found = 1;"]
    return _program(f"find_not_finite_{dtype.name}", dtype, fields, [], body)


@functools.cache
def squares_source(dtype: np.dtype[Any]) -> CudaSource:
    """The twin of `norms.squares`, up to the sum over chunks: `lanes` becomes LANES float64 for each CHUNK of a run.

    Runs have fields `lanes`, `first`, `sources` and `gscale`. A thread makes one lane of a chunk, so that none waits
    for another.
    """
    fields = [("lanes", "double *", "u8"), ("first", "u32", "u4"), ("sources", "u32", "u4"), ("gscale", "real", "real")]
    entry = f"squares_{dtype.name}"
    blank = _program(entry, dtype, fields, [], [])
    kernel = _SQUARES.format(entry=entry, tile=TILE_ELEMENTS, threads=THREADS, chunk=CHUNK, lanes=LANES)
    prelude = blank.text.partition('\nextern "C"')[0]
    return CudaSource(entry, prelude + kernel, blank.run, blank.source)


def _program(
    entry: str, dtype: np.dtype[Any], fields: list[tuple[str, str, str]], names: list[str], body: list[str]
) -> CudaSource:
    def record(kinds: Any) -> np.dtype[Any]:
        return np.dtype([(name, dtype if kind == "real" else kind) for name, kind in kinds], align=True)

    run = record([("tile", "u8"), ("size", "u8"), *((name, kind) for name, _, kind in fields)])
    source = record(_SOURCE_FIELDS)
    prelude = _PRELUDE.format(
        real=_REALS[dtype.name],
        fields="".join(f"    {c_type}{'' if c_type.endswith('*') else ' '}{name};\n" for name, c_type, _ in fields),
        source_bytes=source.itemsize,
        run_bytes=run.itemsize,
    )
    kernel = _KERNEL.format(
        entry=entry,
        tile=TILE_ELEMENTS,
        threads=THREADS,
        names="".join(f"    {line}\n" for line in names),
        body="".join(f"        {line}\n" for line in body),
    )
    return CudaSource(entry, prelude + kernel, run, source)


class _Loop:
    """What a kernel's source says: the names it gives to slots and numbers, and its loop, in CUDA C."""

    def __init__(self, kernel: Kernel) -> None:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kernel)))
        function = tree.body[0]
        assert isinstance(function, ast.FunctionDef)
        self._kernel = function.name
        self._vectors = {"w", "g"}
        self._locals: set[str] = {"gscale"}
        self.numbers = 0
        self.names: list[str] = []
        self.body: list[str] = []
        for statement in function.body:
            self._outside(statement)
        if not self.body:
            raise self._refusal(function)

    def _refusal(self, node: ast.AST) -> UsageError:
        return UsageError(
            "an update rule has no kernel for a device",
            kernel=self._kernel,
            form=ast.unparse(node)[:80],
            next_move="Serve its tensors from memory: start servers without --device.",
        )

    def _outside(self, statement: ast.stmt) -> None:
        """A statement before the loop, or the loop; checks of sizes are the launching side's."""
        if isinstance(statement, ast.For) and not self.body and ast.unparse(statement.iter) == "range(n)":
            for line in statement.body:
                self._inside(line)
            return
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            return  # the docstring
        if isinstance(statement, ast.If) and len(statement.body) == 1 and isinstance(statement.body[0], ast.Raise):
            return
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name) and not self.body:
            name, value = statement.targets[0].id, ast.unparse(statement.value)
            if (name, value) in (("n", "g.size"), ("w", "w[begin:begin + n]")):
                return
            if value == f"slots[{len(self._vectors) - 2}][begin:begin + n]":
                self.names.append(f"real *__restrict__ {name} = run.slot{len(self._vectors) - 2};")
                self._vectors.add(name)
                return
            if value == f"scalars[{self.numbers}]":
                self.names.append(f"const real {name} = run.number{self.numbers};")
                self._locals.add(name)
                self.numbers += 1
                return
        raise self._refusal(statement)

    def _inside(self, statement: ast.stmt) -> None:
        """A statement of the loop."""
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "out is not None":
            return  # what `out` asks for is copied from the weights
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            raise self._refusal(statement)
        target, value = statement.targets[0], self._value(statement.value)
        if isinstance(target, ast.Name):
            declared = "" if target.id in self._locals else "real "
            self._locals.add(target.id)
            self.body.append(f"{declared}{target.id} = {value};")
        else:
            self.body.append(f"{self._element(target)} = {value};")

    def _element(self, node: ast.AST) -> str:
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and ast.unparse(node.slice) == "i":
            vector = node.value.id
            if vector == "g":
                return "g_i"
            if vector in self._vectors:
                return f"{vector}[i]"
        raise self._refusal(node)

    def _value(self, node: ast.AST) -> str:
        """An expression, with every operation in brackets: C shall group as Python does."""
        if isinstance(node, ast.Name) and node.id in self._locals:
            return node.id
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return f"({self._value(node.left)} {_ARITHMETIC[type(node.op)]} {self._value(node.right)})"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return f"(-{self._value(node.operand)})"
        if isinstance(node, ast.IfExp):
            return f"({self._value(node.test)} ? {self._value(node.body)} : {self._value(node.orelse)})"
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
            sign = _COMPARISONS[type(node.ops[0])]
            return f"({self._value(node.left)} {sign} {self._value(node.comparators[0])})"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).removeprefix("np.")
            function, arity = _FUNCTIONS.get(called, ("", -1))
            if len(node.args) == arity:
                return f"{function}({', '.join(map(self._value, node.args))})"
        return self._element(node)
