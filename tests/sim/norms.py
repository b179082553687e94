"""Norms between simulated servers: real reduction cores, and what is said of them on the way from server to server.

A partial is made of what a block is about to apply, so it tells which gradients it stands for; the audit compares every
total that is applied with the sum of the partials that were taken for it. What is said gets lost, doubled and late like
anything else, and is said again until it is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from tests.sim.ledger import LedgerError
from tests.sim.timeline import Faults, Timeline
from windlass_proto.layout import GroupLayout
from windlass_rules.norms import Norm
from windlass_server.norm_scopes import phases_of, scopes_of
from windlass_server.peers import Partial
from windlass_server.reducing import Phases
from windlass_server.reduction_core import ReductionCore, Told
from windlass_server.share_events import Apply, Measure, Settled, Totals

if TYPE_CHECKING:
    from tests.sim.server import Server

AGAIN_S = 0.05
RULES: tuple[tuple[Norm, ...], ...] = (
    (),
    (),
    (Norm.CLIP_TENSOR,),
    (Norm.CLIP_GLOBAL,),
    (Norm.CLIP_TENSOR, Norm.TRUST),
    (Norm.CLIP_GLOBAL, Norm.TRUST),
)


def norms_of(seed: int, table: int) -> tuple[Norm, ...]:
    """The phases of the rule that a table of this seed has."""
    return Random(f"{seed}/{table}/norms").choice(RULES)


class Norms:
    """The reductions of a run. `servers` is set once they are made."""

    def __init__(
        self,
        timeline: Timeline,
        faults: Faults,
        layouts: dict[int, GroupLayout],
        rules: dict[int, tuple[Norm, ...]],
        owner_of: Callable[[int], int],
        make_core: Callable[[dict[int, tuple[int, ...]]], ReductionCore],
    ) -> None:
        self.timeline = timeline
        self.faults = faults
        self.rules = rules
        self.layouts = layouts
        self.servers: list[Server] = []
        self.owner_of = owner_of
        self.said_again = 0
        self.totals = 0
        self._homes: dict[tuple[int, int], int] = {}  # (table, scope) -> the server that adds
        self._cores: dict[tuple[int, int], ReductionCore] = {}  # (server, table)
        self._kept: dict[tuple[int, int, int, int], Partial] = {}  # (server, table, scope, block) -> not answered
        self._made: dict[tuple[int, int, int, int], dict[int, Totals]] = {}  # table, scope, step, phase -> by block
        self._measured: set[tuple[int, int, int, int, int]] = set()  # table, block, segment, step, phase
        for table, layout in layouts.items():
            by_home: dict[int, dict[int, tuple[int, ...]]] = {}
            for scope, blocks in scopes_of(layout, rules[table]).items():
                home = self._homes[table, scope] = owner_of(layout.blocks[blocks[0]].vshard)
                by_home.setdefault(home, {})[scope] = blocks
            self._cores |= {(home, table): make_core(scopes) for home, scopes in by_home.items()}

    def phases(self, table: int) -> dict[int, Phases]:
        return phases_of(self.layouts[table], self.rules[table])

    # ---- a server says -----------------------------------------------------------------------------------------------

    def measured(self, table: int, effect: Measure, sum_of: Callable[[Apply], int]) -> None:
        """A block's partial: the sum of what it is about to apply, and how many updates that is."""
        both: Totals = (float(sum(map(sum_of, effect.parts))), float(len(effect.parts)))
        sums = both[: self.rules[table][effect.phase].sums]
        made = self._made.setdefault((table, effect.scope, effect.clock, effect.phase), {})
        if effect.block in made:
            raise LedgerError("norm", f"block {effect.block} took its partial of step {effect.clock} twice")
        made[effect.block] = sums
        self._measured |= {
            (table, effect.block, seg, effect.clock, effect.phase)
            for part in effect.parts
            for seg in range(part.seg_begin, part.seg_end)
        }
        self._say(Partial(table, effect.scope, effect.block, effect.clock, effect.phase, sums))

    def settled(self, table: int, effect: Settled) -> None:
        self._say(Partial(table, effect.scope, effect.block, effect.clock, 0, ()))

    def check(self, table: int, apply: Apply) -> None:
        """Every total that a run is applied with is that of the partials taken for it."""
        layout, rules = self.layouts[table], self.rules[table]
        for phase, totals in enumerate(apply.totals):
            if totals is None:
                continue
            tensor = layout.blocks[apply.block].segments[apply.seg_begin].tensor
            scope = len(layout.tensors) if rules[phase].is_global else tensor
            made = self._made.get((table, scope, apply.clock, phase), {})
            due = tuple(map(sum, zip(*made.values(), strict=True)))
            segs = {(table, apply.block, seg, apply.clock, phase) for seg in range(apply.seg_begin, apply.seg_end)}
            if totals != due or not segs <= self._measured:
                text = f"step {apply.clock} of block {apply.block} was applied with {totals}, its norm is {due}"
                raise LedgerError("norm", text)
            self.totals += 1

    # ---- between servers ---------------------------------------------------------------------------------------------

    def _say(self, said: Partial) -> None:
        sender = self.owner_of(self.layouts[said.table].blocks[said.block].vshard)
        self._kept[sender, *said[:3]] = said
        self._send(sender, said)

    def _send(self, sender: int, said: Partial) -> None:
        home = self._homes[said.table, said.scope]
        if home == sender:
            self.timeline.after(0.0, lambda: self._hear(sender, home, said))
            return
        rng = self.timeline.rng
        for _ in range(0 if rng.random() < self.faults.drop else 2 if rng.random() < self.faults.duplicate else 1):
            self.timeline.after(self._delay_s(), lambda: self._hear(sender, home, said))
        self.timeline.after(AGAIN_S, lambda: self._send_again(sender, said))

    def _send_again(self, sender: int, said: Partial) -> None:
        if self._kept.get((sender, *said[:3])) == said:
            self.said_again += 1
            self._send(sender, said)

    def _hear(self, sender: int, home: int, said: Partial) -> None:
        core = self._cores[home, said.table]
        if said.sums:
            told = core.partial(said.scope, said.block, said.clock, said.phase, said.sums, sender)
        else:
            told = core.settled(said.scope, said.block, said.clock)
            self.timeline.after(self._delay_s(), lambda: self._answered(sender, said))
        core.validate()
        for each in told:
            self._tell(home, said.table, each)

    def _tell(self, home: int, table: int, told: Told) -> None:
        if told.origin != home and self.timeline.rng.random() < self.faults.drop:
            return  # the link broke; who waits says its partial again
        delay_s = 0.0 if told.origin == home else self._delay_s()
        self.timeline.after(delay_s, lambda: self._take(table, told))

    def _take(self, table: int, told: Told) -> None:
        kept = self._kept.get((told.origin, table, told.scope, told.block))
        if kept is not None and kept[3:5] == (told.clock, told.phase):
            self._answered(told.origin, kept)
        self.servers[told.origin].reduced(table, told)

    def _answered(self, sender: int, said: Partial) -> None:
        if self._kept.get((sender, *said[:3])) == said:
            del self._kept[sender, *said[:3]]

    def _delay_s(self) -> float:
        rng = self.timeline.rng
        return rng.expovariate(1 / 0.02) if rng.random() < self.faults.slow else rng.uniform(0.0005, 0.003)
