"""Record what PyTorch makes of every case of every op that it has too, for tests that run without it.

    python -m tests.graph.record_torch

For each module of `tests/graph/cases` one file of `tests/graph/torch_values`: a line a case, with all outputs and, by
the inputs of `case.by`, the gradients of the harness's weighed sum, in float64 and as decimals that give the same float
back. Each file names the versions that made it. Run it after a change of cases or twins; a file whose values stay the
same, to the last places that differ between machines, is left as it is.
"""

from __future__ import annotations

import importlib
import json
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tests.graph.op_case import OpCase, Values, case_modules, weights_for
from tests.graph.torch_twins import TWINS
from windlass_graph.op import lookup

FOLDER = Path(__file__).parent / "torch_values"
COMMAND = "python -m tests.graph.record_torch"
CLOSE = 1e-11
"""Between two machines with one release of torch."""

Numbers: TypeAlias = list[Any]


class Found(NamedTuple):
    """What torch or we make of a case, each array flat."""

    outputs: list[Numbers]
    gradients: list[Numbers]

    def agrees(self, other: Found, close: float) -> bool:
        """To a relative and absolute difference."""
        mine, theirs = (*self.outputs, *self.gradients), (*other.outputs, *other.gradients)
        return len(mine) == len(theirs) and all(
            len(one) == len(two) and np.allclose(one, two, rtol=close, atol=close)
            for one, two in zip(mine, theirs, strict=True)
        )


def keyed(module: str) -> dict[str, OpCase]:
    """The cases of a module that have a twin, by their text; of equal texts the later ones are numbered."""
    seen: Counter[str] = Counter()
    found = {}
    for case in importlib.import_module(f"tests.graph.cases.{module}").CASES:
        seen[str(case)] += 1
        number = seen[str(case)]
        if case.op in TWINS:
            found[str(case) if number == 1 else f"{case} ({number})"] = case
    return found


def recorded(module: str) -> dict[str, Found]:
    """What the module's file holds; nothing if there is none."""
    path = FOLDER / f"{module}.json"
    if not path.exists():
        return {}
    values = json.loads(path.read_text(encoding="utf-8"))["values"]
    return {text: Found(found["outputs"], found["gradients"]) for text, found in values.items()}


def torch_found(case: OpCase, ins: Sequence[Values], dtype: str = "float64") -> Found:
    """By torch, now."""
    import torch  # type: ignore[import-not-found,unused-ignore]  # in no environment of ours

    tensors = [torch.tensor(each) for each in ins]
    tensors = [each.to(getattr(torch, dtype)) if each.is_floating_point() else each for each in tensors]
    leaves = [tensors[index].requires_grad_() for index in case.by]
    made = TWINS[case.op](torch, lookup(case.op).filled(case.attrs), *tensors)
    outputs = made if isinstance(made, tuple) else (made,)
    gradients: list[Any] = []
    if case.by:
        weights = [torch.tensor(each, dtype=outputs[0].dtype) for each in weights_for(case)]
        total = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
        gradients = list(torch.autograd.grad(total, leaves))
    return Found([_flat(each) for each in outputs], [_flat(each) for each in gradients])


def _flat(tensor: Any) -> Numbers:
    found: Numbers = tensor.detach().reshape(-1).tolist()
    return found


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    made_by = {"torch": version("torch"), "python": platform.python_version(), "machine": platform.machine()}
    for module in case_modules():
        before = recorded(module)
        values = {text: torch_found(case, case.ins) for text, case in keyed(module).items()}
        if values.keys() == before.keys() and all(found.agrees(before[text], CLOSE) for text, found in values.items()):
            continue
        kept = {text: before[text] if text in before and found.agrees(before[text], CLOSE) else found
                for text, found in values.items()}  # fmt: skip
        lines = ",\n".join(f"{json.dumps(text)}: {json.dumps(found._asdict())}" for text, found in kept.items())
        whole = f'{{"made_by": {json.dumps(made_by)},\n"values": {{\n{lines}\n}}}}\n'
        (FOLDER / f"{module}.json").write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    main()
