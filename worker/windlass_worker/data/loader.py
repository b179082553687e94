"""DataLoader: batches of a data set, made in this thread or ahead of it by processes.

Invariant: the batches of an epoch, and every number in them, are the same for any `num_workers` and `prefetch`; order,
rows and chance come from (seed, epoch) (see `samplers`, `draws`). A pass that ends, by its end, an error, `close()` or
because it is given up, ends what it started.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError
from windlass_worker.data.collation import Collate, fresh, make_batch
from windlass_worker.data.crew import Crew
from windlass_worker.data.dataset import dataset_of
from windlass_worker.data.orders import ClusterOrders, LocalOrders, Orders
from windlass_worker.data.samplers import (
    LAST_BATCHES,
    BatchSampler,
    Listed,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

if TYPE_CHECKING:
    from windlass.batches import Batches
    from windlass.cluster import Cluster

_PREFETCH_EACH = 2


class DataLoader:
    """An iterable over batches; to iterate over it once more is the next epoch.

    Args:
        dataset: a `Dataset`, or anything with `__len__` and `__getitem__`.
        batch_size: rows a batch.
        shuffle: in the order of `RandomSampler`.
        sampler: instead of `shuffle`: one of `samplers`, or row numbers.
        batch_sampler: instead of the three above: an object with `batches(epoch)`, or lists of row numbers.
        last_batch: what becomes of the rows left over: "keep", "discard" or "rollover" (into the next epoch).
        collate: from a list of samples to a batch; default: `stack`, leaf by leaf.
        num_workers: processes that make batches; 0: this thread does, when it is asked for one.
        prefetch: batches that the processes are ahead of the loop, at most; default two for each.
        seed: of the order and of random transforms.
        timeout_s: how long one batch may take before that is an error.
        cluster: share each epoch with the other workers of the job, who make the same loader: the order is the
            sampler's, equal on all, and the scheduler hands out batches of it (`cluster.batches`: at most `batch_size`
            rows, as many batches for each; those of a worker that dies go to the others). A batch counts as used when
            the loop comes back for the next; what is made ahead does not.

    With processes, a batch lies in shared memory that is used again once its last array is gone. They start with a
    pass and end with it; inside `with loader:` they last from the first pass to the end of the block.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = None,
        *,
        shuffle: bool = False,
        sampler: Any = None,
        batch_sampler: Any = None,
        last_batch: Literal["keep", "discard", "rollover"] = "keep",
        collate: Collate | None = None,
        num_workers: int = 0,
        prefetch: int | None = None,
        seed: int = 0,
        timeout_s: float = 120.0,
        cluster: Cluster | None = None,
    ) -> None:
        self.dataset = dataset_of(dataset)
        self.epoch = 0
        """The number of the next pass; set it to go on elsewhere. A cluster's passes have the cluster's number."""
        self._cluster = cluster
        self._collate = collate
        self._seed = seed
        self._workers = num_workers
        self._ahead = _PREFETCH_EACH * num_workers if prefetch is None else prefetch
        self._timeout_s = timeout_s
        self._lasting = False
        self._crew: Crew | None = None
        self._shared: Batches | None = None
        if num_workers < 0 or (num_workers and self._ahead < 1):
            raise UsageError("a loader has no such number", num_workers=num_workers, prefetch=prefetch)
        if batch_sampler is not None:
            _only("batch_sampler", batch_size=batch_size, shuffle=shuffle or None, sampler=sampler, cluster=cluster)
            self._batches: Any = batch_sampler
            return
        if batch_size is None or batch_size < 1:
            raise UsageError("a loader needs batch_size= of one or more", batch_size=batch_size)
        if last_batch not in LAST_BATCHES:
            raise UsageError("last_batch is none", given=last_batch, next_move=did_you_mean(last_batch, LAST_BATCHES))
        self._rows = self._sampler(shuffle, sampler)
        self._batches = BatchSampler(self._rows, batch_size, last_batch)
        self._discards = last_batch == "discard"
        if cluster is not None:
            self._shared = self._dealt(cluster, batch_size, last_batch)

    def _dealt(self, cluster: Cluster, batch_size: int, last_batch: str) -> Batches:
        if last_batch == "rollover":
            raise UsageError(
                "a cluster rolls no rows over", last_batch=last_batch, next_move='Take last_batch="keep" or "discard".'
            )
        return cluster.batches(
            len(self._rows),
            size=batch_size,
            seed=self._seed,
            shuffle=False,  # the rows are positions in the sampler's order
            drop_last=self._discards,
        )

    def _sampler(self, shuffle: bool, sampler: Any) -> Sampler:
        if sampler is not None:
            _only("sampler", shuffle=shuffle or None)
            found: Sampler = sampler if hasattr(sampler, "rows") else Listed(sampler)
            return found
        length = len(self.dataset)
        return RandomSampler(length, self._seed) if shuffle else SequentialSampler(length)

    def __len__(self) -> int:
        """Batches of the next pass; of a cluster's, how many each worker gets if none comes or goes."""
        made = self._batches
        count: int = made.count(self.epoch) if isinstance(made, BatchSampler) else len(made)
        if self._cluster is None:
            return count
        workers = self._cluster.num_workers
        return count // workers if self._discards else -(-count // workers)

    def __iter__(self) -> Iterator[Any]:
        """One epoch, as a generator: `close()` it, or let go of it, to end it early."""
        orders = self._orders()
        if self._workers:
            yield from self._made_ahead(orders)
        else:
            yield from self._made_here(orders)

    @property
    def is_lasting(self) -> bool:
        """Is it inside `with loader:`, where its processes last from pass to pass?"""
        return self._lasting

    @property
    def is_shared(self) -> bool:
        """Do the workers of a cluster share its epochs?"""
        return self._shared is not None

    def example(self) -> Any:
        """A batch of the first row, outside of every epoch: for who needs its shapes before it trains.

        Raises:
            UsageError: the data set is empty.
        """
        if not len(self.dataset):
            raise UsageError("a data set has no rows", next_move="Give it some.")
        rows = np.zeros(1, np.int64)
        return make_batch(self.dataset, rows, seed=self._seed, epoch=0, collate=self._collate, room=fresh)

    def _orders(self) -> Orders:
        if self._shared is not None:
            reading = self._shared.read()
            self.epoch = reading.number
            return ClusterOrders(reading, self._rows.rows(reading.number - 1))
        epoch, self.epoch = self.epoch, self.epoch + 1
        batches: Iterable[Any] = self._batches.batches(epoch) if hasattr(self._batches, "batches") else self._batches
        return LocalOrders(batches, epoch)

    def _made_here(self, orders: Orders) -> Iterator[Any]:
        while (order := orders.ahead()) is not None:
            batch = make_batch(
                self.dataset,
                self._checked(order.rows),
                seed=self._seed,
                epoch=order.epoch,
                collate=self._collate,
                room=fresh,
            )
            orders.given(order)
            yield batch
            orders.used(order)

    def _made_ahead(self, orders: Orders) -> Iterator[Any]:
        crew = self._borrowed()
        out: deque[tuple[Any, int]] = deque()
        whole = False
        try:
            while self._fill(crew, orders, out):
                order, serial = out.popleft()
                batch = crew.batch(serial)
                self._fill(crew, orders, out)
                orders.given(order)
                yield batch
                del batch
                orders.used(order)
            whole = True
        except GeneratorExit:
            whole = True
            raise
        finally:
            crew.drop([serial for _, serial in out])
            self._given_back(crew, whole=whole)

    def _fill(self, crew: Crew, orders: Orders, out: deque[tuple[Any, int]]) -> int:
        """Order as many batches as may be out; how many are."""
        while len(out) < self._ahead and (order := orders.ahead()) is not None:
            out.append((order, crew.order(self._checked(order.rows), order.epoch)))
        return len(out)

    def _checked(self, rows: Any) -> Any:
        length = len(self.dataset)
        if rows.ndim != 1 or not rows.size or not -length <= rows.min() <= rows.max() < length:
            raise UsageError(
                "a sampler gave rows that the data set lacks",
                rows=rows[(rows < -length) | (rows >= length)].tolist()[:5] if rows.ndim == 1 else rows.shape,
                length=length,
            )
        return np.where(rows < 0, rows + length, rows)

    def _borrowed(self) -> Crew:
        """The lasting crew, unless another pass has it; else one for this pass."""
        if self._crew is not None:
            crew, self._crew = self._crew, None
            return crew
        return Crew(
            self.dataset,
            self._collate,
            seed=self._seed,
            workers=self._workers,
            ahead=self._ahead,
            timeout_s=self._timeout_s,
        )

    def _given_back(self, crew: Crew, *, whole: bool) -> None:
        if whole and self._lasting and self._crew is None:
            self._crew = crew
        else:
            crew.close()

    def close(self) -> None:
        """End the processes that last; passes under way end theirs when they end."""
        self._lasting = False
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()

    def __enter__(self) -> DataLoader:
        self._lasting = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _only(given: str, **others: Any) -> None:
    """Refuse what says twice which rows come."""
    if twice := [name for name, value in others.items() if value is not None]:
        raise UsageError(f"{given}= already says which rows come", also_given=", ".join(twice))
