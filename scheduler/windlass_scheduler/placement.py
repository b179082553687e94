"""Which server owns which vshards: a pure function, even, contiguous and moving as little as it can.

Without a previous plan each server gets one contiguous run of (nearly) equal load. With one, a server keeps
what it has, those above their fair part give away the tail of their runs, and what is free goes to those
below it, in runs: when one of n servers joins or leaves, at most 1/n of the vshards (rounded up) change hands.

Load is any additive weight per vshard (rows, bytes, operations a second); without it every vshard weighs the
same.

Blocks that cut no tensor differ in length, so their places are chosen (`homes`): the heaviest first, each to the server
that holds least (Graham, SIAM Journal on Applied Mathematics 17, 1969: at most 4/3 of the best there is), there to the
vshard that holds least. They lie apart within a server's run, so that a run that is cut later is cut in the middle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Run:
    """Vshards `[begin, end)`."""

    begin: int
    end: int


Plan: TypeAlias = dict[int, tuple[Run, ...]]
"""Runs of vshards by member id, each member's in ascending order; together they tile `[0, vshards)`."""


def place(
    members: Sequence[int],
    vshards: int,
    load: Sequence[float] | None = None,
    previous: Mapping[int, Sequence[Run]] | None = None,
) -> Plan:
    """Give every vshard to one of `members` (in the order of their indexes)."""
    assert members, "a placement needs a server"
    assert len(set(members)) == len(members)
    weights = list(load) if load is not None else [1.0] * vshards
    assert len(weights) == vshards
    if not any(weight > 0 for weight in weights):
        weights = [1.0] * vshards
    kept = {m: [v for run in (previous or {}).get(m, ()) for v in range(run.begin, run.end)] for m in members}
    if not any(kept.values()):
        return _runs(_fresh(members, weights))
    return _runs(_rebalanced(kept, weights))


def homes(sizes: Sequence[int], runs: Sequence[Sequence[Run]], held: Mapping[int, int]) -> tuple[int, ...]:
    """A vshard for each block of these sizes; `runs`: of each server, `held`: what lies by vshard already."""
    owned = [[v for run in server for v in range(run.begin, run.end)] for server in runs]
    of_vshard = [{v: held.get(v, 0) for v in sorted(vshards, key=_scattered)} for vshards in owned if vshards]
    of_server = [sum(loads.values()) for loads in of_vshard]
    found = [0] * len(sizes)
    for block in sorted(range(len(sizes)), key=lambda block: -sizes[block]):
        server = min(range(len(of_server)), key=of_server.__getitem__)
        loads = of_vshard[server]
        vshard = found[block] = min(loads, key=loads.__getitem__)
        loads[vshard] += sizes[block]
        of_server[server] += sizes[block]
    return tuple(found)


def _scattered(vshard: int) -> int:
    """Vshards in this order lie apart: their bits from the lowest on (van der Corput's sequence)."""
    return int(f"{vshard:016b}"[::-1], 2)


def _fresh(members: Sequence[int], weights: list[float]) -> dict[int, list[int]]:
    """Cut `[0, vshards)` where the cumulated load passes each multiple of a fair part."""
    fair = sum(weights) / len(members)
    owned: dict[int, list[int]] = {member: [] for member in members}
    passed = 0.0
    for vshard, weight in enumerate(weights):
        middle = passed + weight / 2
        owned[members[min(int(middle / fair), len(members) - 1)]].append(vshard)
        passed += weight
    return owned


def _rebalanced(kept: dict[int, list[int]], weights: list[float]) -> dict[int, list[int]]:
    fair = _fair_parts(kept, weights)
    held = {member: sum(weights[v] for v in vshards) for member, vshards in kept.items()}
    free = set(range(len(weights))).difference(*kept.values())
    for member, vshards in kept.items():
        while vshards and held[member] - weights[vshards[-1]] / 2 > fair[member]:
            given = vshards.pop()
            held[member] -= weights[given]
            free.add(given)
    receiver = min(kept, key=lambda member: held[member] - fair[member])
    for vshard in sorted(free):
        if held[receiver] + weights[vshard] / 2 > fair[receiver]:
            receiver = min(kept, key=lambda member: held[member] - fair[member])
        kept[receiver].append(vshard)
        held[receiver] += weights[vshard]
    return kept


def _fair_parts(kept: Mapping[int, list[int]], weights: list[float]) -> dict[int, float]:
    """What each should hold. Of equal vshards whole ones, and those that hold most have the odd one more."""
    if len(set(weights)) > 1:
        return dict.fromkeys(kept, sum(weights) / len(kept))
    each, odd = divmod(len(weights), len(kept))
    by_holding = sorted(kept, key=lambda member: -len(kept[member]))
    return {member: weights[0] * (each + (place < odd)) for place, member in enumerate(by_holding)}


def _runs(owned: Mapping[int, list[int]]) -> Plan:
    plan: Plan = {}
    for member, vshards in owned.items():
        runs: list[Run] = []
        for vshard in sorted(vshards):
            if runs and runs[-1].end == vshard:
                runs[-1] = Run(runs[-1].begin, vshard + 1)
            else:
                runs.append(Run(vshard, vshard + 1))
        plan[member] = tuple(runs)
    return plan
