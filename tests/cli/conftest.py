"""One shell a test, so that no test meets another's cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.shell import Shell


@pytest.fixture
def shell() -> Iterator[Shell]:
    with Shell() as opened:
        yield opened


@pytest.fixture(scope="module")
def shell_with_cluster() -> Iterator[Shell]:
    """A cluster of one server is up; what is left of it is looked at when the module is done."""
    with Shell() as opened:
        address = opened.up()["address"]
        yield opened
        assert opened.windlass("down").status == 0
        opened.await_nothing_left(address)
