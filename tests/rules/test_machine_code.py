"""The compiled loops work on whole vectors, and nothing in them fuses a product with a sum."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from tests.rules.conftest import ROW_SPECS, SPECS, TRUST_SPECS
from windlass_proto import gradient_norms, kernel_cache
from windlass_proto.rule_specs import Adam
from windlass_rules import reduce, rows
from windlass_rules.registry import RULE_MODULES, measure_signature, signatures

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="reads x86-64 assembly; this machine has another",
)

SUFFIX = {"float32": "s", "float64": "d"}

VARIANTS = {variant.name: variant for variant in (RULE_MODULES[type(spec)].variant(spec) for spec in SPECS)}
ROW_VARIANTS = {variant.name: variant for variant in (RULE_MODULES[type(spec)].variant(spec) for spec in ROW_SPECS)}
TRUST_VARIANTS = {variant.name: variant for variant in (RULE_MODULES[type(s)].variant(s) for s in TRUST_SPECS)}
ROOTLESS = {"sgd", "sgd.momentum", "adamax", "signum", "signum.momentum", "lion", "sum", "dcasgd"}
UNDIVIDED = ROOTLESS - {"adamax"}


def operations(name: str) -> list[str]:
    """What every loop of a variant must hold as packed instructions; max and min are those of clipping."""
    divided = [] if name in UNDIVIDED else ["div"]
    root = [] if name in ROOTLESS else ["sqrt"]
    return ["mul", "add" if name == "sum" else "(add|sub)", "max", "min", *divided, *root]


def in_loops(assembly: str, mnemonic: str) -> bool:
    """Whether an innermost loop of `assembly` holds an instruction that matches `mnemonic`."""
    lines = [line.strip() for line in assembly.splitlines()]
    labels = {line.split(":")[0]: at for at, line in enumerate(lines) if re.match(r"\.?L\w+:", line)}
    jumps = [(found[1], at) for at, line in enumerate(lines) if (found := re.match(r"j[a-z]+\s+(\.?L\w+)$", line))]
    loops = [(labels[target], at) for target, at in jumps if labels.get(target, at) < at]
    innermost = [
        (begin, end)
        for begin, end in loops
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in loops)
    ]
    return any(re.match(rf"{mnemonic}\s", line) for begin, end in innermost for line in lines[begin:end])


def assemblies(function: Callable[..., Any], asked: list[Any]) -> list[str]:
    kernel: Any = kernel_cache.compiled_uncached(function, asked)
    return [kernel.inspect_asm(signature) for signature in kernel.signatures]


@pytest.mark.parametrize("name", VARIANTS)
def test_rules_work_on_packed_vectors_without_fused_operations(name: str, dtype: str) -> None:
    for assembly in assemblies(VARIANTS[name].kernel, signatures(VARIANTS[name], np.dtype(dtype))):
        # Before AVX a packed square root costs as much as four single ones, and LLVM may keep those.
        wide = re.search(r"\bvmulp", assembly)
        for operation in operations(name):
            if wide or operation != "sqrt":
                assert in_loops(assembly, f"v?{operation}p{SUFFIX[dtype]}"), f"no packed {operation} in a loop"
        assert not re.search(r"\bvfn?m(add|sub)", assembly)


@pytest.mark.parametrize("name", ROW_VARIANTS)
def test_rules_of_rows_work_on_packed_vectors_without_fused_operations(name: str, dtype: str) -> None:
    (assembly,) = assemblies(*rows.on_rows(ROW_VARIANTS[name], np.dtype(dtype)))
    for operation in ("mul", "(add|sub)", "max", "min"):
        assert in_loops(assembly, f"v?{operation}p{SUFFIX[dtype]}"), f"no packed {operation} in a loop"
    assert not re.search(r"\bvfn?m(add|sub)", assembly)


@pytest.mark.parametrize("name", TRUST_VARIANTS)
def test_rules_that_take_norms_work_on_packed_vectors_without_fused_operations(name: str, dtype: str) -> None:
    variant, kind = TRUST_VARIANTS[name], np.dtype(dtype)
    assert variant.measure is not None
    for assembly in assemblies(variant.kernel, signatures(variant, kind)):
        for operation in ("mul", "(add|sub)"):
            assert in_loops(assembly, f"v?{operation}p{SUFFIX[dtype]}"), f"no packed {operation} in a loop"
        assert not re.search(r"\bvfn?m(add|sub)", assembly)
    (measuring,) = assemblies(variant.measure, [measure_signature(variant, kind)])
    assert in_loops(measuring, f"v?mulp{SUFFIX[dtype]}")
    assert in_loops(measuring, "v?addpd"), "the sums are not vectorised"
    assert not re.search(r"\bvfn?m(add|sub)", measuring)


def test_squares_work_on_packed_vectors_without_fused_operations(dtype: str) -> None:
    (assembly,) = assemblies(gradient_norms.squares, [gradient_norms.squares_signature(np.dtype(dtype))])
    assert in_loops(assembly, "v?mulpd")
    assert in_loops(assembly, "v?addpd")
    assert not re.search(r"\bvfn?m(add|sub)", assembly)


def test_every_rule_is_among_those_whose_machine_code_is_read() -> None:
    assert {type(spec) for spec in [*SPECS, *ROW_SPECS, *TRUST_SPECS]} == set(RULE_MODULES)


def test_reductions_work_on_packed_vectors_without_fused_operations(dtype: str) -> None:
    kind = np.dtype(dtype)
    packed = [rf"v?mulp{SUFFIX[dtype]}", rf"v?mulp{SUFFIX[dtype]}", r"v?p(max[su][dq]|cmpgt[dq]|maxu)"]
    for (function, asked), mnemonic in zip(reduce.kernels(kind), packed, strict=True):
        (assembly,) = assemblies(function, asked)
        assert in_loops(assembly, mnemonic), f"{function.__name__} is not vectorised"
        assert not re.search(r"\bvfn?m(add|sub)", assembly)


def test_the_reader_of_machine_code_sees_a_loop_that_is_not_vectorised() -> None:
    """Python's check for a zero divisor keeps the same source scalar."""
    variant = RULE_MODULES[Adam].variant(Adam())
    kernel: Any = numba.njit(signatures(variant, np.dtype("float32"))[:1], error_model="python")(variant.kernel)
    (assembly,) = (kernel.inspect_asm(signature) for signature in kernel.signatures)
    assert in_loops(assembly, "v?divss")
    assert not in_loops(assembly, "v?divps")
