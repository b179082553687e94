"""Bands written by some servers and read by others: the same rows and slots, or an error that names the file."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_proto import checkpoint_format, limits, tensor_file
from windlass_proto.checkpoint_format import Manifest, Part
from windlass_proto.checkpoint_orders import Save
from windlass_proto.consistency import Consistency
from windlass_proto.errors import CorruptionError, UsageError
from windlass_proto.frames import Status
from windlass_proto.init_specs import Constant, InitSpec
from windlass_proto.memory import BufferPool
from windlass_proto.rule_specs import SGD, Adagrad, Adam, RuleSpec
from windlass_proto.table_specs import TableSpec
from windlass_rules.rows import build_rows
from windlass_server import checkpoint_copies, row_changes
from windlass_server.part_files import PartFiles
from windlass_server.replies import Reply
from windlass_server.sparse import SparseTable
from windlass_server.staged_bands import read_bands_untrusted

VSHARDS = 16
DIM = 3
ADAGRAD = Adagrad()
POOL = BufferPool(64 * limits.MIB)
FILLED = Reply(None, Status.OK, 0, 0, 1, 0, None, None)  # type: ignore[arg-type]
SAVE = Save("00000000")
Held = dict[int, tuple[list[float], list[float]]]


def server(owned: range, rule: RuleSpec = ADAGRAD, vshards: int = VSHARDS, **spec: Any) -> SparseTable:
    init: InitSpec = spec.get("init", Constant(0.5))
    declared = TableSpec(
        1, 7, "user", spec.get("dim", DIM), "float64", init, spec.get("bytes_max", limits.GIB), rule, True,
        Consistency.parse("bsp"), vshards,
    )  # fmt: skip
    return SparseTable(declared, build_rows(rule, "float64"), owned, POOL)


def servers(cuts: list[int], **spec: Any) -> list[SparseTable]:
    vshards = spec.get("vshards", VSHARDS)
    borders = sorted({0, vshards, *cuts})
    return [server(range(a, b), **spec) for a, b in itertools.pairwise(borders)]


def put(table: SparseTable, items: Any, values: dict[int, float]) -> None:
    """Make the rows of `items` that `table` owns, with their values and slots."""
    wanted = np.array(sorted(items), np.uint64)
    for vshard, rows in table.tables.items():
        mine = wanted[rows.belonging(wanted)]
        numbers = np.empty(mine.size, np.uint32)
        absent = rows.find(mine, numbers)
        assert rows.insert(mine, numbers, absent) is None
        for item, number in zip(mine.tolist(), numbers.tolist(), strict=True):
            rows.rows[number * DIM : (number + 1) * DIM] = values[item]
            for at, slot in enumerate(rows.slots):
                slot[number * DIM : (number + 1) * DIM] = values[item] + at + 1
        table.shares[vshard].core.blocks[vshard].updates[:] = [vshard + 1]


def erase(table: SparseTable, items: Any) -> None:
    for rows in table.tables.values():
        wanted = np.array(sorted(items), np.uint64)
        rows.erase(wanted[rows.belonging(wanted)])


def held(tables: list[SparseTable]) -> Held:
    found: Held = {}
    for table in tables:
        for rows in table.tables.values():
            rows.validate()
            live = np.zeros(rows.used, np.uint8)
            rows.scan(0, live)
            for number in np.flatnonzero(live):
                run = slice(number * DIM, (number + 1) * DIM)
                slots = [float(value) for slot in rows.slots for value in slot[run]]
                found[int(rows.ids[number])] = (rows.rows[run].tolist(), slots)
    return found


def saved(tables: list[SparseTable], folder: Path, save: Save = SAVE, before: Manifest | None = None) -> Manifest:
    """What servers and a worker write, without either."""
    folder.mkdir(exist_ok=True)
    parts = []
    for number, table in enumerate(tables):
        copies = [copy for _, _, copy in checkpoint_copies.copies_of(0, table, POOL, save)]
        arrays: checkpoint_copies.Arrays = {}
        for copy in copies:
            copy.fill(FILLED)
            arrays |= copy.arrays()
        file = checkpoint_format.part_name(number, save.attempt)
        written = tensor_file.write(folder / file, arrays)
        for copy in copies:
            copy.release()
        bands = tuple((0, rows.held.start, rows.held.stop) for rows in table.tables.values())
        part = Part(file, written.nbytes, written.digest, (), bands, whole=all(copy.whole for copy in copies))
        if before is not None and not part.whole:
            parts += [
                replace(old, folder=old.folder or checkpoint_format.folder_name(before.step))
                for old in before.parts
                if old.server == number
            ]
        parts.append(part)
    assert POOL.bytes_lent == 0
    step = 3 if before is None else before.step + 1
    manifest = Manifest("job", "model", "bsp", step, 0, "0", (), tuple(parts), tables=(tables[0].spec,))
    checkpoint_format.write_manifest(folder, manifest)
    return manifest


def restored(folder: Path, manifest: Manifest, tables: list[SparseTable]) -> list[SparseTable]:
    parts = PartFiles(folder, manifest.digest)
    for table in tables:
        for band in read_bands_untrusted(parts, table):
            with band.share.lock:
                band.serve(0)
    return tables


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows each, so that small tables have several."""
    monkeypatch.setattr(checkpoint_copies, "STRETCH_BYTES", 5 * DIM * 8)


CUTS = st.lists(st.integers(1, VSHARDS - 1), max_size=4)
IDS = st.sets(st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1)), max_size=120)


@settings(max_examples=40, deadline=None)
@given(items=IDS, gone=st.sets(st.integers(0, 300), max_size=60), wrote=CUTS, reads=CUTS, wider=st.sampled_from([1, 4]))
def test_rows_and_slots_come_back_on_servers_cut_in_any_way(
    items: set[int], gone: set[int], wrote: list[int], reads: list[int], wider: int
) -> None:
    values = {item: float(at) for at, item in enumerate(sorted(items))}
    writers = servers(wrote)
    for table in writers:
        put(table, items, values)
        erase(table, gone)
    expected = {item: ([value] * DIM, [value + 1] * DIM) for item, value in values.items() if item not in gone}
    assert held(writers) == expected
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "step-000003"
        manifest = saved(writers, folder)
        readers = restored(folder, manifest, servers([cut * wider for cut in reads], vshards=VSHARDS * wider))
    assert held(readers) == expected
    assert all(len(rows) == rows.used for table in readers for rows in table.tables.values()), "no holes are read"


ROUNDS = st.lists(st.tuples(IDS, st.sets(st.integers(0, 300), max_size=60), st.booleans()), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(rounds=ROUNDS, wrote=CUTS, reads=CUTS)
def test_changes_since_the_save_before_are_enough(
    rounds: list[tuple[set[int], set[int], bool]], wrote: list[int], reads: list[int]
) -> None:
    writers, value, before = servers(wrote), 0.0, None
    with tempfile.TemporaryDirectory() as name:
        for at, (items, gone, first) in enumerate(rounds):
            for work in (erase, put) if first else (put, erase):
                value += 1.0
                for table in writers:
                    if work is put:
                        put(table, items, dict.fromkeys(items, value))
                    else:
                        erase(table, gone)
            folder = Path(name) / checkpoint_format.folder_name(3 + at)
            save = Save(f"{at:08x}", "" if before is None else f"{at - 1:08x}", tracks=True)
            before = saved(writers, folder, save, before)
            assert len({part.folder for part in before.parts}) == at + 1
            found = held(restored(folder, checkpoint_format.read_manifest_untrusted(folder), servers(reads)))
            assert found == held(writers)


def test_what_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    (writer,) = servers([])
    put(writer, range(200), dict.fromkeys(range(200), 1.0))
    first = saved([writer], tmp_path / "step-000003", Save("00000000", "", tracks=True))
    put(writer, range(7), dict.fromkeys(range(7), 2.0))
    second = saved([writer], tmp_path / "step-000004", Save("00000001", "00000000", tracks=True), first)
    whole, changes = second.parts
    assert (whole.whole, changes.whole, whole.folder, changes.folder) == (True, False, "step-000003", "")
    ids = [p for key, p in tensor_file.places_untrusted(changes.path(tmp_path / "step-000004")).items() if "ids" in key]
    assert sum(place.shape[0] for place in ids) == 7


@pytest.mark.parametrize("between", ["another save", "a restoration", "too much erased"])
def test_where_it_is_not_known_what_has_changed_all_is_written(
    between: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (writer,) = servers([])
    put(writer, range(200), dict.fromkeys(range(200), 1.0))
    first = saved([writer], tmp_path / "step-000003", Save("00000000", "", tracks=True))
    if between == "another save":
        saved([writer], tmp_path / "step-000009", Save("0000000a", "", tracks=True))
    elif between == "a restoration":
        restored(tmp_path / "step-000003", first, [writer])
    else:
        monkeypatch.setattr(row_changes, "_GONE_MIN", 3)
        erase(writer, range(190))
    expected = held([writer])
    second = saved([writer], tmp_path / "step-000004", Save("00000001", "00000000", tracks=True), first)
    assert [(part.whole, part.folder) for part in second.parts] == [(True, "")]
    assert held(restored(tmp_path / "step-000004", second, servers([]))) == expected


def test_counts_of_updates_are_the_highest_of_what_a_band_is_made_of(tmp_path: Path) -> None:
    writers = servers([2, 9])
    for table in writers:
        put(table, range(100), dict.fromkeys(range(100), 1.0))
    manifest = saved(writers, tmp_path)
    (reader,) = restored(tmp_path, manifest, servers([]))
    assert {v: share.core.blocks[v].updates for v, share in reader.shares.items()} == {
        0: [3],
        4: [5],
        8: [10],
        12: [13],
    }


def test_a_rotten_part_is_refused_with_its_name_and_both_digests(tmp_path: Path) -> None:
    (writer,) = servers([])
    put(writer, range(50), dict.fromkeys(range(50), 2.0))
    manifest = saved([writer], tmp_path)
    (part,) = manifest.parts
    raw = bytearray((tmp_path / part.file).read_bytes())
    raw[-5] ^= 1
    (tmp_path / part.file).write_bytes(raw)
    with pytest.raises(CorruptionError, match=rf"{part.file}.*digest=.*expected={part.digest}"):
        restored(tmp_path, manifest, servers([8]))
    (tmp_path / part.file).write_bytes(raw[:-1])
    with pytest.raises(CorruptionError, match=rf"another length.*{part.file}"):
        restored(tmp_path, manifest, servers([8]))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"rule": SGD(lr=1.0)}, r"another update rule.*slot\.sum"),
        ({"rule": Adam()}, "another update rule"),
        ({"init": Constant(0.25)}, r"another kind.*0\.25.*0\.5"),
        ({"dim": 4}, r"another kind.*of 4.*of 3"),
        ({"bytes_max": 2000}, "full"),
    ],
)
def test_what_does_not_fit_the_declaration_is_refused_in_words(
    other: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (writer,) = servers([])
    put(writer, range(200), dict.fromkeys(range(200), 2.0))
    manifest = saved([writer], tmp_path)
    with pytest.raises(UsageError, match=said):
        restored(tmp_path, manifest, [server(range(VSHARDS), **({"rule": Adagrad()} | other))])


def test_a_table_that_the_checkpoint_lacks_is_named(tmp_path: Path) -> None:
    manifest = Manifest("job", "model", "bsp", 3, 0, "0", (), ())
    checkpoint_format.write_manifest(tmp_path, manifest)
    assert manifest.format == 1, "an older release reads what holds no table"
    with pytest.raises(UsageError, match=r"lacks a declared table.*user"):
        restored(tmp_path, manifest, servers([]))
