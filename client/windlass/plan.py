"""A plan: what one call sends, before it is known which requests it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from windlass.data_link import InArena
from windlass.dense_table import Span
from windlass.window_core import Request
from windlass_proto.frames import Op

if TYPE_CHECKING:
    from windlass.reads import Reads
    from windlass.window_core import Stamp

Action = Callable[[], None]

Squares = Mapping[tuple[int, int, int], float]
"""Sums of squares of a call's gradients by (table, block, segment)."""
NOT_MEASURED: Final[Squares] = MappingProxyType({})


class Plan(NamedTuple):
    """What a call sends, by table; what is done with its last answer; what its caller then gets.

    `lasts`: of so many of the first tables the entries are the step's last for their segments.
    `squares`: of what this worker's norms clip. `encode`: what writes values that are encoded, once every part of the
    call was found good.
    """

    spans: list[list[Span]]
    settle: tuple[Action, ...]
    finish: Callable[[], Any] | None
    entries: int
    lasts: int = 0
    squares: Squares = NOT_MEASURED
    encode: tuple[Action, ...] = ()

    def requests(
        self,
        op: Op,
        store_id: int,
        owner: Any,
        *,
        clock: int,
        weight: float,
        stamp: Stamp | None,
        free: bool,
        nowait: bool,
        priority: int,
        reads: Reads | None,
    ) -> list[Request]:
        """An entry for each span, encoded now; `free`: what lies in shared memory does not travel.

        `reads`: as `Request.read`.
        """
        for action in self.encode:
            action()
        return [
            Request(
                op,
                store_id,
                share,
                block,
                begin,
                end,
                owner=owner,
                clock=clock,
                payload=payload,
                nbytes=0 if payload is None or (free and type(payload) is InArena) else payload.nbytes,
                out=out,
                weight=weight if factor is None else factor,
                stamp=stamp,
                last=table < self.lasts,
                nowait=nowait,
                priority=priority,
                rows=rows,
                read=reads.number_of(share[0], block, begin, end) if reads is not None else 0,
                base=base,
            )
            for table, spans in enumerate(self.spans)
            for share, block, begin, end, payload, out, rows, base, factor in spans
        ]
