"""What one process has compiled spares the next ones their compiling."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LOADED = """
import windlass_rules
from windlass_proto.rule_specs import SGD, Adam
kernels = [windlass_rules.build(spec, "float32").update for spec in (SGD(lr=0.1), Adam())]
print([sum(kernel.stats.cache_hits.values()) for kernel in kernels])
"""
IMPORTED = """
import windlass_rules, windlass_rules.registry as registry, windlass_rules.reduce as reduce
print(len(registry._KERNELS), len(reduce._READY))
"""


def in_new_process(program: str, cache: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    return done.stdout.strip()


def test_a_process_loads_every_kernel_that_one_before_it_compiled(tmp_path: Path) -> None:
    assert in_new_process(LOADED, tmp_path) == "[0, 0]"
    assert in_new_process(LOADED, tmp_path) == "[2, 2]"


def test_importing_the_package_compiles_nothing(tmp_path: Path) -> None:
    assert in_new_process(IMPORTED, tmp_path) == "0 0"
    assert not list(tmp_path.iterdir())
