"""Rows as they are measured: a line of the table at once, a JSON line in the run's file at once.

A run that is stopped keeps what it measured. Ratios say how many times as fast the row is as the named other
one in the same rounds; a goal is a ratio (or a bound) with what BENCHMARKS asks of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

CASE_WIDTH, SETTING_WIDTH, CONTENDER_WIDTH = 15, 38, 26


@dataclass(frozen=True, slots=True)
class GoalOutcome:
    text: str
    met: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one setting. `figures` are named with their unit last."""

    case: str
    setting: str
    contender: str
    figures: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    goals: tuple[GoalOutcome, ...] = ()
    not_measured: str | None = None


class Report:
    """Prints rows and writes them. Owns the run's file."""

    def __init__(self, path: Path, facts: Mapping[str, object]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("w", encoding="utf-8")
        self._last_setting = ("", "")
        self._write({"kind": "run", **facts})
        self.goals_met = 0
        self.goals_missed: list[str] = []

    def print_head(self, facts: Mapping[str, object]) -> None:
        print(f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}")
        print(f"Python {facts['python']}, {_joined(facts['versions'])}; revision {facts['revision']}")
        print(f"peers: {_joined(facts['peers'])}")
        print("GB/s counts bytes pushed and bytes pulled, 1 GB = 1e9 bytes. Contenders take turns, A B A B.")
        head = f"{'case':{CASE_WIDTH}}{'setting':{SETTING_WIDTH}}{'contender':{CONTENDER_WIDTH}}figures"
        print(f"\n{head}\n{'-' * len(head)}", flush=True)

    def add(self, row: Row) -> None:
        self._write({"kind": "row", **asdict(row)})
        self.goals_met += sum(goal.met for goal in row.goals)
        missed = [f"{row.case}, {row.setting}, {row.contender}: {goal.text}" for goal in row.goals if not goal.met]
        self.goals_missed += missed
        shown = (row.case, row.setting) if (row.case, row.setting) != self._last_setting else ("", "")
        self._last_setting = (row.case, row.setting)
        lead = f"{shown[0]:{CASE_WIDTH}}{shown[1]:{SETTING_WIDTH}}{row.contender:{CONTENDER_WIDTH}}"
        print(lead + described(row), flush=True)

    def print_foot(self) -> None:
        """The goals that were missed, and where the JSON lines are."""
        if self.goals_met or self.goals_missed:
            print(f"\ngoals: {self.goals_met} met, {len(self.goals_missed)} missed")
        for missed in self.goals_missed:
            print(f"  missed: {missed}")
        print(f"\nJSON lines: {self.path}")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def _write(self, fields: Mapping[str, object]) -> None:
        self._file.write(json.dumps(fields) + "\n")
        self._file.flush()


def described(row: Row) -> str:
    """Figures, ratios and goals in words."""
    if row.not_measured is not None:
        return f"not measured ({row.not_measured})"
    parts = ["  ".join(_figure(name, value) for name, value in row.figures.items())]
    parts += [f"{ratio:.3g}x {other}" for other, ratio in row.ratios.items()]
    parts += [f"goal {goal.text}: {'met' if goal.met else 'MISSED'}" for goal in row.goals]
    return "; ".join(parts)


def _figure(name: str, value: float) -> str:
    if name in UNITS:
        return f"{value:,.0f} {UNITS[name]}" if value >= 1000 else f"{value:.3g} {UNITS[name]}"
    assert name.endswith("_s"), f"a figure without a unit: {name}"
    return f"{name.removesuffix('_s').replace('_', ' ')} {_duration(value)}".strip()


UNITS = {
    "gb_per_s": "GB/s",
    "new_mrows_per_s": "M rows/s made",
    "bytes_a_row": "B a row",
    "push_mrows_per_s": "M rows/s pushed",
    "pull_mrows_per_s": "M rows/s pulled",
    "push_pull_mrows_per_s": "M rows/s both",
    "cpu_s_per_gb": "CPU s/GB",
    "samples_per_s": "samples/s",
    "accuracy": "accuracy",
    "epochs": "epochs",
    "hidden_percent": "% hidden",
    "planned_mib": "MiB planned",
    "unplanned_mib": "MiB unplanned",
    "saved_percent": "% saved",
}


def _duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def _joined(named: object) -> str:
    assert isinstance(named, dict)
    return ", ".join(f"{name} {value}" for name, value in named.items())
