"""One block of a dense group on this server: its weights, its slots, and what is kept beside them.

Invariant: all of it is guarded by the lock of the block's share.
"""

from __future__ import annotations

from windlass_proto.layout import Block
from windlass_rules import RuleKernels
from windlass_server.dense_memory import DenseMemory
from windlass_server.read_counts import ReadCounts
from windlass_server.segment_settings import Setting
from windlass_server.shown_weights import ShownWeights
from windlass_server.worker_copies import WorkerCopies


class BlockArrays:
    """The memory of one block.

    `version` counts what changed it; `saved` is a checkpoint's copy: the save's attempt, and `changes` then.
    """

    __slots__ = ("block", "copies", "reads", "saved", "settings", "shown", "slots", "version", "weights")

    def __init__(self, block: Block, kernels: RuleKernels, memory: DenseMemory, shown: ShownWeights | None) -> None:
        self.block = block
        self.version = 0
        self.saved = ("", -1)
        self.weights = memory.zeros(block.elements)
        self.slots = tuple(memory.zeros(block.elements) for _ in kernels.kept)
        self.copies = WorkerCopies(block, memory) if kernels.copies else None
        self.reads = ReadCounts(len(block.segments))
        self.shown = shown
        self.settings: dict[int, list[Setting]] = {}  # version of the hyper-parameters -> one a segment

    @property
    def changes(self) -> int:
        """Counts what changed of what a checkpoint has of the block."""
        return self.version + (self.shown.number if self.shown is not None else 0)
