"""Every maximum of the scheduler, with its arithmetic.

Invariant: nothing that grows by what a member sends is bounded anywhere else.
"""

from __future__ import annotations

from typing import Final

# A beat a second each is 4,096 datagrams of 70 us, a third of a core; one scheduler should not do more.
MEMBERS_MAX: Final = 4096
# Every member may hold a watch, a waiting call and two short ones.
RPCS_MAX: Final = 4 * MEMBERS_MAX
# A year; longer is for ever, and a number that was meant for something else.
KEEP_JOB_S_MAX: Final = 366 * 86_400.0
# Stores that were freed, told again to servers whose stream breaks; 8 B each.
STORES_FREED_KEPT: Final = 4096
# Ended sessions kept so that a restart can show one and keep its rank; 200 B each.
ENDED_SESSIONS_MAX: Final = 1024
RANK_MAX: Final = 65_535
VSHARDS_MAX: Final = 65_536
NAME_BYTES_MAX: Final = 256
HOST_BYTES_MAX: Final = 256
ADDRESSES_MAX: Final = 8
JOBS_MAX: Final = 1024
STORES_MAX: Final = 4096
# A declaration of 65,536 tensors is about 4 MB of protobuf.
MESSAGE_BYTES_MAX: Final = 16 << 20

# A watcher that is this many updates behind is cut off and starts again from a snapshot, which is smaller.
WATCHER_UPDATES_MAX: Final = 1024
# Events kept for status; about 100 B each.
EVENTS_MAX: Final = 256

# Votes: 8, 16, ... steps ahead; after 16 doublings (half a million steps) the servers cannot be outrun.
PROPOSAL_ATTEMPTS_MAX: Final = 16
ENTER_MARGIN_STEPS: Final = 8
# A mode is to hold soon: the next step if nobody has begun it, then 2, 4, ... ahead.
MODE_MARGIN_STEPS: Final = 1
# Modes of a store whose steps may still come: a worker would have to be so many changes behind. 1 KiB each at most.
MODES_KEPT_MAX: Final = 8

# Finished actions kept per store: more than any script has between two steps that a retry could come from.
ACTIONS_KEPT_MAX: Final = 1024
BARRIERS_PER_JOB_MAX: Final = 256
BROADCASTS_KEPT_MAX: Final = 16
BROADCAST_BYTES_MAX: Final = 1 << 20
TEXT_BYTES_MAX: Final = 2000

LOADERS_PER_JOB_MAX: Final = 256
SHARD_BATCHES_MAX: Final = 16
LOADER_ROWS_MAX: Final = 1 << 48
LOADER_EPOCHS_MAX: Final = 1 << 31
# Epochs of one loader that are open at once: how far ahead of another a worker may read.
EPOCHS_OPEN_MAX: Final = 64

# A logged step is given out without a worker that is both this many steps and this long behind the first. Workers send
# every 0.25 s, and 1,000 steps a second are 250 steps in that time, so that steps alone would give out halves.
METRIC_STEPS_BEHIND: Final = 64
METRIC_BEHIND_S: Final = 2.0
# Steps that a job holds open, and steps given out whose names it remembers: 3 MB with three scalars a step.
METRIC_STEPS_MAX: Final = 4096
METRIC_NAMES_MAX: Final = 64
METRIC_RECORDS_PER_CALL_MAX: Final = 1024
FIGURES_MAX: Final = 256
DEVICE_CHARACTERS_MAX: Final = 128
# Staleness is counted under 65 + 57 numbers; one report has them once a store.
LAGS_MAX: Final = 128
