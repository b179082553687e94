"""Orders of a checkpoint as they go to the servers of a store, one to each.

Invariant: an order belongs to no step: it neither waits for a step's credit nor holds any back.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from windlass.data_link import InFrame
from windlass.ticket import Ticket
from windlass.window_core import Request
from windlass_proto.checkpoint_orders import ANSWER_BYTES, Order, Phase, Save, to_bytes
from windlass_proto.frames import Op

if TYPE_CHECKING:
    from windlass.store import Store

_NO_STEP: Final = 1 << 62


def places(store: Store) -> tuple[dict[int, tuple[int, int]], dict[int, list[tuple[int, int]]]]:
    """By server: a share of the store, and the groups and tables that it holds, as (number in the manifest, table)."""
    exchange, owner = store.exchange, store.member.server_of
    held = [
        (number, table_id, block.vshard)
        for number, table_id in enumerate(sorted(exchange.tables))
        for block in exchange.tables[table_id].layout.blocks
    ]
    held += [
        (number, table_id, band.start)
        for number, table_id in enumerate(sorted(exchange.sparse))
        for band in exchange.sparse[table_id].bands()
    ]
    shares = {owner(vshard): (table_id, vshard) for _, table_id, vshard in held}
    tables: dict[int, dict[tuple[int, int], None]] = {server: {} for server in shares}
    for number, table_id, vshard in held:
        tables[owner(vshard)][number, table_id] = None
    return shares, {server: list(of_server) for server, of_server in tables.items()}


def send(
    store: Store,
    phase: Phase,
    key: str,
    folder: Path,
    *,
    how: Save | None = None,
    manifest: str = "",
    steps_before: int = 0,
    answers: dict[int, bytearray] | None = None,
) -> Ticket:
    """One order to each server of the store; `answers` is filled by server."""
    from windlass_proto import checkpoint_format

    shares, tables = places(store)
    ticket = Ticket(store.member.pump, f"checkpoint in {folder}", len(shares), store=store, clock=store.clock)
    clock = store.clock if store.modes.at(store.clock).is_strict else 0
    requests = []
    for server, share in shares.items():
        file = checkpoint_format.part_name(server, how.attempt) if how is not None else ""
        held = tuple(tables[server])
        answer = bytearray(ANSWER_BYTES)
        if answers is not None:
            answers[server] = answer
        order = Order(phase, key, store.store_id, clock, str(folder), held, file, manifest, steps_before)
        if how is not None:
            order = replace(order, base=how.base, tracks=how.tracks)
        requests.append(_request(order, share, answer, ticket))
    if not requests:
        store.on_done(ticket)
    store.member.pump.submit(requests)
    return ticket


def _request(order: Order, share: tuple[int, int], answer: bytearray, ticket: Ticket) -> Request:
    raw = to_bytes(order)
    return Request(
        Op.CHECKPOINT,
        order.store_id,
        share,
        0,
        0,
        0,
        owner=ticket,
        clock=_NO_STEP,
        payload=InFrame((memoryview(raw),), len(raw)),
        nbytes=len(raw),
        out=InFrame((memoryview(answer),), ANSWER_BYTES),
    )
