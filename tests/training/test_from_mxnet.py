"""Our blocks of docs/from-mxnet.md are one program, which runs as it stands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from windlass.local_cluster import child_environment

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "graph" / "golden"
RUN_S = 180.0

pytestmark = pytest.mark.cluster


def program(markdown: str) -> str:
    """The blocks that are marked as Python, one after the other; MXNet's are marked `py`."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", markdown, re.DOTALL | re.MULTILINE))


def test_the_guides_program_runs(tmp_path: Path) -> None:
    (tmp_path / "guide.py").write_text(
        program((ROOT / "docs" / "from-mxnet.md").read_text(encoding="utf-8")), encoding="utf-8"
    )
    for name in ("lenet-symbol.json", "lenet-0000.params"):
        shutil.copy(GOLDEN / name, tmp_path)
    environ = {name: value for name, value in child_environment().items() if not name.startswith("WINDLASS_")}
    environ |= {"OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "error", "guide.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fc1 fully_connected units=64 (32, 64)  [fc1_weight (64, 20), fc1_bias (64,)]" in done.stdout


def test_blocks_of_mxnet_are_left_out() -> None:
    assert program("```py\nimport mxnet\n```\n\n```python\na\n```\n```python\nb\n```\n") == "a\n\nb\n"
