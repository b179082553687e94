"""Updates on the servers of a cluster: gradients go to a store, new values come back into the parameters.

Invariant: between steps every worker of a synchronous store holds what the servers hold. The first copy of a parameter
lies in memory that servers on this host read and write in place. Values that come back while the backward pass is still
running land beside the parameters, since layers below may read the old ones until it ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass_graph.observation import observed
from windlass_proto.errors import UsageError
from windlass_proto.rule_specs import RuleSpec
from windlass_worker.trainable import Trainable

if TYPE_CHECKING:
    from windlass.store import Store
    from windlass.ticket import Ticket


class StoreUpdates:
    """The parameters of one model in one store.

    Raises:
        UsageError: another worker declares other parameters; or this one's first gradients were computed from other
            values than rank 0's.
    """

    def __init__(self, members: Iterable[Trainable], spec: RuleSpec, store: Store) -> None:
        if store.consistency.startswith("avg"):
            raise UsageError(
                "workers of this store train on their own, and a trainer with a store pushes every gradient",
                next_move="Give the Trainer no store and call store.average(params) after each step.",
                consistency=store.consistency,
            )
        self.store = store
        self.spec = spec
        self.members: dict[str, Trainable] = {}
        self._staged: dict[str, Any] = {}
        self.take(members)

    def take(self, members: Iterable[Trainable]) -> None:
        """Hold exactly these: what is new is declared, what is gone is deleted, what stays keeps values and state."""
        wanted = {member.name: member for member in members}
        gone = sorted(self.members.keys() - wanted)
        new = [wanted[name] for name in wanted if name not in self.members]
        if gone:
            self.store.delete(gone)
            for name in gone:
                del self.members[name]
                self._staged.pop(name, None)
        if new:
            self._declare(new)
        for name in self.members.keys() & wanted:
            if self.members[name].first is not wanted[name].first:
                self._move_in(wanted[name], self.members[name].first.memory)
        self.members = {name: wanted[name] for name in sorted(wanted)}

    def _declare(self, new: list[Trainable]) -> None:
        given = {member.name: np.asarray(member.first) for member in new}
        groups = {
            member.name: {"lr_mult": member.lr_mult, "decay_mult": member.decay_mult}
            for member in new
            if (member.lr_mult, member.decay_mult) != (1.0, 1.0)
        }
        held = self.store.init(given, optimizer=self.spec, groups=groups or None)
        for member in new:
            if member.is_fresh and not np.array_equal(held[member.name], given[member.name]):
                raise UsageError(
                    "gradients were computed from other values than rank 0's, which the servers hold",
                    next_move="Run the model once on a batch before making the Trainer, or give every worker one seed.",
                    parameter=member.name,
                )
            self._move_in(member, held[member.name])
            self._staged[member.name] = self.store.empty(member.first.shape, member.first.dtype)

    def _move_in(self, member: Trainable, values: Any) -> None:
        """Let the first copy lie where the store reads and writes; the others follow."""
        gradient = self.store.empty(member.first.shape, member.first.dtype)
        kept = np.array(values)
        if member.first.device.kind == "cpu":
            member.first.adopt(values, gradient)
        member.first.memory[...] = member.first.device.xp.asarray(kept)
        member.share()

    def step(self, scale: float, weight: float) -> None:
        """One step from the gradients that lie in the parameters, each times `scale`, of so much weight."""
        grads = {name: member.use_gradient(scale) for name, member in self.members.items()}
        self.store.update(grads, out=self._outputs(), weight=weight)
        self._arrived()

    def _outputs(self) -> dict[str, Any]:
        return {name: member.first.memory for name, member in self.members.items()}

    def _arrived(self) -> None:
        for member in self.members.values():
            member.share()

    def leave(self, name: str, weight: float, order: int) -> Ticket:
        """Inside `store.step()`: push one parameter's complete gradient, and ask for its new values beside it.

        Args:
            order: how many gradients left before; those of the first layers, which are needed first and come last,
                overtake what still waits.
        """
        member = self.members[name]
        with observed("store", "push", f"push {name}", member.first.memory.nbytes, member.first.device):
            grads = {name: member.use_gradient()}
            if self.is_synchronous:
                return self.store.push_pull(grads, out={name: self._staged[name]}, weight=weight, priority=order)
            return self.store.push(grads, weight=weight, priority=order)

    @property
    def is_synchronous(self) -> bool:
        return self.store.consistency.startswith("bsp")

    def finish(self, tickets: list[Ticket]) -> None:
        """After the step's block: wait for the new values and let them be the parameters'."""
        place = next(iter(self.members.values())).first.device
        with observed("store", "wait", "wait for values", 0, place):
            for ticket in tickets:  # until then gradients are lent, and the next backward pass writes to them
                ticket.result()
        if self.is_synchronous:
            for name, member in self.members.items():
                member.first.memory[...] = self._staged[name]
            self._arrived()
        else:
            self.pull()

    def pull(self) -> None:
        """Present values, into every copy."""
        self.store.pull(out=self._outputs()).result()
        self._arrived()
