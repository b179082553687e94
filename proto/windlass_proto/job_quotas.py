"""Quotas: how many bytes of parameters a job may hold on the servers, and what a declaration adds to them.

Dense tensors count when they are declared: weights and the rule's state, before anything is recorded. Rows of tables
count when they are made, on the server that makes them, up to that server's part of the quota.

Invariant: `vectors` says of a rule what its kernels keep, without knowing them; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from windlass_proto.errors import UsageError
from windlass_proto.rule_specs import (
    DCASGD,
    FTRL,
    LAMB,
    LARS,
    SGD,
    AdaBelief,
    Adadelta,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    OwnRule,
    RMSprop,
    RuleSpec,
    Signum,
    Sum,
)

_UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE: Final = re.compile(r"(\d{1,15})(KiB|MiB|GiB|TiB)?\Z")


@dataclass(frozen=True, slots=True)
class Quotas:
    """Bytes a job may hold: `named` by its name, else `default`; 0 is as many as there are."""

    default: int = 0
    named: Mapping[str, int] = field(default_factory=dict)

    def of(self, job: str) -> int:
        return self.named.get(job, self.default)


def parse(texts: Iterable[str]) -> Quotas:
    """Quotas of a command line: "8GiB" for every job, "big=64GiB" for one.

    Raises:
        UsageError: one is neither, or a job is given twice.
    """
    default, named = 0, dict[str, int]()
    given = set[str]()
    for text in texts:
        job, equals, size = text.rpartition("=")
        found = _SIZE.match(size)
        if not found or (equals and not job) or job in given:
            raise UsageError(
                "--job-quota is not SIZE or JOB=SIZE, each job once",
                got=text[:80],
                next_move="Write for example 8GiB, or big=64GiB; 0 is no quota.",
            )
        given.add(job)
        nbytes = int(found[1]) * _UNITS[found[2] or ""]
        if job:
            named[job] = nbytes
        else:
            default = nbytes
    return Quotas(default, named)


def vectors(spec: RuleSpec, workers: int = 1) -> int:
    """Vectors as long as the weights that a rule keeps beside them, for so many workers.

    A rule of a package counts as one: servers do not say what it keeps.
    """
    match spec:
        case Sum():
            return 0
        case SGD() | Signum():
            return 1 if spec.momentum else 0
        case Adam() | AdamW():
            return 3 if spec.amsgrad else 2
        case RMSprop():
            return 1 + spec.centered + (spec.momentum > 0)
        case Adadelta() | NAdam() | Adamax() | AdaBelief() | FTRL() | LAMB():
            return 2
        case DCASGD():
            return max(1, workers) + spec.adaptive
        case LARS() | OwnRule():
            return 1
    return 1


def check(job: str, held_bytes: int, more_bytes: int, quota_bytes: int) -> None:
    """May `job`, which holds so many bytes, have more?

    Raises:
        UsageError: its quota is less.
    """
    if quota_bytes and held_bytes + more_bytes > quota_bytes:
        raise UsageError(
            "a job would hold more than its quota",
            job=job,
            bytes_held=held_bytes,
            bytes_asked=more_bytes,
            quota_bytes=quota_bytes,
            next_move="Delete tensors, declare less, or ask whoever runs the cluster for a larger --job-quota.",
        )
