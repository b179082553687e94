"""How a training run went: accuracy after each epoch, with its time. Crosses from a worker to the bench.

Standard library only: the peers' environments import this too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Course:
    """Begins when it is made: connected, declared, data in memory."""

    begin_s: float = field(default_factory=time.monotonic)
    after_epochs: list[tuple[float, float]] = field(default_factory=list)  # (seconds, accuracy)

    def note(self, accuracy: float) -> None:
        """An epoch ended; evaluating counts as training time, for everybody alike."""
        self.after_epochs.append((time.monotonic() - self.begin_s, accuracy))

    def to_json(self, samples: int) -> dict[str, Any]:
        return {"after_epochs": self.after_epochs, "samples": samples}


def summary(answer: dict[str, Any], goal: float) -> dict[str, float]:
    """Seconds to the goal (absent when it was never reached), best accuracy, samples a second."""
    after = [(float(seconds), float(reached)) for seconds, reached in answer["after_epochs"]]
    figures = {
        "samples_per_s": float(answer["samples"]) / after[-1][0],
        "accuracy": max(reached for _, reached in after),
    }
    there = [(epoch, seconds) for epoch, (seconds, reached) in enumerate(after, 1) if reached >= goal]
    if there:
        figures = {"to_accuracy_s": there[0][1], "epochs": float(there[0][0]), **figures}
    return figures
