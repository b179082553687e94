"""A peer that is not there costs its row, never the run, and says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.child import NotMeasuredError
from benchmarks.contender import Field
from benchmarks.peers import environments
from benchmarks.peers.fleets import open_mxnet


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    return tmp_path


def test_a_missing_environment_is_named_with_the_command_that_makes_it(empty_folder: Path) -> None:
    with pytest.raises(NotMeasuredError, match=r"missing; `python -m benchmarks peers mxnet` makes it"):
        environments.python_of("mxnet")


def test_why_an_installation_failed_is_kept_for_the_table(empty_folder: Path) -> None:
    (empty_folder / "mxnet.failed").write_text("mxnet needs python3.11, which is not on the search path")
    assert environments.version_of("mxnet").startswith("not measured (mxnet needs python3.11")


def test_an_environment_made_for_other_requirements_is_not_used(empty_folder: Path) -> None:
    (empty_folder / "mxnet").mkdir()
    (empty_folder / "mxnet" / "made").write_text("mxnet==1.8.0\n1.8.0\n")
    with pytest.raises(NotMeasuredError, match="missing"):
        environments.python_of("mxnet")


def test_a_field_goes_on_without_a_peer_that_is_not_there(empty_folder: Path) -> None:
    with Field() as field:
        assert field.enter("mxnet dist_sync", lambda: open_mxnet("dist_sync")) is None
        assert field.contenders == []
        assert "makes it" in field.not_measured["mxnet dist_sync"]
