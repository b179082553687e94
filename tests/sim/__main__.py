"""Play seeds again: `python -m tests.sim SEED ...` or `python -m tests.sim FIRST-LAST`; a bug's name plants it."""

from __future__ import annotations

import sys

from tests.sim.cluster import Parts, plan_of, play
from tests.sim.ledger import LedgerError
from tests.sim.seeded_bugs import BUGS


def main(arguments: list[str]) -> int:
    """Play the seeds named; returns 1 if one fails."""
    planted = {bug.name: bug.parts for bug in BUGS}
    parts = next((planted[argument] for argument in arguments if argument in planted), Parts())
    failed = False
    for argument in (argument for argument in arguments if argument not in planted):
        first, _, last = argument.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            told = f"seed {seed}, {plan_of(seed).consistency}"
            try:
                cluster = play(seed, parts)
            except LedgerError as error:
                failed = True
                sys.stdout.write(f"{told}: {error}\n")
            else:
                if not last:
                    sys.stdout.write(f"{told}: fine, {cluster.timeline.events} events\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
