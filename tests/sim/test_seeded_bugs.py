"""A simulator that finds nothing proves nothing: each planted bug is caught, by a check that is about it."""

from __future__ import annotations

import pytest

from tests.sim.cluster import play
from tests.sim.ledger import LedgerError
from tests.sim.seeded_bugs import BUGS, Bug
from tests.sim.test_ledger import SEEDS

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "_"))
def test_the_simulator_catches(bug: Bug) -> None:
    seed, error = first_caught(bug)
    assert error.check in bug.caught_by, f"seed {seed}: {error}"
    assert error.__notes__ == [f"play it again: python -m tests.sim {seed}"]


def first_caught(bug: Bug) -> tuple[int, LedgerError]:
    """The first seed that notices the bug, and what it says."""
    for seed in range(SEEDS):
        try:
            play(seed, bug.parts)
        except LedgerError as error:
            return seed, error
    pytest.fail(f"{bug.name}: nothing was noticed in {SEEDS} seeds")
