"""Sums over the workers of a job: how metrics of a fit become those of all workers, and how workers agree.

Invariant: all workers that call get the same bits, since a synchronous store adds the vectors in the order of ranks.
What is decided from a total is decided alike everywhere, so no worker leaves a loop that another stays in. A worker
that has died is not waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from windlass_proto.rule_specs import SGD

if TYPE_CHECKING:
    from windlass.cluster import Cluster

Vector = npt.NDArray[np.float64]
_STORE: Final = "windlass.totals"


class Totals:
    """Adds vectors over the workers of `cluster`; without one, or with one worker, a vector is its own total."""

    def __init__(self, cluster: Cluster | None) -> None:
        self._cluster = cluster if cluster is not None and cluster.num_workers > 1 else None
        self._held: dict[str, Any] = {}

    @property
    def is_alone(self) -> bool:
        """Is there nobody to agree with?"""
        return self._cluster is None

    def of(self, vector: npt.ArrayLike) -> Vector:
        """The sum of what every worker gives; each calls it with as many numbers, in the same order of calls.

        Numbers that are not finite make what they make in a sum.
        """
        given = np.asarray(vector, np.float64).reshape(-1)
        if self._cluster is None or not given.size:
            return given.copy()
        odd = np.concatenate([np.isnan(given), np.isposinf(given), np.isneginf(given)]).astype(np.float64)
        total = self._added(np.concatenate([np.where(np.isfinite(given), given, 0.0), odd]))
        finite, nan, up, down = total.reshape(4, -1)
        finite[up > 0] = np.inf
        finite[down > 0] = -np.inf
        finite[(nan > 0) | ((up > 0) & (down > 0))] = np.nan
        return finite

    def _added(self, vector: Vector) -> Vector:
        """One step of the store, whose tensor holds the sum of all totals so far."""
        assert self._cluster is not None, "a worker alone adds nothing"
        store = self._cluster.store(_STORE, consistency="bsp")
        name = f"sums.{vector.size}"
        if name not in self._held:
            self._held |= store.init({name: np.zeros(vector.size)}, optimizer=SGD(lr=1.0), reduce="sum")
        held = self._held[name]
        before: Vector = np.array(held)
        store.update({name: -vector}, out={name: held})
        return np.array(held - before)
