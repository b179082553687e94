"""The state store: what was written is there after a reopening, versions guard, one scheduler a folder."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from windlass_proto.errors import ClosedError, CorruptionError, UsageError
from windlass_scheduler.counters import Counters
from windlass_scheduler.state import USER_VERSION, Change, StateStore


def test_what_was_written_survives_a_reopening(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    changes = [Change("a/1", {"x": 1}), Change("a/2", {"x": "two"}), Change("ab", {"x": []})]
    assert store.submit(changes).result(5)
    assert store.submit([Change("a/2", None)]).result(5)
    store.close()
    again = StateStore(tmp_path)
    assert [(s.key, s.record, s.version) for s in again.listed("a/")] == [("a/1", {"x": 1}, 1)]
    found = again.get("ab")
    assert found is not None
    assert found.record == {"x": []}
    assert again.get("a/2") is None
    again.close()


def test_compare_and_set_refuses_an_old_version(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    assert store.compare_and_set("leader", 0, {"who": 1})
    assert not store.compare_and_set("leader", 0, {"who": 2})
    assert store.compare_and_set("leader", 1, {"who": 3})
    found = store.get("leader")
    assert found is not None
    assert (found.record, found.version) == ({"who": 3}, 2)
    store.close()


def test_a_batch_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    refused = store.submit([Change("a", {"x": 1}), Change("b", {"x": 1}, version=7)])
    assert refused.result(5) is False
    assert store.listed("") == []
    store.close()


def test_changes_submitted_together_are_committed_in_order(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    done = [store.submit([Change("n", {"n": n})]) for n in range(300)]
    assert all(future.result(10) for future in done)
    found = store.get("n")
    assert found is not None
    assert (found.record, found.version) == ({"n": 299}, 300)
    store.close()


def test_watchers_hear_of_keys_under_their_prefix(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    heard: list[str] = []
    told = threading.Event()

    def changed(keys: object) -> None:
        assert isinstance(keys, list)
        heard.extend(keys)
        told.set()

    store.watch("a/", changed)
    store.submit([Change("b", {"x": 1})])
    store.submit([Change("a/1", {"x": 1})])
    assert told.wait(5)
    assert heard == ["a/1"]
    store.close()


def test_a_second_scheduler_on_one_folder_is_refused(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    with pytest.raises(UsageError, match="another scheduler runs"):
        StateStore(tmp_path)
    store.close()
    StateStore(tmp_path).close()


def test_a_store_of_a_later_release_is_refused_with_both_versions(tmp_path: Path) -> None:
    StateStore(tmp_path).close()
    db = sqlite3.connect(tmp_path / "cluster.sqlite3")
    db.execute(f"PRAGMA user_version={USER_VERSION + 1}")
    db.close()
    with pytest.raises(UsageError, match="state_version=2, this_release=1"):
        StateStore(tmp_path)


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cluster.sqlite3").write_bytes(b"not a database, by far " * 100)
    with pytest.raises(CorruptionError, match="not a scheduler's"):
        StateStore(tmp_path)


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.close()
    with pytest.raises(ClosedError):
        store.submit([Change("a", {})])


def test_counters_jump_over_what_may_have_been_seen() -> None:
    first = Counters()
    taken = [first.take("member") for _ in range(3)]
    moved = first.drain()
    assert taken == [1, 2, 3]
    assert len(moved) == 1
    again = Counters()
    again.restore({change.key: change.record for change in moved if change.record is not None})
    assert again.take("member") > max(taken)
    assert again.drain()
