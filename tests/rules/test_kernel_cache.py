"""Compiled kernels wait in a folder that only their user writes to; without one they are compiled anew."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from windlass_proto import kernel_cache
from windlass_proto.row_specs import RowWiseAdagrad
from windlass_proto.rule_specs import SGD, Adagrad, RMSprop, RuleSpec
from windlass_rules import reduce
from windlass_rules.rows import build_rows

F4, F8 = np.dtype("float32"), np.dtype("float64")


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test decides the folder anew, from its own environment."""
    for name in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    kernel_cache.cache_folder.cache_clear()
    kernel_cache._warn_uncached.cache_clear()
    yield
    kernel_cache.cache_folder.cache_clear()
    kernel_cache._warn_uncached.cache_clear()


def doubled(dtype: np.dtype[Any]) -> Any:
    """Compile scaled_copy through the cache, see that it works, return it."""
    function, signatures = reduce.kernels(dtype)[0]
    kernel = kernel_cache.compiled(function, signatures, dtype)
    result = np.zeros(3, dtype)
    kernel(result, np.array([1, 2, 3], dtype), 2.0)
    assert result.tolist() == [2.0, 4.0, 6.0]
    return kernel


def hits(kernel: Any) -> int:
    return sum(kernel.stats.cache_hits.values())


def test_kernels_wait_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = kernel_cache.cache_folder()
    assert folder is not None
    assert folder.parent == tmp_path / "windlass"
    assert numba.__version__ in folder.name
    assert (tmp_path / "windlass").stat().st_mode & 0o777 == 0o700
    assert hits(doubled(F4)) == 0
    assert list((folder / "float32").rglob("*.nbi"))
    assert hits(doubled(F4)) == 1


def test_code_made_with_other_flags_is_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    doubled(F4)
    monkeypatch.setitem(kernel_cache._FLAGS, "error_model", "python")
    kernel_cache.cache_folder.cache_clear()
    assert hits(doubled(F4)) == 0


def test_home_is_used_when_no_cache_folder_is_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = kernel_cache.cache_folder()
    assert folder is not None
    assert folder.parent == tmp_path / ".cache" / "windlass"


def test_a_home_that_cannot_be_written_leaves_a_private_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = kernel_cache.cache_folder()
    assert folder is not None
    assert folder.parent.parent == tmp_path
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    doubled(F4)
    assert hits(doubled(F4)) == 1


def test_without_any_writable_folder_one_warning_is_given_and_kernels_are_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null/tmp")
    with caplog.at_level(logging.WARNING, "windlass.kernels"):
        assert hits(doubled(F4)) == hits(doubled(F8)) == 0
    assert len(caplog.records) == 1
    assert "XDG_CACHE_HOME" in caplog.text


def test_a_folder_that_others_can_write_to_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Numba's cache holds code: who writes there runs as us."""
    shared, temporary = tmp_path / "shared", tmp_path / "temporary"
    (shared / "windlass").mkdir(parents=True)
    (shared / "windlass").chmod(0o777)
    temporary.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    folder = kernel_cache.cache_folder()
    assert folder is not None
    assert folder.is_relative_to(temporary)


def test_a_link_in_place_of_the_folder_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "windlass").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null/tmp")
    assert kernel_cache.cache_folder() is None


def test_a_damaged_cache_is_named_and_kernels_are_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    doubled(F4)
    (index,) = tmp_path.rglob("*.nbi")
    index.write_bytes(index.read_bytes()[:40])
    with caplog.at_level(logging.WARNING, "windlass.kernels"):
        doubled(F4)
    assert "float32" in caplog.text
    assert "remove it" in caplog.text


def test_a_kernel_of_another_type_in_the_cache_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two processes that write one index at once could leave an entry with its neighbour's code."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    doubled(F4)
    doubled(F8)
    (narrow,) = (path for path in tmp_path.rglob("*.nbc") if "float32" in path.parts)
    (wide,) = (path for path in tmp_path.rglob("*.nbc") if "float64" in path.parts)
    wide.write_bytes(narrow.read_bytes())
    doubled(F8)


def test_a_users_own_numba_functions_keep_their_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    setting: Any = numba.config
    monkeypatch.setattr(setting, "CACHE_DIR", "/dev/null/users-choice")
    doubled(F4)
    assert setting.CACHE_DIR == "/dev/null/users-choice"


def test_a_folder_chosen_through_numba_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "chosen"))
    assert kernel_cache.cache_folder() == tmp_path / "chosen"
    doubled(F4)
    assert list((tmp_path / "chosen").rglob("*.nbi"))


def test_kernels_of_rows_have_names_of_their_own_for_each_rule() -> None:
    """Compiled in processes of their own and loaded in one, kernels of one name would be linked to the first."""
    specs: list[RuleSpec] = [SGD(lr=0.1, momentum=0.9), Adagrad(), RMSprop(lr=0.1), RowWiseAdagrad()]
    kernels: list[Any] = [build_rows(spec, "float32").kernel for spec in specs]
    steps = [kernel.py_func.__closure__[0].cell_contents for kernel in kernels]
    for functions in ([kernel.py_func for kernel in kernels], steps):
        names = {(function.__module__, function.__qualname__) for function in functions}
        assert len(names) == len(specs), names
