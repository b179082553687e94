"""Every maximum of windlass, in one place, with its arithmetic.

Invariant: nothing that grows by what a peer sends is bounded anywhere else. A figure without a reason beside it is a
bug.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1

# Every array a kernel touches starts on a cache line (AVX-512 loads one at a time).
ALIGN_BYTES: Final = 64

# One block of float64 is 8 MiB; a frame holds at least one, so a piece is never cut below a block.
# Below 128 Ki elements (512 KiB of float32) an entry's fixed cost outweighs what more blocks win: 1 MiB over shared
# memory took 1.2 ms in eight blocks and 0.5 ms in two.
BLOCK_ELEMENTS_MIN: Final = 128 * KIB
BLOCK_ELEMENTS_MAX: Final = MIB
BLOCK_ELEMENTS_FLOOR: Final = KIB  # what a declaration may ask for; below it entries outweigh their payload

# Blocks of one group: 64 GiB in blocks of 1 Mi float32 are 16 Ki. Each costs half a KiB of layout beside its values.
BLOCKS_MAX: Final = 1 << 16

# Frames are cut near this: 10 Gb/s is then 600 frames a second, and a preempting frame waits 2 ms at most.
FRAME_PAYLOAD_BYTES_TARGET: Final = 2 * MIB
FRAME_PAYLOAD_BYTES_MAX: Final = 64 * MIB
# A tensor that is never cut (layout="whole") is one block, so one entry of one frame, in which 128 rule records of
# 1 KiB may go ahead of it: 16 Mi float32 less 1 MiB.
WHOLE_TENSOR_BYTES_MAX: Final = FRAME_PAYLOAD_BYTES_MAX - MIB
# 96 B each: a table of 4,096 is 384 KiB, read in one go.
FRAME_ENTRIES_MAX: Final = 4096
# Linux's IOV_MAX.
SENDMSG_BUFFERS_MAX: Final = 1024

# Before a peer has proven the token it may make us hold this much, for this long.
PREAUTH_BYTES_MAX: Final = 512
HANDSHAKE_S: Final = 3.0

# Peers in their preamble at a time; an honest one needs milliseconds. So 64 that say nothing keep nobody out.
HANDSHAKES_MAX: Final = 64

# A thread per connection: 256 threads of 8 MiB address space and one poll each.
CONNECTIONS_MAX: Final = 256

# What one connection may have on its way before its answers come back. 256 MiB keeps two ResNet-50s in flight.
CREDIT_BYTES: Final = 256 * MIB
# What a server holds for open steps and unsent answers over all connections, before it answers "retry".
SERVER_POOL_BYTES_MAX: Final = 4 * GIB
# Steps a session may have closed and not yet had answered; over it the client waits.
OPEN_STEPS_MAX: Final = 64
# Entries of one connection not answered yet: 64 open steps of a model in 16 Ki blocks. A parked pull is half a KiB.
OPEN_ENTRIES_MAX: Final = 1 << 20
# A step further ahead than this is nonsense, not load.
CLOCK_AHEAD_MAX: Final = 1 << 20

# Shared-memory segments one connection may attach, and their sum.
ARENA_SEGMENTS_MAX: Final = 1024
ARENA_BYTES_MAX: Final = 64 * GIB

TENSORS_MAX: Final = 1 << 16
NAME_BYTES_MAX: Final = 256
SPEC_BYTES_MAX: Final = 16 * MIB

# A manifest names every tensor (150 B each: 10 MB for TENSORS_MAX) and block (15 B) and holds the user's state.
MANIFEST_BYTES_MAX: Final = 64 * MIB
# About 100 B an array: 5 arrays a block of BLOCKS_MAX are 32 MB.
TENSOR_FILE_HEADER_BYTES_MAX: Final = 64 * MIB
# One order to a server: a folder's path, names, a table's number each.
ORDER_BYTES_MAX: Final = MIB
# Sparse tables. A server's vshards are cut into bands at these parts of the key space: each band is one lock, one order
# and one entry a push, so four let four connections work at once and cost four entries (100 us) a push.
BANDS: Final = 4
# Row numbers are u32, the last two of which are taken; an index holds number + 1.
BAND_ROWS_MAX: Final = (1 << 32) - 2
# A row's values travel in one piece: 4,096 float64 are 32 KiB.
ROW_ELEMENTS_MAX: Final = 4096
# Ids of one entry: 1 Mi rows of 16 float32 are 72 MiB with their ids, over a frame's maximum; calls are cut before.
ENTRY_IDS_MAX: Final = 1 << 20
# What a table may hold over all servers unless it says otherwise, and at most.
TABLE_BYTES_DEFAULT: Final = 4 * GIB
TABLE_BYTES_MAX: Final = 1 << 42
# Ids a vshard counts at a time for admission, 6 B each: 1 Mi ids and 6 MiB a table of 256 vshards.
ADMISSION_COUNTERS: Final = 4096
ADMISSION_COUNT_MAX: Final = (1 << 16) - 1
# Rows a table with a capacity has at least: 64 a vshard of 256, of which the fullest has a third more than the mean.
EVICT_ROWS_MIN: Final = 1 << 14
# What a row's policies keep of it at most: a step and a score.
ROW_LIFE_BYTES: Final = 8
# Hot rows that one band is asked for at a time, of the 256 it counts.
HOT_ROWS_MAX: Final = 128
# What a row costs beside its values and slots: 8 of id, up to 14 of index.
ROW_OVERHEAD_BYTES: Final = 24
# What a worker keeps back of one table's rows under a codec with feedback: 3 million ids of 16 float32, 80 B each.
ROW_RESIDUAL_BYTES_MAX: Final = 256 * MIB

# Socket paths end at 107 bytes (sun_path of Linux less its zero).
UNIX_PATH_BYTES_MAX: Final = 107

# How a core explains itself: the last events of a share or session.
STORY_EVENTS_MAX: Final = 64

# Waiting, seconds.
RPC_S: Final = 30.0
WAIT_S: Final = 3600.0
WAIT_SAID_AFTER_S: Final = 10.0
