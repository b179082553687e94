"""Readers of files that are written here: what they give, and what they say of files that are not right."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import windlass as wl
from windlass_proto.errors import CorruptionError, UsageError
from windlass_worker.data.readers.numbers import tokens, worth

readers = wl.data.readers


def idx_bytes(array: np.ndarray, code: int = 0x08) -> bytes:
    big = array.astype(array.dtype.newbyteorder(">"))
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + big.tobytes()


def images(rows: int) -> np.ndarray:
    return (np.arange(rows * 6).reshape(rows, 2, 3) % 251).astype(np.uint8)


def write(path: Path, content: bytes | str) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def write_pair(folder: Path, part: str, rows: int, suffix: str = "") -> None:
    write(folder / f"{part}-images-idx3-ubyte{suffix}", idx_bytes(images(rows)))
    write(folder / f"{part}-labels-idx1-ubyte{suffix}", idx_bytes(np.arange(rows, dtype=np.uint8)))


@pytest.mark.parametrize(("dtype", "code"), [("u1", 8), ("i1", 9), ("i2", 11), ("i4", 12), ("f4", 13), ("f8", 14)])
def test_an_idx_file_of_any_dtype_is_its_array(tmp_path: Path, dtype: str, code: int) -> None:
    array = np.arange(-3 if dtype[0] != "u" else 0, 9).astype(dtype)[:6].reshape(2, 3)
    found = readers.idx(write(tmp_path / "a.gz", idx_bytes(array, code)))
    assert np.array_equal(found, array)
    assert found.dtype == np.dtype(dtype)
    assert found.dtype.isnative


@pytest.mark.parametrize("kind", [readers.MNIST, readers.FashionMNIST])
def test_both_halves_are_the_files_and_one_half_is_parted(tmp_path: Path, kind: Any) -> None:
    write_pair(tmp_path, "t10k", 10, ".gz")
    train, test = kind(tmp_path), kind(tmp_path, train=False)
    assert train.arrays[1].tolist() == list(range(8))
    assert test.arrays[1].tolist() == [8, 9]
    write_pair(tmp_path, "train", 7)
    assert len(kind(tmp_path)) == 7
    image, label = kind(tmp_path, train=False)[9]
    assert np.array_equal(image, images(10)[9])
    assert (image.dtype, label.dtype, label) == (np.uint8, np.int64, 9)


def test_a_folder_without_the_files_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lacks images.*t10k-images-idx3-ubyte or"):
        readers.MNIST(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        readers.MNIST(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"lacks a file of 5.*data_batch_1.bin"):
        readers.CIFAR10(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        readers.libsvm(tmp_path / "gone")


WHOLE = idx_bytes(images(4))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "found=nothing"),
        (b"\x00\x00\x07\x01", "found=00 00 07 01"),
        (b"PK\x03\x04rest", "no idx file.*byte=0.*found=50 4b 03 04"),
        (WHOLE[:9], "ends in its header.*expected_bytes=16, found_bytes=9"),
        (WHOLE[:-1], "expected_bytes=40, found_bytes=39"),
        (WHOLE + b"\0", "expected_bytes=40, found_bytes=41"),
        (b"\x00\x00\x0e\x03" + b"\xff" * 12, "another length"),
    ],
)
def test_an_idx_file_that_is_not_right_is_refused_in_words(tmp_path: Path, raw: bytes, said: str) -> None:
    path = write(tmp_path / "some", raw)
    with pytest.raises(CorruptionError, match=said) as caught:
        readers.idx(path)
    assert caught.value.values["file"] == path


def test_halves_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "t10k", 10)
    write(tmp_path / "t10k-labels-idx1-ubyte", idx_bytes(np.zeros(9, np.uint8)))
    with pytest.raises(CorruptionError, match="images=10, labels=9"):
        readers.MNIST(tmp_path)
    write(tmp_path / "t10k-labels-idx1-ubyte", idx_bytes(images(10)))
    with pytest.raises(CorruptionError, match="expected=uint8 of 1 axes, found=uint8 of 3"):
        readers.MNIST(tmp_path)


def test_a_gzipped_file_that_is_cut_off_or_damaged_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 256, (40, 5, 5)).astype(np.uint8)))
    for name, raw in (("cut", packed[:-20]), ("damaged", packed[:200] + b"\xff" * 40 + packed[240:])):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(CorruptionError, match="damaged or cut off"):
            readers.idx(tmp_path / name)


def cifar(rows: int, labels: int) -> bytes:
    picture = np.arange(3 * 32 * 32) % 256
    records = [np.concatenate([np.full(labels, row), (picture + row) % 256]) for row in range(rows)]
    return np.stack(records).astype(np.uint8).tobytes()


def test_cifar_gives_images_with_channels_last(tmp_path: Path) -> None:
    nested = tmp_path / "cifar-10-batches-bin"
    nested.mkdir()
    for number in range(1, 6):
        write(nested / f"data_batch_{number}.bin", cifar(2, 1))
    write(nested / "test_batch.bin", cifar(3, 1))
    train = readers.CIFAR10(tmp_path)
    assert len(train) == 10
    image, label = train[1]
    assert (image.shape, label) == ((32, 32, 3), 1)
    assert image[0, :3].tolist() == [[1, 1, 1], [2, 2, 2], [3, 3, 3]], "each channel begins at a multiple of 256"
    assert image[1, 0].tolist() == [33, 33, 33]
    assert len(readers.CIFAR10(nested, train=False)) == 3


def test_cifar_100_has_classes_and_kinds(tmp_path: Path) -> None:
    raw = bytearray(cifar(2, 2))
    raw[1] = 77
    write(tmp_path / "train.bin.gz", bytes(raw))
    assert readers.CIFAR100(tmp_path).arrays[1].tolist() == [77, 1]
    assert readers.CIFAR100(tmp_path, fine=False).arrays[1].tolist() == [0, 1]


def test_cifar_records_that_are_not_right_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "test_batch.bin", cifar(2, 1)[:-1])
    with pytest.raises(CorruptionError, match="a multiple of 3073 bytes, found_bytes=6145"):
        readers.CIFAR10(tmp_path, train=False)
    wrong = bytearray(cifar(2, 1))
    wrong[3073] = 10
    write(tmp_path / "test_batch.bin", bytes(wrong))
    with pytest.raises(CorruptionError, match="byte=3073, expected=below 10, found=10"):
        readers.CIFAR10(tmp_path, train=False)


SPARSE = "1 3:1 7:0.25\n\n-1\n+0.5 0:2e1   12:-3 # said\r\n# all of it\n2 5:.5"


@pytest.mark.parametrize("name", ["rows.txt", "rows.libfm.gz"])
def test_sparse_rows_are_read_with_their_ids_as_they_stand(tmp_path: Path, name: str) -> None:
    rows = readers.libsvm(write(tmp_path / name, SPARSE))
    assert rows.labels.tolist() == [1.0, -1.0, 0.5, 2.0]
    assert rows.ids.tolist() == [3, 7, 0, 12, 5]
    assert rows.values.tolist() == [1.0, 0.25, 20.0, -3.0, 0.5]
    assert rows.offsets.tolist() == [0, 2, 2, 4, 5]
    assert [one.dtype for one in (rows.labels, rows.ids, rows.values)] == [np.float32, np.int64, np.float32]
    ids, values, label = rows[2]
    assert (ids.tolist(), values.tolist(), label) == ([0, 12], [20.0, -3.0], 0.5)
    ids, values = rows.padded(3, fill=99)
    assert ids.tolist() == [[3, 7, 99], [99, 99, 99], [0, 12, 99], [5, 99, 99]]
    assert values[2].tolist() == [20.0, -3.0, 0.0]
    assert rows.padded()[0].shape == (4, 2)
    with pytest.raises(UsageError, match="row=0, entries=2, width=1"):
        rows.padded(1)


def test_no_rows_are_no_rows(tmp_path: Path) -> None:
    rows = readers.libsvm(write(tmp_path / "rows", "\n  \n# nothing\n"))
    assert (len(rows), rows.offsets.tolist()) == (0, [0])
    assert len(readers.libsvm(write(tmp_path / "empty", ""))) == 0


@pytest.mark.parametrize(
    ("line", "expected", "found"),
    [
        ("1 3:1 7", "id:value", "7"),
        ("1 3:1:2", "id:value", "3:1:2"),
        ("1 3: 4", "id:value", "3:"),
        ("1 :4", "id:value", ":4"),
        ("1 3 :4", "id:value", "3"),
        ("1 x:4", "id:value", "x:4"),
        ("1 -3:4", "id:value", "-3:4"),
        ("1 1.5:4", "id:value", "1.5:4"),
        ("1 qid:3 2:1", "id:value", "qid:3"),
        ("1 2:1..5", "id:value", "2:1..5"),
        ("1 2:one", "id:value", "2:one"),
        ("yes 2:1", "a label", "yes"),
        ("2:1 3:1", "a label", "2:1"),
        ("1 99999999999999999999:1", "id:value", "99999999999999999999:1"),
    ],
)
def test_a_sparse_line_that_is_not_right_is_named(tmp_path: Path, line: str, expected: str, found: str) -> None:
    path = write(tmp_path / "rows", f"1 1:1\n\n# said\n{line}\n0 1:2\n")
    with pytest.raises(CorruptionError) as caught:
        readers.libsvm(path)
    assert caught.value.values == {"file": path, "line": 4, "expected": expected, "found": repr(found)}


def test_files_larger_than_a_block_are_read_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("windlass_worker.data.readers.files._BLOCK_BYTES", 11)
    text = "".join(f"{row} {row}:{row / 8} {row + 1}:1\n" for row in range(40))
    rows = readers.libsvm(write(tmp_path / "rows.gz", text))
    assert rows.labels.tolist() == [*range(40)]
    assert rows.values[0::2].tolist() == [row / 8 for row in range(40)]
    with pytest.raises(CorruptionError, match="line=31,"):
        readers.libsvm(write(tmp_path / "rows", text.replace("30 30:", "30 30;")))
    table = readers.csv(write(tmp_path / "t", "a,b\n" + "1,2\n" * 30), header=True)
    assert table.arrays[0].shape == (30, 2)


@given(st.lists(st.floats(width=64, allow_nan=False) | st.integers(-(10**16), 10**16), min_size=1, max_size=8))
def test_numbers_are_worth_what_python_makes_of_them(numbers: list[float]) -> None:
    written = [form.format(number) for number in numbers for form in ("{!r}", "{:.6f}", "{:.3e}")]
    written += ["+1", ".5", "5.", "-0.0", "007", "123456789012345", "0.30000000000000004"]
    found = worth(tokens(" \n".join(written).encode(), ord(":")))
    assert found is not None
    assert found.tolist() == [float(text) for text in written]


@pytest.mark.parametrize("token", ["-", ".", "+.", "1.2.3", "--1", "1-", "1_0", "0x1", "e5", "one"])
def test_what_is_no_number_is_worth_nothing(token: str) -> None:
    assert worth(tokens(f"1 {token} 2".encode(), ord(":"))) is None


def test_a_table_is_rows_or_rows_and_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "table.csv", "x,y,kind\r\n1, 2.5,0\r\n\r\n-3e2,.5,1\r\n")
    rows = readers.csv(path, header=True)
    assert rows[1].tolist() == [-300.0, 0.5, 1.0]
    assert rows[1].dtype == np.float32
    for label in ("kind", 2, -1):
        row, kind = readers.csv(path, header=True, label=label, dtype="float64")[0]
        assert (row.tolist(), kind) == ([1.0, 2.5], 0.0)
    tabs = readers.csv(write(tmp_path / "t.tsv.gz", "1\t2\n3\t4"), delimiter="\t")
    assert tabs.arrays[0].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("line", "expected", "found"),
    [
        ("1,2,3", "2 cells", "3"),
        ("1", "2 cells", "1"),
        ("1,two", "a number", "two"),
        ("1,", "a number", ""),
        (",1", "a number", ""),
    ],
)
def test_a_line_of_a_table_that_is_not_right_is_named(tmp_path: Path, line: str, expected: str, found: str) -> None:
    path = write(tmp_path / "table", f"1,2\n3,4\n{line}\n")
    with pytest.raises(CorruptionError) as caught:
        readers.csv(path)
    assert caught.value.values == {"file": path, "line": 3, "expected": expected, "found": repr(found)}


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda path: readers.csv(path, header=True, label="knid"), "Did you mean kind"),
        (lambda path: readers.csv(path, header=True, label=2), "columns=2"),
        (lambda path: readers.csv(path, delimiter="1"), "one character"),
    ],
)
def test_a_wrong_argument_is_refused_in_words(tmp_path: Path, act: Callable[[Path], Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        act(write(tmp_path / "table", "x,kind\n1,2\n"))
    with pytest.raises(CorruptionError, match="no rows"):
        readers.csv(write(tmp_path / "empty", "x,y\n"), header=True)
