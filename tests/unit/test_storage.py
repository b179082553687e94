"""Places of checkpoints: folders, and what fsspec reaches. `memory://` has its interface and no files to rename."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from windlass_proto import storage, tensor_file
from windlass_proto.errors import CorruptionError, UnavailableError, UsageError


def test_a_path_and_a_file_uri_name_a_folder_of_this_machine() -> None:
    assert storage.place_of("file:///a/b%20c") == Path("/a/b c")
    assert storage.place_of("runs/x") == Path.cwd() / "runs" / "x"
    assert storage.is_local(storage.place_of("runs/x"))


def test_a_scheme_that_nobody_knows_is_refused_with_what_would_help() -> None:
    with pytest.raises(UsageError, match=r"uri=nosuch://bucket/x, .* Install windlass\[storage\]"):
        storage.place_of("nosuch://bucket/x")


def test_a_place_comes_back_from_its_text() -> None:
    place = storage.place_of("memory://texts/run") / "step-000001"
    assert storage.place_of(str(place)) == place
    assert not storage.is_local(place)


def test_arrays_written_to_other_storage_are_read_back() -> None:
    place = storage.place_of("memory://arrays/run") / "part-0-00000000.safetensors"
    storage.make_folder(place.parent)
    arrays: dict[str, Any] = {"w": np.arange(100_000, dtype=np.float32).reshape(100, 1000), "empty": np.empty((0, 4))}
    written = tensor_file.write(place, arrays)
    assert tensor_file.digest_of(place, written.nbytes) == written.digest
    found = tensor_file.load(place)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert [there.name for there in storage.listed(place.parent)] == [place.name]


def test_an_object_cut_short_is_refused_by_name() -> None:
    place = storage.place_of("memory://torn/run") / "a.safetensors"
    storage.make_folder(place.parent)
    written = tensor_file.write(place, {"w": np.zeros(1000)})
    place.write_bytes(place.read_bytes()[:-1])
    with pytest.raises(CorruptionError, match=r"file=memory://torn/run/a\.safetensors"):
        tensor_file.digest_of(place, written.nbytes)
    with pytest.raises(CorruptionError, match=r"file=memory://torn/run/a\.safetensors"):
        tensor_file.load(place)


def test_what_a_storage_raises_is_said_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked = storage.place_of(f"local://{tmp_path}/file/inside.safetensors")
    with pytest.raises(UnavailableError, match=r"file=.*inside\.safetensors, reason="):
        tensor_file.write(blocked, {"w": np.zeros(2)})
    with pytest.raises(UnavailableError, match="folder could not be made"):
        storage.make_folder(blocked)
    with pytest.raises(CorruptionError, match=r"file=.*inside\.safetensors"):
        tensor_file.digest_of(blocked, 8)
