"""Record what `torch.optim` does in float64, for tests that run without torch.

    python tests/rules/record_trajectories.py tests/rules/trajectories.json

A few steps over a few parameters for each rule and each of its terms; weights are written by `float.hex`, so
that nothing is rounded. The file names the versions that made it. Run it again only to record more: the
committed file is what tests compare with.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

STEPS = 5
START = [0.5, -1.25, 3.0, 1e-3, -2e-2, 0.0]

CASES: list[tuple[str, dict[str, object]]] = [
    ("sgd", {"lr": 0.1}),
    ("sgd", {"lr": 0.1, "weight_decay": 0.01}),
    ("sgd", {"lr": 0.1, "momentum": 0.9}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.02}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.02, "nesterov": True}),
    ("adagrad", {"lr": 0.05}),
    (
        "adagrad",
        {"lr": 0.05, "lr_decay": 0.1, "weight_decay": 0.02, "initial_accumulator_value": 0.1, "eps": 1e-6},
    ),
    ("adam", {}),
    ("adam", {"lr": 0.01, "betas": [0.8, 0.95], "eps": 1e-4, "weight_decay": 0.03}),
    ("adamw", {}),
    ("adamw", {"lr": 0.02, "betas": [0.85, 0.9], "eps": 1e-5, "weight_decay": 0.1}),
]


def gradient(step: int, index: int) -> float:
    """A gradient that changes sign and scale; made of exact operations, so that any machine has the same."""
    return ((step * 7 + index * 5) % 11 - 5) / (1 << (index % 3 * 3)) + 0.125 * step


def main(path: str) -> None:
    import torch  # type: ignore[import-not-found,unused-ignore]  # in no environment of ours

    makers = {
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    recorded = []
    for rule, hyper in CASES:
        w = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in hyper.items()}
        optimizer = makers[rule]([w], foreach=False, **given)
        weights = []
        for step in range(1, STEPS + 1):
            w.grad = torch.tensor([gradient(step, i) for i in range(len(START))], dtype=torch.float64)
            optimizer.step()
            weights.append([value.hex() for value in w.tolist()])
        recorded.append({"rule": rule, "hyper_parameters": hyper, "weights": weights})
    made_by = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    lines = ",\n".join(json.dumps(case) for case in recorded)
    text = f'{{"made_by": {json.dumps(made_by)},\n"start": {json.dumps(START)},\n"cases": [\n{lines}\n]}}\n'
    Path(path).write_text(text)


if __name__ == "__main__":
    main(sys.argv[1])
