"""How long a user waits before anything happens: the import, and a local cluster."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.case import Case, Extent
from benchmarks.child import REPOSITORY, NotMeasuredError
from benchmarks.isolation import inherited, moved_into, own_folder
from benchmarks.report import GoalOutcome, Row

COMMAND_S = 60.0
IMPORT_GOAL_S = 0.15
UP_GOAL_S = 3.0
ROUNDS = 5
# A folder without an __init__ imports in no time and is nothing: `__file__` tells it from the library.
IMPORTS = (
    "import time; t = time.perf_counter(); import {module}; t = time.perf_counter() - t; "
    "assert {module}.__file__ is not None, 'an empty namespace was imported'; print(t)"
)


def start(extent: Extent) -> Iterator[Row]:
    rounds = 2 if extent.quick else ROUNDS
    taken: dict[str, list[float]] = {"numpy": [], "windlass": []}
    try:
        for _ in range(rounds + 1):  # the first one fills the file cache
            for module, seconds in taken.items():
                seconds.append(import_s(module))
        yield Row("start", "warm", "import numpy, alone", {"import_s": statistics.median(taken["numpy"][1:])})
        yield _bounded("import windlass", "import_s", taken["windlass"][1:], IMPORT_GOAL_S)
    except NotMeasuredError as error:
        yield Row("start", "warm", "import windlass", not_measured=str(error))
    try:
        ready = [up_s() for _ in range(rounds + 1)]
        yield _bounded("windlass up, 2 servers", "ready_s", ready[1:], UP_GOAL_S)
    except NotMeasuredError as error:
        yield Row("start", "warm", "windlass up, 2 servers", not_measured=str(error))


def import_s(module: str) -> float:
    return float(_run([sys.executable, "-c", IMPORTS.format(module=module)], inherited()))


def up_s() -> float:
    """From the command to its return, which is when the cluster is ready."""
    with own_folder() as folder:
        environment = {**inherited(), **moved_into(folder)}
        begin = time.monotonic()
        try:
            _run([sys.executable, "-m", "windlass", "up", "--detach", "--servers", "2"], environment)
            seconds = time.monotonic() - begin
            _run([sys.executable, "-m", "windlass", "down"], environment)
        except NotMeasuredError:
            with contextlib.suppress(NotMeasuredError):  # what went wrong first is what is told
                _run([sys.executable, "-m", "windlass", "down"], environment)
            raise
        return seconds


def _run(argv: list[str], environment: dict[str, str]) -> str:
    """Standard output of a command that succeeds."""
    what = " ".join(argv[1:4]) if argv[1] == "-m" else "the import"
    try:
        done = subprocess.run(
            argv,
            env=environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotMeasuredError(f"{what} took longer than {COMMAND_S:.0f} s") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise NotMeasuredError(f"{what}: {lines[-1] if lines else done.returncode}")
    return done.stdout


def _bounded(contender: str, figure: str, seconds: list[float], goal_s: float) -> Row:
    median = statistics.median(seconds)
    outcome = GoalOutcome(f"<= {goal_s:g} s, is {median:.3g} s", median <= goal_s)
    return Row("start", "warm", contender, {figure: median}, goals=(outcome,))


CASES = (Case("start", "`import windlass`, and `windlass up` until it is ready", start),)
