"""Files of arrays: what is written is read back, and what was altered is refused with its name."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from windlass_proto import tensor_file
from windlass_proto.errors import CorruptionError, UsageError

ARRAYS: dict[str, np.ndarray] = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "step": np.array(7, np.int64),
    "none": np.zeros((0, 4)),
    "half": np.array([1.5, -2], np.float16),
}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        found[n].dtype == a.dtype and found[n].shape == a.shape and found[n].tobytes() == a.tobytes()
        for n, a in expected.items()
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = tensor_file.write(tmp_path / "a.safetensors", ARRAYS, {"by": "windlass"})
    assert same(tensor_file.load(tmp_path / "a.safetensors"), ARRAYS)
    assert tensor_file.digest_of(tmp_path / "a.safetensors", written.nbytes) == written.digest


@given(st.dictionaries(st.text(max_size=8), arrays_of.arrays(np.float64, arrays_of.array_shapes()), max_size=4))
def test_any_names_and_shapes_come_back(tmp_path_factory: pytest.TempPathFactory, held: dict[str, np.ndarray]) -> None:
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    tensor_file.write(path, held)
    assert same(tensor_file.load(path), held)


def test_the_bytes_are_those_of_the_documented_layout(tmp_path: Path) -> None:
    tensor_file.write(tmp_path / "a", {"w": ARRAYS["w"], "step": ARRAYS["step"]})
    raw = (tmp_path / "a").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert (8 + length) % 64 == 0
    assert json.loads(raw[8 : 8 + length]) == {
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "step": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
    }
    assert raw[8 + length :] == ARRAYS["w"].tobytes() + ARRAYS["step"].tobytes()


def test_bfloat16_of_other_writers_is_read_as_float32(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    data = np.array([0x3FC0, 0xC000], "<u2").tobytes()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert tensor_file.load(tmp_path / "a")["w"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("keep", [0, 7, 30, -1])
def test_a_torn_file_is_refused_by_name(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "torn.safetensors"
    tensor_file.write(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptionError, match=r"torn\.safetensors"):
        tensor_file.load(path)


@given(st.binary(max_size=200))
def test_a_header_of_any_bytes_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("junk") / "a"
    path.write_bytes(len(junk).to_bytes(8, "little") + junk)
    with contextlib.suppress(CorruptionError):
        assert isinstance(tensor_file.load(path), dict)


@pytest.mark.parametrize(
    "place",
    [
        {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [1.0, 5.0]},
    ],
    ids=["larger than the file", "shape and bytes differ", "unknown dtype", "negative", "not integers"],
)
def test_a_place_that_does_not_fit_the_file_is_refused(tmp_path: Path, place: dict[str, object]) -> None:
    header = json.dumps({"w": place}).encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CorruptionError, match="broken header"):
        tensor_file.load(tmp_path / "a")


def test_what_has_no_dtype_in_the_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name=w, dtype=complex128"):
        tensor_file.write(tmp_path / "a", {"w": np.zeros(2, np.complex128)})
    with pytest.raises(UsageError, match="no file of arrays"):
        tensor_file.load(tmp_path / "a")


# A file may not grow beyond 64 KiB there: what a full disk says, without one.
FULL = """
import resource, sys
import numpy as np
from pathlib import Path
from windlass_proto import tensor_file
from windlass_proto.errors import UnavailableError
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    tensor_file.write(Path(sys.argv[1]), {"w": np.zeros(100_000)})
except UnavailableError as error:
    print(error)
"""


def test_on_a_full_disk_the_file_that_was_there_stays_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensor_file.write(path, ARRAYS)
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert f"file={path}" in ended.stdout, ended.stderr
    assert "File too large" in ended.stdout
    assert same(tensor_file.load(path), ARRAYS)
    assert list(tmp_path.iterdir()) == [path]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 65536
