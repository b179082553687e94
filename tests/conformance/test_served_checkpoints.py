"""Orders for checkpoints at a server: done once each, given up with their session, never half."""

from __future__ import annotations

import itertools
import queue
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conformance.served import STORE, TABLE, Served, Session
from windlass_proto import checkpoint_format, keys
from windlass_proto.checkpoint_format import Group, Manifest, Part
from windlass_proto.checkpoint_orders import Order, Phase, SavedPart
from windlass_proto.consistency import Consistency
from windlass_proto.errors import CorruptionError, UnavailableError, UsageError, WindlassError
from windlass_proto.frames import Op
from windlass_proto.group_specs import GroupSpec
from windlass_proto.init_specs import Normal
from windlass_proto.layout import GroupLayout, TensorSpec
from windlass_proto.rule_specs import SGD, Adagrad
from windlass_proto.table_specs import TableSpec
from windlass_server.checkpoints import SAVES_MAX
from windlass_server.dense import DenseGroup
from windlass_server.sparse import SparseTable

ELEMENTS = 40_000  # three blocks
FILES = (f"part-0-{number:08x}.safetensors" for number in itertools.count())


class Asked:
    """What came of one order."""

    def __init__(self) -> None:
        self._came: queue.Queue[tuple[SavedPart | None, WindlassError | None]] = queue.Queue()

    def __call__(self, written: SavedPart | None, error: WindlassError | None) -> None:
        self._came.put((written, error))

    def result(self) -> SavedPart | None:
        written, error = self._came.get(timeout=20.0)
        if error is not None:
            raise error
        return written

    def pending(self) -> bool:
        return self._came.empty()


class Orders:
    """One session's orders to one server."""

    def __init__(self, served: Served, folder: Path, tables: tuple[tuple[int, int], ...] = ((0, TABLE),)) -> None:
        self.served = served
        self.tables = tables
        self.session = secrets.token_bytes(16)
        self.folder = folder

    def ask(self, phase: Phase, key: str, *, clock: int = 0, file: str = "", manifest: str = "") -> Asked:
        asked = Asked()
        order = Order(phase, key, STORE, clock, str(self.folder), self.tables, file, manifest)
        self.served.node.checkpoints.carry_out(self.session, order, asked)
        return asked

    def save(self) -> Manifest:
        """A whole checkpoint in the folder."""
        file, key = next(FILES), secrets.token_hex(4)
        self.ask(Phase.COPY, key, file=file).result()
        written = self.ask(Phase.WRITE, key, file=file).result()
        assert written is not None
        spec = self.served.node.groups[TABLE].spec
        assert isinstance(spec, GroupSpec)
        blocks = tuple((0, block.index) for block in spec.layout.blocks)
        part = Part(file, written.nbytes, written.digest, blocks)
        manifest = Manifest("job", "model", "bsp", 0, 0, "0", (Group(spec),), (part,))
        checkpoint_format.write_manifest(self.folder, manifest)
        return manifest


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as one:
        yield one


def lent(served: Served) -> int:
    return served.node.checkpoints.pool.bytes_lent


def test_an_order_that_comes_again_is_done_once(served: Served, tmp_path: Path) -> None:
    spec = served.declare(ELEMENTS)
    with Session(spec, served.targets["tcp"]) as worker:
        worker.init(np.ones(ELEMENTS, np.float32))
        orders, file = Orders(served, tmp_path / "step-000000"), next(FILES)
        orders.ask(Phase.COPY, "k", file=file).result()
        first = orders.ask(Phase.WRITE, "k", file=file).result()
        worker.push_pull(np.ones(ELEMENTS, np.float32))
        orders.ask(Phase.COPY, "k", file=file).result()
        assert orders.ask(Phase.WRITE, "k", file=file).result() == first
    assert first is not None
    assert (tmp_path / "step-000000" / file).stat().st_size == first.nbytes
    assert lent(served) == 0


def test_a_copy_waits_for_the_steps_before_its_clock_and_goes_with_its_session(served: Served, tmp_path: Path) -> None:
    spec = served.declare(ELEMENTS, consistency="bsp")
    with Session(spec, served.targets["tcp"]) as first, Session(spec, served.targets["tcp"]) as second:
        served.count(first.session, second.session)
        first.init(np.zeros(ELEMENTS, np.float32))
        first.ask(Op.PUSH, np.ones(ELEMENTS, np.float32))
        served.await_frames(2)
        orders = Orders(served, tmp_path / "step-000001")
        copied = orders.ask(Phase.COPY, "k", clock=1, file=next(FILES))
        gone = Orders(served, tmp_path / "gone")
        never = gone.ask(Phase.COPY, "g", clock=1, file=next(FILES))
        assert copied.pending()
        held = lent(served)
        served.node.checkpoints.end_session(gone.session)
        assert 0 < lent(served) < held, "memory of what nobody asks for any more is given back"
        second.ask(Op.PUSH, np.ones(ELEMENTS, np.float32))
        copied.result()
        written = orders.ask(Phase.WRITE, "k").result()
        assert written is not None
    assert never.pending()
    assert not (tmp_path / "gone").exists()
    assert lent(served) == 0


def test_what_is_staged_is_served_when_it_is_told_and_not_before(served: Served, tmp_path: Path) -> None:
    spec = served.declare(ELEMENTS)
    with Session(spec, served.targets["tcp"]) as worker:
        worker.init(np.full(ELEMENTS, 5, np.float32))
        orders = Orders(served, tmp_path / "step-000000")
        manifest = orders.save()
        worker.push_pull(np.ones(ELEMENTS, np.float32))
        orders.ask(Phase.STAGE, "dropped", manifest=manifest.digest).result()
        orders.ask(Phase.DROP, "dropped").result()
        with pytest.raises(UnavailableError, match="does not know"):
            orders.ask(Phase.APPLY, "dropped")
        orders.ask(Phase.STAGE, "k", manifest=manifest.digest).result()
        assert (worker.pull() == 4).all()
        orders.ask(Phase.APPLY, "k").result()
        orders.ask(Phase.APPLY, "k").result()
        assert (worker.pull() == 5).all()
        assert (worker.push_pull(np.ones(ELEMENTS, np.float32)) == 4).all()
    served.validate()


def test_one_sessions_checkpoint_is_not_anothers(served: Served, tmp_path: Path) -> None:
    spec = served.declare(ELEMENTS)
    with Session(spec, served.targets["tcp"]) as worker:
        worker.init(np.ones(ELEMENTS, np.float32))
    orders = Orders(served, tmp_path / "step-000000")
    manifest = orders.save()
    orders.ask(Phase.STAGE, "k", manifest=manifest.digest).result()
    with pytest.raises(UnavailableError, match="does not know"):
        Orders(served, tmp_path).ask(Phase.APPLY, "k")


def test_what_cannot_be_begun_is_said(served: Served, tmp_path: Path) -> None:
    orders = Orders(served, tmp_path / "step-000000")
    with pytest.raises(UsageError, match="not declared here"):
        orders.ask(Phase.COPY, "k", file=next(FILES)).result()
    served.declare(ELEMENTS)
    with pytest.raises(CorruptionError, match="no manifest"):
        orders.ask(Phase.STAGE, "m", manifest="00").result()
    served.node.checkpoints._memory_bytes = 1
    with pytest.raises(UnavailableError, match=r"no memory for a checkpoint's copy.*bytes_max=1\)"):
        orders.ask(Phase.COPY, "n", file=next(FILES)).result()


def test_open_checkpoints_are_bounded(served: Served, tmp_path: Path) -> None:
    spec = served.declare(ELEMENTS, consistency="bsp")
    with Session(spec, served.targets["tcp"]) as worker:
        served.count(worker.session)
        worker.init(np.zeros(ELEMENTS, np.float32))
        orders = Orders(served, tmp_path / "step-000009")
        for number in range(SAVES_MAX):
            orders.ask(Phase.COPY, f"k{number}", clock=9, file=next(FILES))
        with pytest.raises(UnavailableError, match="too many checkpoints"):
            orders.ask(Phase.COPY, "one more", clock=9, file=next(FILES))
        served.node.checkpoints.end_session(orders.session)
        assert lent(served) == 0
        assert worker.push_pull(np.ones(ELEMENTS, np.float32))[0] == -1.0


def test_a_checkpoint_of_format_3_is_read_for_ever(served: Served) -> None:
    """Written by 0.1: ten rows, then changes of rows 2 and 3 while 5 and 6 are erased, then row 5 anew; 2 servers."""
    folder = Path(__file__).with_name("checkpoints-format-3") / "step-000003"
    manifest = checkpoint_format.read_manifest_untrusted(folder)
    assert {part.folder for part in manifest.parts} == {"step-000001", "step-000002", ""}
    groups = []
    for number, was in enumerate(manifest.groups):
        layout = GroupLayout(10 + number, was.spec.layout.dtype_name, was.spec.layout.tensors, 1024, 8)
        group = served.node.declare(GroupSpec(STORE, layout, was.spec.rule, True, Consistency.parse("asp")))
        assert isinstance(group, DenseGroup)
        for share in group.shares.values():
            for state in share.core.blocks.values():
                state.present[:] = [True] * len(state.present)
        groups.append(group)
    spec = replace(manifest.tables[0], store_id=STORE, table_id=TABLE, consistency=Consistency.parse("asp"))
    table = served.node.declare(spec)
    assert isinstance(table, SparseTable)
    orders = Orders(served, folder, ((0, 10), (1, 11), (0, TABLE)))
    orders.ask(Phase.STAGE, "k", manifest=manifest.digest).result()
    orders.ask(Phase.APPLY, "k").result()
    held: dict[str, np.ndarray] = {}
    for group in groups:
        held |= group.spec.layout.views(group.share_of_block[0].arrays[0].weights)
    assert held["w"].tolist() == [[-1.5] * 3] * 2
    assert held["still"].tolist() == [2.0] * 5
    found: dict[int, float] = {}
    for rows in table.tables.values():
        live = np.zeros(rows.used, np.uint8)
        rows.scan(0, live)
        found |= {int(rows.ids[n]): float(rows.rows[n * 4]) for n in np.flatnonzero(live)}
    assert found == {1: 0.5, 2: -0.5, 3: -0.5, 4: 0.5, 5: -1.0, 7: 0.5, 8: 0.5, 9: 0.5, 10: 0.5}


def test_a_checkpoint_of_format_2_is_read_for_ever(served: Served) -> None:
    """Written by 0.1: Adagrad(lr=0.5) from Normal(0.01), bands of 3 servers; updates with gradients of the id, of 1."""
    folder = Path(__file__).with_name("checkpoints-format-2") / "step-000002"
    manifest = checkpoint_format.read_manifest_untrusted(folder)
    spec = TableSpec(
        STORE, TABLE, "user", 4, "float32", Normal(0.01), 1 << 20, Adagrad(lr=0.5), mean=False,
        consistency=Consistency.parse("asp"), vshards=keys.VSHARDS_DEFAULT,
    )  # fmt: skip
    table = served.node.declare(spec)
    assert isinstance(table, SparseTable)
    orders = Orders(served, folder)
    orders.ask(Phase.STAGE, "k", manifest=manifest.digest).result()
    orders.ask(Phase.APPLY, "k").result()
    found = {}
    for rows in table.tables.values():
        rows.validate()
        for number in range(rows.used):
            found[int(rows.ids[number])] = (rows.rows[number * 4 : number * 4 + 4], rows.slots[0][number * 4])
    first, sums = np.empty(4, np.float32), [float(item) ** 2 + 1 for item in range(1, 11)]
    assert sorted(found) == list(range(1, 11))
    assert [float(found[item][1]) for item in range(1, 11)] == sums
    for item, (row, _) in found.items():
        for rows in table.tables.values():
            ids = np.array([item], np.uint64)
            if rows.covers(ids):
                rows.read_found(ids, np.full(1, 0xFFFFFFFF, np.uint32), first)
        assert row == pytest.approx(first - 0.5 - 0.5 / np.sqrt(item**2 + 1), abs=1e-6)


def test_a_checkpoint_of_format_1_is_read_for_ever(served: Served) -> None:
    """Written by 0.1: SGD(lr=0.5, momentum=0.5) from w = 0..11 and b = 1, three updates with gradients of 1."""
    folder = Path(__file__).with_name("checkpoints-format-1") / "step-000003"
    manifest = checkpoint_format.read_manifest_untrusted(folder)
    assert (manifest.step, manifest.state) == (3, {"best": 0.5})
    assert manifest.positions == (checkpoint_format.Position("batches-1:20:1:1", 1, 0, 3, 1, 4, 15),)
    tensors = (TensorSpec("b", (5,)), TensorSpec("w", (3, 4)))  # in another order, in blocks of another size
    layout = GroupLayout(TABLE, "float32", tensors, 1024, keys.VSHARDS_DEFAULT)
    rule = SGD(lr=0.5, momentum=0.5)
    group = served.node.declare(GroupSpec(STORE, layout, rule, mean=True, consistency=Consistency.parse("asp")))
    state = group.share_of_block[0].core.blocks[0]
    state.present[:] = [True, True]
    orders = Orders(served, folder)
    orders.ask(Phase.STAGE, "k", manifest=manifest.digest).result()
    orders.ask(Phase.APPLY, "k").result()
    arrays = group.share_of_block[0].arrays[0]
    held, momentum = layout.views(arrays.weights), layout.views(arrays.slots[0])
    assert held["w"].tolist() == (np.arange(12).reshape(3, 4) - 0.5 * (1 + 1.5 + 1.75)).tolist()
    assert held["b"].tolist() == [-1.125] * 5
    assert [set(momentum[name].reshape(-1).tolist()) for name in ("w", "b")] == [{1.75}, {1.75}]
    assert state.updates == [3, 3]
