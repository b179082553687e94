"""Weights that come down as deltas: what the values of such an answer are, as both ends see them.

    number    u64: the state that the block is in now; states are counted from 1, one for each change
    changes   u64 for each segment: the number of its last change * 4 + its kind; zeros up to a multiple of 64
    then for each segment, filled up to 64 bytes:
    SAME      nothing: who asked has read the last change
    DELTA     the codec's encoding of the last change, the same bytes for every worker
    WHOLE     float32: the segment as every worker holds it
    EXACT     float32: the server's own weights, which no worker holds (an export)

Who asks says the number that it read last (the lower half of its entry's `aux`; 0: none, `EXACT_BASE`: the weights
themselves; the upper half of a push_pull's says what its gradient was made from, as elsewhere the whole). A server
shows each state once, as a delta to the one before or whole, so a worker that read the one before gets the delta and
any other gets it whole; what all hold afterwards has the same bits.

Invariant: a segment's change is not above the block's number. A reader that holds state h of a segment has all changes
up to h, so of an answer that it asked for with a lower number it takes nothing twice.

Prior art: this is the primal error feedback of EF21-P (Gruntkowska, Tyurin & Richtarik, ICML 2023, algorithm 1): what a
delta lost stays in the difference between weights and what was shown, and is in the next one. Both ways together:
DoubleSqueeze (Tang et al., ICML 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from windlass_proto.codecs.kernel import aligned
from windlass_proto.codecs.registry import Codec
from windlass_proto.errors import ProtocolError
from windlass_proto.layout import Segment

Bytes = npt.NDArray[np.uint8]

EXACT_BASE: Final = (1 << 32) - 1
_KIND_BITS: Final = 2


class Kind(IntEnum):
    """How a segment travels; see the module."""

    SAME = 0
    DELTA = 1
    WHOLE = 2
    EXACT = 3


def head_bytes(segments: int) -> int:
    """Where the first segment begins."""
    return aligned(8 * (1 + segments))


def whole_bytes(elements: int) -> int:
    """A segment as it is."""
    return aligned(4 * elements)


def travels_whole(codec: Codec, elements: int) -> bool:
    """Is an encoding no shorter than the values themselves? Then they travel as they are."""
    return codec.room(elements) >= whole_bytes(elements)


def bytes_max(segments: Sequence[Segment]) -> int:
    """The longest answer about these segments."""
    return head_bytes(len(segments)) + sum(whole_bytes(segment.elements) for segment in segments)


def segment_bytes(codec: Codec, kind: int, elements: int) -> int:
    """What a segment of this kind takes."""
    if kind == Kind.SAME:
        return 0
    return codec.room(elements) if kind == Kind.DELTA else whole_bytes(elements)


def pack_head(number: int, changes: Sequence[tuple[int, int]], out: Bytes) -> int:
    """Write the head of an answer, with (number, kind) of each segment; returns its length."""
    nbytes = head_bytes(len(changes))
    head = out[:nbytes].view(np.uint64)
    head[:] = 0
    head[0] = number
    head[1 : 1 + len(changes)] = [change << _KIND_BITS | kind for change, kind in changes]
    return nbytes


def head_untrusted(raw: Bytes, segments: int) -> tuple[int, list[tuple[int, int]]]:
    """The number of an answer, and (number, kind) of each segment.

    Raises:
        ProtocolError: a change is above the number.
    """
    head = raw[: head_bytes(segments)].view(np.uint64)
    number = int(head[0])
    changes = [(word >> _KIND_BITS, word & 3) for word in head[1 : 1 + segments].tolist()]
    if any(change > number for change, _ in changes):
        raise ProtocolError("a server showed a change of weights before it was made", number=number)
    return number, changes
