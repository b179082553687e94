"""Processor seconds of a process and everything under it, from /proc (Linux).

User and system time together; a child that ended and was waited for is counted in its parent. The kernel
accounts in ticks of 10 ms, so differences are taken over whole measurements, never over single exchanges.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_UTIME, _CSTIME, _PPID = 11, 14, 1  # columns after the parenthesised name


def processor_seconds(roots: Iterable[int]) -> float:
    """Seconds spent so far by the processes `roots` and their descendants."""
    return processor_seconds_alone(tree(roots))


def processor_seconds_alone(pids: Iterable[int]) -> float:
    """Seconds spent so far by `pids` and by the children they waited for."""
    ticks = 0
    for pid in pids:
        columns = _stat_columns(pid)
        if columns is not None:
            ticks += sum(int(value) for value in columns[_UTIME : _CSTIME + 1])
    return ticks / TICKS_A_SECOND


def tree(roots: Iterable[int]) -> list[int]:
    """`roots` and all their descendants that are alive, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        columns = _stat_columns(int(entry.name))
        if columns is not None:
            children.setdefault(int(columns[_PPID]), []).append(int(entry.name))
    found = list(dict.fromkeys(roots))
    for pid in found:
        found += [child for child in children.get(pid, ()) if child not in found]
    return found


def _stat_columns(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        return None  # it ended between the listing and the reading
    return text[text.rindex(")") + 2 :].split()
