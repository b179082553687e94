"""Run the tests of CUDA kernels on this machine's first GPU, and record that they passed.

    python -m tests.rules.record_device docs/device_tests.json      # from the root, with the packages importable
    python docs/capabilities.py

The record names the device, the day, and the digest of every kernel's source: a kernel that changes is untested again.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path

import pytest

from docs.capabilities import device_runs
from tests.rules.conftest import programs
from windlass_rules.cupy_device import open_device

RUNS_KEPT = 4


def main(path: str) -> int:
    """The tests' exit status; the record is written to `path` if it is 0."""
    device = open_device("gpu:0")
    status = pytest.main(["-q", "tests/rules", "-k", "cuda", "-p", "no:cacheprovider"])
    if status != pytest.ExitCode.OK:
        return int(status)
    run = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "model": device.model,
        "cupy": device.cupy.__version__,
        "programs": {program.entry: program.digest for program in programs()},
    }
    text = json.dumps({"runs": [*device_runs(), run][-RUNS_KEPT:]}, indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
