"""The far side of a contender: one JSON line asks, one answers, until standard input ends.

A worker process of any library calls `serve(subject)`. End of input is the parent's death as well as its
goodbye, so a worker never outlives the bench. Whatever a library prints goes to standard error: the pipe
carries answers only. Standard library only: this runs in the peers' environments.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from benchmarks.load import Load, Timing


class Subject(Protocol):
    """A client of a parameter server, connected."""

    def prepare(self, load: Load) -> None:
        """Declare the load's tensors and warm every buffer."""

    def exchange(self, key: str) -> None:
        """Push the gradients of `key`, and return when the new values are in the caller's arrays."""

    def drop(self, key: str) -> None:
        """Free what `prepare` made, as far as the library can."""

    def close(self) -> None:
        """Disconnect."""


def serve(connect: Callable[[], Subject]) -> None:
    """Connect, say so, and answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(fields: dict[str, Any]) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        subject = connect()
    except Exception as error:  # noqa: BLE001 - a process's root: the parent prints it as "not measured"
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": os.getpid()})
    try:
        for line in sys.stdin:
            answer(_answer(subject, json.loads(line)))
    finally:
        subject.close()


def _answer(subject: Subject, request: dict[str, Any]) -> dict[str, Any]:
    try:
        match request["ask"]:
            case "prepare":
                subject.prepare(Load.from_json(request["load"]))
                return {}
            case "measure":
                return measure(lambda: subject.exchange(request["key"]), int(request["count"])).to_json()
            case "drop":
                subject.drop(request["key"])
                return {}
            case other:
                return {"error": f"unknown request {other!r}"}
    except Exception as error:  # noqa: BLE001 - the RPC boundary: the parent decides what a failure means
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def measure(exchange: Callable[[], None], count: int) -> Timing:
    """Time `count` exchanges one by one."""
    seconds = []
    begin = before = time.monotonic()
    for _ in range(count):
        exchange()
        now = time.monotonic()
        seconds.append(now - before)
        before = now
    return Timing(begin, before, tuple(seconds))
