"""`python -m benchmarks`: measures, prints the table, writes build/bench/<time>.jsonl.

`python -m benchmarks peers` makes the peers' environments (downloads them; nothing else does).
"""

from __future__ import annotations

import argparse
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.case import SMOKE, WHOLE, Case, Extent
from benchmarks.child import REPOSITORY, NotMeasuredError
from benchmarks.peers import environments
from benchmarks.report import Report, Row
from benchmarks.rounds import Pace

RESULTS = REPOSITORY / "build" / "bench"


def cases() -> tuple[Case, ...]:
    """All cases, in the order in which they run. Imported late: `peers` and `--help` need none of it."""
    from benchmarks.cases import (
        codecs,
        curves,
        dense,
        digits,
        engine,
        floors,
        gpu,
        kernels,
        overlap,
        pauses,
        sparse,
        start,
    )

    parts = (floors, dense, sparse, pauses, overlap, curves, digits, engine, kernels, gpu, codecs, start)
    return tuple(case for part in parts for case in part.CASES)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--only", action="append", metavar="CASE", help="run this case (may be repeated)")
    parser.add_argument("--quick", action="store_true", help="smoke size: every path, small loads, seconds")
    parser.add_argument("--rounds", type=int, help="rounds of each contender (default 7)")
    parser.add_argument("--round-seconds", type=float, help="length of one round (default 0.5)")
    parser.add_argument("--out", type=Path, help="the file of JSON lines")
    commands = parser.add_subparsers(dest="command")
    peers = commands.add_parser("peers", help="make the peers' environments under build/peers (torch only by name)")
    peers.add_argument("names", nargs="*", choices=[*(peer.name for peer in environments.PEERS), []])
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    if chosen.command == "peers":
        return environments.make(tuple(chosen.names))
    every = cases()
    if chosen.list:
        for case in every:
            print(f"{case.name:16}{case.sentence}")
        return 0
    names = [case.name for case in every]
    unknown = [name for name in chosen.only or () if name not in names]
    if unknown:
        print(f"no case is called {unknown[0]!r}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)
    return run([case for case in every if not chosen.only or case.name in chosen.only], chosen)


def run(chosen_cases: list[Case], chosen: argparse.Namespace) -> int:
    from benchmarks.machine import facts

    extent = _extent(chosen)
    known = facts()
    path = chosen.out or RESULTS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.jsonl"
    with Report(path, known) as report:
        report.print_head(known)
        try:
            for case in chosen_cases:
                _run_case(case, extent, report)
        except KeyboardInterrupt:
            print("\nstopped; what was measured is kept")
            return 130
        finally:
            report.print_foot()
    return 0


def _run_case(case: Case, extent: Extent, report: Report) -> None:
    try:
        for row in case.rows(extent):
            report.add(row)
    except NotMeasuredError as error:
        report.add(Row(case.name, "", "", not_measured=str(error)))


def _extent(chosen: argparse.Namespace) -> Extent:
    extent = SMOKE if chosen.quick else WHOLE
    rounds = chosen.rounds or extent.pace.rounds
    return Extent(extent.quick, Pace(rounds, chosen.round_seconds or extent.pace.round_s))


def _stop(*_: object) -> None:
    """SIGTERM ends a run as Ctrl-C does: every child is closed on the way out."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
