"""A run whose checkpoint was brought back in the middle: who joins then counts steps as the others do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.team import Team
from windlass.optim import SGD

pytestmark = pytest.mark.cluster


def test_a_worker_that_joins_after_a_restore_counts_the_steps_that_the_checkpoint_had(
    team: Callable[..., Team], tmp_path: Path
) -> None:
    alone = team(1)
    arrays = {"w": np.zeros(8, np.float32)}
    (store,) = alone.stores(arrays, SGD(lr=1.0), consistency="asp")
    for step in range(8):
        store.update(arrays)
        if step == 2:
            store.checkpoint(tmp_path).result()
    store.restore(tmp_path)
    store.update(arrays)
    assert store.steps_done == 4
    joined = alone.join().store("model", consistency="asp")
    joined.init(arrays, SGD(lr=1.0))
    assert joined.steps_done - joined.clock == store.steps_done - store.clock == 3 - 8
