"""Ops give what PyTorch gives, outputs and gradients: what was recorded of it, and itself where it is installed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.graph.op_case import OpCase, Values, case_modules, gradients, outputs, weights_for
from tests.graph.record_torch import CLOSE, COMMAND, Found, keyed, recorded, torch_found
from tests.graph.torch_twins import TWINS, WITHOUT_TWIN
from windlass_graph.array import array_of
from windlass_graph.op import table

CASES = [(module, text, case) for module in case_modules() for text, case in keyed(module).items()]
RECORDED = {module: recorded(module) for module in case_modules()}
RECORD_AGAIN = f"run `{COMMAND}` where torch is installed, and commit tests/graph/torch_values"


def ours(case: OpCase, ins: Sequence[Values], dtype: str = "float64") -> Found:
    ins = [each.astype(dtype) if each.dtype.kind == "f" else each for each in ins]
    made = [np.asarray(each) for each in outputs(case, [array_of(each) for each in ins])]
    by = gradients(case, ins, [each.astype(dtype) for each in weights_for(case)]) if case.by else []
    return Found([each.ravel().tolist() for each in made], [np.asarray(each).ravel().tolist() for each in by])


def compare(found: Found, wanted: Found, rtol: float, atol: float, move: str) -> None:
    assert (len(found.outputs), len(found.gradients)) == (len(wanted.outputs), len(wanted.gradients)), move
    for what, one, other in (("outputs", found.outputs, wanted.outputs), ("grads", found.gradients, wanted.gradients)):
        for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            told = f"{what}[{number}]. If the case or its twin has changed, {move}"
            np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=atol, err_msg=told)


def test_every_op_has_a_twin_in_torch_or_a_reason_why_not() -> None:
    lacking = sorted(
        name for name in table() if name not in TWINS and name not in WITHOUT_TWIN and not name.endswith("_gradient")
    )
    assert not lacking, (
        "tests/graph/torch_twins.py knows nothing of these ops: add each to TWINS (one line: what torch calls it), and "
        f"{RECORD_AGAIN}; or, if torch has nothing of the kind, add it to WITHOUT_TWIN with the reason"
    )


@pytest.mark.parametrize(("module", "text", "case"), CASES, ids=[text for _, text, _ in CASES])
def test_outputs_and_gradients_are_those_recorded_of_torch(module: str, text: str, case: OpCase) -> None:
    assert text in RECORDED[module], f"torch's values of this case are not recorded: {RECORD_AGAIN}"
    compare(ours(case, case.ins), RECORDED[module][text], 1e-6, 1e-9, RECORD_AGAIN)


def test_nothing_is_recorded_of_cases_that_are_gone() -> None:
    gone = [text for module, found in RECORDED.items() for text in found.keys() - keyed(module).keys()]
    assert not gone, RECORD_AGAIN


@pytest.mark.large
@pytest.mark.parametrize("module", case_modules())
def test_the_installed_torch_gives_what_was_recorded(module: str) -> None:
    for text, case in keyed(module).items():
        compare(torch_found(case, case.ins), RECORDED[module][text], CLOSE, CLOSE, RECORD_AGAIN)


def moved(case: OpCase, seed: int) -> list[Values]:
    """Other inputs of the same signs: each float a tenth more or less at most."""
    random = np.random.default_rng(seed)
    return [x * random.uniform(0.9, 1.0, x.shape) if x.dtype.kind == "f" else x for x in case.ins]


@pytest.mark.large
@pytest.mark.parametrize(("module", "text", "case"), CASES, ids=[text for _, text, _ in CASES])
@pytest.mark.parametrize(("dtype", "close"), [("float64", 1e-9), ("float32", 2e-4)])
def test_outputs_and_gradients_are_those_of_the_installed_torch(
    module: str, text: str, case: OpCase, dtype: str, close: float
) -> None:
    for seed in range(3):
        ins = moved(case, seed)
        compare(ours(case, ins, dtype), torch_found(case, ins, dtype), close, close, "its twin is wrong")
