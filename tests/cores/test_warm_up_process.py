"""The process that fills the kernel cache: what it compiles, that there is one of it, and that it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rules.conftest import ROW_SPECS, SPECS, TRUST_SPECS
from windlass_proto import kernel_cache
from windlass_proto.codecs.registry import CODEC_MODULES
from windlass_rules.registry import variant_of
from windlass_server import warm_up
from windlass_server.warm_up import WarmUp


@pytest.fixture
def cold_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel_cache.cache_folder.cache_clear()
    folder = kernel_cache.cache_folder()
    assert folder is not None
    yield folder
    kernel_cache.cache_folder.cache_clear()


def test_every_codec_is_among_what_is_compiled() -> None:
    assert {type(spec) for spec in warm_up.CODECS} == set(CODEC_MODULES)


def test_every_variant_of_every_rule_is_among_what_is_compiled() -> None:
    known = {variant_of(spec)[1].name for spec in (*SPECS, *ROW_SPECS, *TRUST_SPECS)}
    assert {variant_of(spec)[1].name for spec in warm_up.rules()} == known


def test_a_cold_cache_is_warmed_by_one_process_which_ends_with_its_server(cold_cache: Path) -> None:
    first, second = WarmUp(), WarmUp()
    try:
        assert (first.running, second.running) == (True, False)
    finally:
        first.stop()
        second.stop()
    assert not first.running
    third = WarmUp()  # the lock went with the process
    assert third.running
    third.stop()


def test_a_cache_that_holds_everything_starts_no_process(cold_cache: Path) -> None:
    cold_cache.mkdir(parents=True, exist_ok=True)
    (cold_cache / f"warm-{warm_up.digest()}").touch()
    assert not WarmUp().running


def test_nothing_more_is_compiled_once_the_server_is_gone(cold_cache: Path) -> None:
    """As after SIGKILL: nobody is left to stop the process."""
    read_fd, write_fd = os.pipe()
    assert not warm_up.ended(read_fd)
    os.close(write_fd)
    assert not warm_up.fill(lambda: warm_up.ended(read_fd))
    os.close(read_fd)
    assert not list(cold_cache.rglob("*.nb*"))
    assert not list(cold_cache.glob("warm-*"))
