"""Fused kernels: every op as NumPy has it, any program as its instructions one by one, compiled once and kept."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.graph.fused_cases import CONSTANTS, FLOATS, each_op, interpreted, names, operands_of
from tests.rules.test_machine_code import in_loops
from windlass_graph import fused_kernels, fused_loops
from windlass_graph.fused import Instruction, Pattern, Program, Space, collapse
from windlass_graph.fused_kernels import FusedKernel
from windlass_graph.scalar_code import DTYPES, SCALARS, result_dtype, types_of
from windlass_proto import kernel_cache
from windlass_proto.errors import UsageError

CLOSE = {"float16": (2e-3, 1e-6), "float32": (1e-5, 1e-6), "float64": (1e-12, 1e-14)}

STEADY = (
    "add", "maximum", "minimum", "negative", "absolute", "tanh", "sigmoid", "erf", "relu", "leaky_relu", "softsign",
    "hard_sigmoid", "clip", "where", "less", "logical_and", "isfinite", "softplus", "silu",
)  # fmt: skip
"""Ops that turn a small difference into no large one, so that two ways of rounding can be compared."""

SHAPES: list[tuple[tuple[int, ...], ...]] = [
    ((5000,), (5000,), (5000,)),
    ((7, 600), (600,), (7, 1)),
    ((2, 3, 5, 4), (1, 3, 1, 1), (2, 3, 5, 4)),
    ((3, 1), (1, 4), ()),
    ((0, 4), (4,), (1, 4)),
    ((2, 1, 3), (2, 4, 1), (4, 3)),
]


def assert_close(found: npt.NDArray[Any], meant: npt.NDArray[Any], what: str) -> None:
    assert found.dtype == meant.dtype
    if found.dtype.name in FLOATS:
        rtol, atol = CLOSE[found.dtype.name]
        np.testing.assert_allclose(found, meant, rtol=rtol, atol=atol, err_msg=what)
    else:
        np.testing.assert_array_equal(found, meant, err_msg=what)


def run(program: Program, space: Space, ins: Any, constants: Any, shape: tuple[int, ...]) -> list[npt.NDArray[Any]]:
    outs = [np.empty(shape, dtype) for dtype in program.output_dtypes]
    FusedKernel(program, space).run(np, ins, outs, constants)
    return outs


def space_of(*shapes: tuple[int, ...]) -> Space:
    found = collapse(np.broadcast_shapes(*shapes), shapes)
    assert found is not None
    return found


def chain(pattern: Pattern) -> Program:
    """sigmoid(x + y) * c."""
    add = Instruction("add", (0, 1), "float32", "float32")
    sigmoid = Instruction("sigmoid", (3,), "float32", "float32")
    scale = Instruction("multiply", (4, 2), "float32", "float32")
    return Program(("float32", "float32"), ("float64",), (add, sigmoid, scale), (5,), pattern)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_op_is_numpys_over_special_and_random_values(dtype: str) -> None:
    converted = dtype in ("uint8", "int64")  # to float32 first, as int32 is: not compiled for each
    chosen = [name for name in names(dtype) if not (converted and SCALARS[name].kind == "float")]
    program, constants = each_op(dtype, chosen)
    x, y = operands_of(dtype)
    if "int" in dtype:  # small powers on odd places
        y = np.where(np.arange(len(y)) % 2 == 0, y, y % 5).astype(dtype)
    ins = [y > 0, x, y]
    powers = y >= 0 if "int" in dtype else np.ones(len(y), bool)
    outs = run(program, space_of(x.shape, x.shape, x.shape), ins, constants, x.shape)
    for name, found, meant in zip(chosen, outs, interpreted(program, ins, constants), strict=True):
        where = powers if name == "power" else slice(None)
        assert_close(found[where], meant[where], f"{name} of {dtype}")


def test_casts_are_numpys_in_every_pair_of_dtypes() -> None:
    for dtype in DTYPES:
        begin = np.array([0, 1, 2, 3, 100]) if dtype in ("bool", "uint8") else np.array([-100, -1, 0, 1, 2, 100])
        x = begin.astype(dtype)
        if dtype in FLOATS:
            x = np.concatenate([x, np.array([0.5, -1.5, 2.49951171875], dtype)])
        instructions = tuple(Instruction("cast", (0,), dtype, to) for to in DTYPES)
        outputs = tuple(range(1, 1 + len(DTYPES)))
        program = Program((dtype,), (), instructions, outputs, Pattern(True, (True,)))
        for found, meant in zip(run(program, space_of(x.shape), [x], (), x.shape), DTYPES, strict=True):
            with np.errstate(invalid="ignore"):
                np.testing.assert_array_equal(found, x.astype(meant), err_msg=f"{dtype} to {meant}")


@st.composite
def programs(draw: st.DrawFn) -> tuple[Program, tuple[tuple[int, ...], ...]]:
    """A program of up to eight ops on three inputs that broadcast in one of several ways."""
    shapes = draw(st.sampled_from(SHAPES))
    inputs = tuple(draw(st.sampled_from(("float32", "float32", "float64", "float16", "int32", "bool"))) for _ in shapes)
    dtypes: list[str] = [*inputs, "float64"]
    instructions = []
    for _ in range(draw(st.integers(1, 8))):
        name = draw(st.sampled_from(STEADY))
        scalar = SCALARS[name]
        arrays = [draw(st.sampled_from([i for i in range(len(dtypes)) if i != 3])) for _ in range(scalar.inputs)]
        at, result = types_of(name, [dtypes[i] for i in arrays])
        if result == "bool" and name in ("negative", "clip"):
            continue
        operands = (*arrays, *(3 for _ in range(scalar.constants)))
        instructions.append(Instruction(name, operands, at, result))
        dtypes.append(result)
    outputs = tuple({draw(st.integers(4, len(dtypes) - 1)), len(dtypes) - 1}) if instructions else (0,)
    space = space_of(*shapes)
    return Program(inputs, ("float64",), tuple(instructions), outputs, space.pattern), shapes


@settings(max_examples=15, derandomize=True, phases=(Phase.explicit, Phase.generate))  # each compiles a kernel
@given(programs(), st.integers(0, 1000))
def test_a_program_is_its_instructions_one_by_one(
    drawn: tuple[Program, tuple[tuple[int, ...], ...]], seed: int
) -> None:
    program, shapes = drawn
    rng = np.random.default_rng(seed)
    ins = [
        np.asarray(rng.normal(0, 2, shape)).astype(dtype) for shape, dtype in zip(shapes, program.inputs, strict=True)
    ]
    whole = np.broadcast_shapes(*shapes)
    for found, meant in zip(
        run(program, space_of(*shapes), ins, (0.5,), whole), interpreted(program, ins, (0.5,)), strict=True
    ):
        if found.dtype == bool:  # a comparison of two nearly equal numbers may go either way
            assert found.size < 20 or (found != np.broadcast_to(meant, whole)).mean() <= 0.1
            continue
        rtol, atol = (1e-2, 1e-2) if found.dtype == np.float16 else (1e-3, 1e-3)
        np.testing.assert_allclose(found, np.broadcast_to(meant, whole), rtol=rtol, atol=atol)


@pytest.mark.parametrize("shapes", SHAPES)
def test_inputs_broadcast_as_numpys(shapes: tuple[tuple[int, ...], ...]) -> None:
    add = tuple(Instruction("add", pair, "int64", "int64") for pair in ((0, 1), (3, 2)))
    space = space_of(*shapes)
    program = Program(("int64",) * 3, (), add, (4, 3), space.pattern)
    a, b, c = (np.arange(np.prod(shape, dtype=int)).reshape(shape) * 10**k for k, shape in enumerate(shapes))
    whole = np.broadcast_shapes(*shapes)
    total, first = run(program, space, [a, b, c], (), whole)
    np.testing.assert_array_equal(total, np.broadcast_to(a + b + c, whole))
    np.testing.assert_array_equal(first, np.broadcast_to(a + b, whole))


def test_what_needs_four_axes_has_no_space() -> None:
    assert collapse((2, 3, 4, 5), [(2, 1, 4, 1), (1, 3, 1, 5)]) is None


def test_axes_are_merged_where_all_inputs_allow_it() -> None:
    assert space_of((4, 5, 6), (4, 5, 6)) == Space(Pattern(True, (True, True)), (1, 1, 120), ((0, 0), (0, 0)))
    bias = space_of((8, 3, 4, 5), (3, 1, 1))
    assert (bias.sizes, bias.steps, bias.pattern) == ((8, 3, 20), ((60, 20), (0, 1)), Pattern(False, (True, False)))


@pytest.mark.parametrize("shapes", [((3000,), (3000,)), ((40, 700), (700,))])
def test_an_output_may_be_written_over_an_input(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    space = space_of(*shapes)
    kernel = FusedKernel(chain(space.pattern), space)
    out = np.empty_like(x)
    kernel.run(np, [x, y], [out], [2.0])
    kernel.run(np, [x, y], [x], [2.0])
    np.testing.assert_array_equal(x, out)


def test_a_changed_constant_compiles_nothing() -> None:
    space = space_of((10,), (10,))
    program = chain(space.pattern)
    x, before = np.ones(10, np.float32), fused_kernels.loop(program)
    one, two = (run(program, space, [x, x], (c,), (10,))[0] for c in (1.0, 2.0))
    np.testing.assert_array_equal(two, 2 * one)
    assert fused_kernels.loop(chain(space.pattern)) is before


SECOND = """
import sys
from tests.graph.test_fused_kernels import chain, space_of
from windlass_graph import fused_kernels
kernel = fused_kernels.loop(chain(space_of((8,), (8,)).pattern))
print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
"""


def test_a_second_process_finds_the_kernel_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    found = [
        subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True, timeout=120, check=True).stdout
        for _ in range(2)
    ]
    assert found == ["0 1\n", "1 0\n"]


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="reads x86-64 assembly")
@pytest.mark.parametrize("flat", [True, False])
def test_a_kernel_of_many_arrays_holds_packed_loops(flat: bool) -> None:
    pattern = Pattern(flat, (True,) * 8)
    sums = tuple(Instruction("add", (8 + i - 1 if i else 0, i + 1), "float32", "float32") for i in range(7))
    exp = Instruction("exp", (14,), "float32", "float32")
    program = Program(("float32",) * 8, (), (*sums, exp), (9, 12, 15), pattern)
    kernel: Any = kernel_cache.compiled_uncached(fused_loops.function(program), [fused_loops.signature(program)])
    assembly = kernel.inspect_asm(kernel.signatures[0]).split("func_end0:", maxsplit=1)[0]
    assert in_loops(assembly, "v?addps")
    assert in_loops(assembly, "v?mulps")


def test_what_an_op_answers_in() -> None:
    assert result_dtype("add", ["int32", "uint8"]) == "int32"
    assert result_dtype("multiply", ["int64", "float32"]) == "float32"
    assert result_dtype("exp", ["int64"]) == "float32"
    assert result_dtype("divide", ["int64", "float64"]) == "float64"
    assert result_dtype("exp", ["float16"]) == "float16"
    assert result_dtype("less", ["int64", "float64"]) == "bool"
    assert result_dtype("where", ["bool", "uint8", "int32"]) == "int32"


@pytest.mark.parametrize(
    ("instruction", "fact"),
    [
        (Instruction("sigmoidd", (0,), "float32", "float32"), "no elementwise op 'sigmoidd'"),
        (Instruction("add", (0,), "float32", "float32"), "another number of operands"),
        (Instruction("exp", (3,), "float32", "float32"), "not computed before its use"),
        (Instruction("exp", (0,), "float32", "complex64"), "no fused kernel computes in this dtype"),
    ],
)
def test_a_wrong_program_is_refused(instruction: Instruction, fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        Program(("float32",), (), (instruction,), (1,), Pattern(True, (True,)))


def test_arrays_that_broadcast_otherwise_are_refused() -> None:
    with pytest.raises(UsageError, match="broadcast otherwise"):
        FusedKernel(chain(Pattern(True, (True, True))), space_of((4, 3), (3,)))


def test_constants_of_ops_are_those_the_table_asks_for() -> None:
    assert {name for name, scalar in SCALARS.items() if scalar.constants} == CONSTANTS.keys()
