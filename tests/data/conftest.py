"""What tests of data share: the process that Python's multiprocessing keeps is no test's leak."""

from __future__ import annotations

from multiprocessing import resource_tracker

import pytest


@pytest.fixture(scope="session", autouse=True)
def tracker_of_multiprocessing(descriptors_of_libraries: None) -> None:
    """Spawning starts it once, for the life of the interpreter."""
    resource_tracker.ensure_running()
