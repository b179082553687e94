"""The Trainer: gradients that lie in a model's parameters become an update, here or on a cluster.

    trainer = wl.Trainer(net.collect_params(), wl.optim.SGD(lr=0.1), store=store)   # without store: in this process
    with wl.autograd.record():
        losses = loss(net(x), y)          # one value a sample
    losses.backward()
    trainer.step(len(x))                  # gradients over the batch, one update, new values

`trainer.backward(losses)` in place of `losses.backward()` sends each gradient as soon as it is complete, while those of
the layers below are still computed.

Invariant: an update uses each gradient once, and only gradients that came since the last update. With a store the mean
is over all samples of all workers, so that N workers with a batch each train as one with N batches.

Prior art: MXNet's gluon.Trainer, whose calls these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windlass_graph import autograd
from windlass_graph.array import Array
from windlass_graph.functions import function
from windlass_proto import storage, tensor_file
from windlass_proto.errors import UsageError
from windlass_proto.rule_specs import RuleSpec
from windlass_worker.local_rules import LocalRules
from windlass_worker.store_updates import StoreUpdates
from windlass_worker.trainable import Trainable, trainables

if TYPE_CHECKING:
    from windlass.store import Store
    from windlass.ticket import Ticket


class Trainer:
    """Steps parameters from their gradients.

    Args:
        parameters: `net.collect_params()`, or a dict of arrays with gradients.
        optimizer: the update rule, e.g. `wl.optim.Adam(lr=1e-3)`; its rates may be schedules.
        store: where the model is to be held; None trains in this process, with the same rules.

    Parameters whose shapes are not known yet are taken at the first step. Under a store every worker then has to have
    begun with equal values; run the model once before, and rank 0's values win.

    Raises:
        UsageError: nothing is to be trained; the rule does not fit; workers disagree.
    """

    def __init__(self, parameters: Mapping[str, Any], optimizer: RuleSpec, store: Store | None = None) -> None:
        self._parameters = parameters
        self.optimizer = optimizer
        self.store = store
        self._members: dict[str, Trainable] = {}
        self._updates: LocalRules | StoreUpdates | None = None
        self._left: _Leaving | None = None
        self._begin()

    def _begin(self) -> None:
        """Take the parameters, if all shapes are known."""
        found = trainables(self._parameters)
        if found is None:
            return
        self._members = {member.name: member for member in found}
        if self.store is None:
            self._updates = LocalRules(found, self.optimizer)
        else:
            self._updates = StoreUpdates(found, self.optimizer, self.store)

    def _begun(self) -> LocalRules | StoreUpdates:
        if self._updates is None:
            self._begin()
        if self._updates is None:
            raise UsageError(
                "shapes of parameters are not known yet",
                next_move="Run the model once on a batch before the first step.",
            )
        return self._updates

    def begin(self) -> None:
        """Take the parameters now; the first step does so otherwise.

        Raises:
            UsageError: shapes are not known yet.
        """
        self._begun()

    def pull(self) -> None:
        """Take the store's present values into every copy, e.g. after `store.resume`.

        Raises:
            UsageError: there is no store.
        """
        updates = self._begun()
        if not isinstance(updates, StoreUpdates):
            raise UsageError("this trainer has no store to pull from", next_move="Give it one: Trainer(store=).")
        updates.pull()

    def take(self, parameters: Mapping[str, Any]) -> None:
        """Train these from now on: a model whose layers changed. What stays keeps its values and the rule's state.

        Every worker calls it at the same step. Without a store the state of what stays is kept as well.
        """
        updates = self._begun()
        found = trainables(parameters)
        if found is None:
            raise UsageError("shapes of new parameters are not known", next_move="Run the changed model once before.")
        self._parameters = parameters
        if isinstance(updates, StoreUpdates):
            updates.take(found)
        else:
            self._updates = updates.with_members(found)
        self._members = {member.name: member for member in found}

    def backward(self, losses: Array | Sequence[Array], batch_size: int | None = None) -> None:
        """Differentiate the mean of `losses`; with a store each gradient leaves as soon as it is complete.

        Args:
            losses: one value a sample, from each device that the batch was split over.
            batch_size: by what the sum is divided, and this worker's weight in the mean; the number of losses.
        """
        updates = self._begun()
        listed = [losses] if isinstance(losses, Array) else list(losses)
        count = float(batch_size or sum(loss.size for loss in listed))
        heads = [function("ones_like")(loss.detach()) * (1.0 / count) for loss in listed]
        if isinstance(updates, LocalRules):
            autograd.backward(listed, heads)
            self._left = _Leaving(count)
            return
        self._left = leaving = _Leaving(count)
        waiting = {id(copy): member for member in self._members.values() for copy in member.copies}

        def complete(array: Array) -> None:
            member = waiting.get(id(array))
            if member is not None and member.is_fresh:
                leaving.tickets.append(updates.leave(member.name, count, len(leaving.tickets)))
                leaving.names.add(member.name)

        with updates.store.step():
            autograd.backward(listed, heads, final=complete)
            self._check_fresh(leaving.names, ignore=False)

    def step(self, batch_size: int | None = None, *, ignore_stale_grad: bool = False) -> None:
        """One update. After `backward` of this trainer it needs no batch size; the values are new when it returns.

        Args:
            batch_size: what the summed gradients are divided by, and this worker's weight in the mean.
            ignore_stale_grad: without a store, leave parameters as they are that got no gradient since the last step.

        Raises:
            UsageError: a parameter got no gradient, or no batch size is known.
        """
        updates = self._begun()
        left, self._left = self._left, None
        if left is None and batch_size is None:
            raise UsageError("no batch size is known", next_move="Call step(len(batch)), or backward of the trainer.")
        if isinstance(updates, StoreUpdates):
            if left is not None:
                updates.finish(left.tickets)
                return
            self._check_fresh(set(), ignore=False)
            updates.step(1.0 / float(batch_size or 1), float(batch_size or 1))
            return
        stale = self._check_fresh(set(), ignore=ignore_stale_grad)
        updates.step(1.0 if left is not None else 1.0 / float(batch_size or 1), without=stale)

    def _check_fresh(self, left: set[str], *, ignore: bool) -> set[str]:
        """The parameters without a new gradient.

        Raises:
            UsageError: there are such, and they are not to be ignored.
        """
        stale = {member.name for member in self._members.values() if not member.is_fresh} - left
        if stale and not ignore:
            raise UsageError(
                "parameters got no gradient since the last step",
                next_move='Use them in the loss, set their grad_req to "null", or pass ignore_stale_grad=True.',
                parameters=", ".join(sorted(stale)),
            )
        return stale

    def set_learning_rate(self, lr: Any) -> None:
        """Another rate, or schedule, from the next step on; with a store every worker's, as `store.set(lr=)`."""
        updates = self._begun()
        if isinstance(updates, StoreUpdates):
            updates.store.set(lr=lr)
        else:
            updates.set(lr=lr)

    def save_states(self, path: str | Path) -> None:
        """Without a store: what the rule keeps for each parameter, as one safetensors file.

        Raises:
            UsageError: the state is on servers.
        """
        tensor_file.write(storage.place_of(path), self._local("store.checkpoint(uri)").states(), {"format": "np"})

    def load_states(self, path: str | Path) -> None:
        """Go on from what `save_states` wrote.

        Raises:
            UsageError: it is of another model or rule; nothing is changed.
            CorruptionError: the file is torn.
        """
        self._local("store.resume(uri)").take_states(tensor_file.load(storage.place_of(path)))

    def _local(self, instead: str) -> LocalRules:
        updates = self._begun()
        if isinstance(updates, StoreUpdates):
            raise UsageError("the rule's state is on the servers", next_move=f"Use {instead}.")
        return updates


class _Leaving:
    """A backward pass of the trainer: its weight, and the gradients that have left."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.tickets: list[Ticket] = []
        self.names: set[str] = set()
