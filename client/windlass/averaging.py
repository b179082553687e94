"""Averaging: workers train on their own and exchange their parameters every H steps.

What a worker sends is how far it has come from the values of the last exchange, `before - now`, as a gradient of the
store. The store's rule makes new values of the mean (or sum) over the workers, so it is the *outer* optimizer:

    SGD(lr=1)                            the mean of all parameters: parameter averaging, local SGD (Stich, ICLR '19)
    SGD(lr=0.7, momentum=0.9, nesterov=True)   DiLoCo (Douillard et al., arXiv:2311.08105, algorithm 1)
    SGD(lr=1), reduce="sum"              every worker's way is added: deltas, as in Paddle's GEO mode
    SGD(lr=a), reduce="sum", elastic=a   elastic averaging (Zhang, Choromanska & LeCun, arXiv:1412.6651, equations 5, 6)

With `elastic` a worker keeps its own parameters and is pulled towards the center: now += a * (center - now), while the
center is pulled towards it by the rule. Without, its parameters become the new values.

Where we differ from Zhang et al.: exchanges are steps of bsp, so all workers see one center.

Invariant: `_center` holds what the last exchange ended with, which nobody can have changed since: the next one needs
this worker. The store's thread owns it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass.arrays import Array, as_target
from windlass_proto.errors import UsageError
from windlass_proto.rule_specs import SGD

if TYPE_CHECKING:
    from windlass.store import Store


class Averaging:
    """One store's."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._center: dict[str, Array] = {}
        self._steps = 0
        self._weight = 0.0

    def step(self, params: Mapping[str, Any], weight: float, *, now: bool) -> bool:
        """Count a local step; exchange with the H-th, or `now`."""
        store = self._store
        mode = store.modes.at(store.clock)
        if not mode.every:
            raise UsageError(
                "average was called on a store whose workers do not train on their own",
                store=store.name,
                consistency=mode,
                next_move='Open the store with consistency="avg:H=16", or use update with gradients.',
            )
        if not 0.0 < weight < 1e30:
            raise UsageError("a weight is not a positive number", weight=weight, next_move="Pass weight=len(batch).")
        arrays = {name: as_target(name, value) for name, value in params.items()}
        self._check_elastic(arrays, mode.elastic)
        self._steps += 1
        self._weight += weight
        if self._steps < mode.every and not now:
            return False
        self._exchange(arrays, mode.elastic)
        self._steps, self._weight = 0, 0.0
        return True

    def _exchange(self, arrays: dict[str, Array], elastic: float) -> None:
        missing = [name for name in arrays if name not in self._center]
        if missing:
            self._center |= self._store.pull(missing).result()
        ways = {name: np.subtract(self._center[name], array) for name, array in arrays.items()}
        center = self._store.update(ways, weight=self._weight)
        for name, array in arrays.items():
            if elastic:
                array += np.asarray(elastic, array.dtype) * ways[name]
            else:
                np.copyto(array, center[name])
        self._center |= center

    def _check_elastic(self, arrays: Mapping[str, Array], elastic: float) -> None:
        """Worker and center are pulled by one number, or they drift apart."""
        if not elastic:
            return
        exchange = self._store.exchange
        for name in arrays:
            table_id, _ = exchange.place(name)
            if exchange.rules[table_id] != SGD(lr=elastic) or exchange.means[table_id]:
                raise UsageError(
                    "elastic averaging pulls the center as it pulls the workers",
                    tensor=name,
                    elastic=elastic,
                    optimizer=exchange.rules[table_id],
                    reduce="mean" if exchange.means[table_id] else "sum",
                    next_move=f'Declare it with optimizer=wl.optim.SGD(lr={elastic:g}) and reduce="sum".',
                )
