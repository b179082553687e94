"""One cluster of this machine for the tests that leave it as it was; a test has a job of its own on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.team import Team
from windlass.local_cluster import LocalCluster

_JOBS = itertools.count(1)


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A scheduler and two servers, which every test of the run may use and none may harm."""
    with LocalCluster.start(servers=2, run_dir=tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def token(local: LocalCluster, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may connect to `local`."""
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(local.token_file))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def job() -> str:
    """A job that no other test uses."""
    return f"job-{next(_JOBS)}"


@pytest.fixture
def team(local: LocalCluster, token: None, job: str) -> Iterator[Callable[..., Team]]:
    """Makes one team of the test's job, which leaves at the test's end."""
    made: list[Team] = []

    def make(workers: int = 2, **options: Any) -> Team:
        made.append(Team(local, job, workers=workers, **options))
        return made[-1]

    yield make
    while made:  # pytest keeps `make`, and with it what it holds
        made.pop().__exit__(None, None, None)
