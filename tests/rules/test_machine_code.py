"""The compiled loops work on whole vectors, and nothing in them fuses a product with a sum."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from windlass_proto import kernel_cache
from windlass_proto.rule_specs import SGD, Adagrad, Adam, RuleSpec
from windlass_rules import reduce
from windlass_rules.registry import RULE_MODULES, signatures

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="reads x86-64 assembly; this machine has another",
)

SUFFIX = {"float32": "s", "float64": "d"}
RULES: list[tuple[RuleSpec, list[str]]] = [
    (SGD(lr=0.1), ["mul", "add", "sub"]),
    (SGD(lr=0.1, momentum=0.9), ["mul", "add", "sub"]),
    (Adagrad(), ["mul", "add", "sub", "div", "sqrt"]),
    (Adam(), ["mul", "add", "sub", "div", "sqrt"]),
]


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


@pytest.mark.parametrize(("rule", "operations"), RULES, ids=str)
def test_rules_work_on_packed_vectors_without_fused_operations(
    rule: RuleSpec, operations: list[str], dtype: str
) -> None:
    variant = RULE_MODULES[type(rule)].variant(rule)
    for assembly in assemblies(variant.kernel, signatures(variant, np.dtype(dtype))):
        # Before AVX a packed square root costs as much as four single ones, and LLVM may keep those.
        demanded = operations if re.search(r"\bvmulp", assembly) else [each for each in operations if each != "sqrt"]
        for operation in demanded:
            assert in_loops(assembly, f"v?{operation}p{SUFFIX[dtype]}"), f"no packed {operation} in a loop"
        assert not re.search(r"\bvfn?m(add|sub)", assembly)


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
