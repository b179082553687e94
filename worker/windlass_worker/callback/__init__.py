"""Callbacks of `Estimator.fit`.

    estimator.fit(train, epochs=20, validation=test, callbacks=[
        wl.callback.Progress(), wl.callback.Checkpoint("checkpoints"), wl.callback.EarlyStopping("validation_loss"),
    ])

One of one's own derives from `Callback` and defines the moments it cares for; each is given the `Event`.
"""

from __future__ import annotations

from windlass_worker.callback.checkpoint import Checkpoint
from windlass_worker.callback.event import Callback, Event
from windlass_worker.callback.progress import Logging, Progress, Speedometer
from windlass_worker.callback.schedule import Schedule
from windlass_worker.callback.stopping import EarlyStopping

__all__ = ["Callback", "Checkpoint", "EarlyStopping", "Event", "Logging", "Progress", "Schedule", "Speedometer"]
