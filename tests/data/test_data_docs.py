"""The programs of docs/data.md are run, in order, as one script beside a folder of digits."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_readers import idx_bytes, write
from windlass.local_cluster import child_environment

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
RUN_S = 90.0

pytestmark = pytest.mark.cluster


def test_the_pages_programs_run(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    program = "".join([*blocks, "\nprint(rows, len(loader))\n"])
    script = tmp_path / "page.py"
    script.write_text(f'if __name__ == "__main__":\n{textwrap.indent(program, "    ")}', encoding="utf-8")
    (tmp_path / "mnist").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (200, 28, 28)).astype(np.uint8)
    write(tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz", idx_bytes(images))
    write(tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz", idx_bytes((np.arange(200) % 10).astype(np.uint8)))
    environ = {name: value for name, value in child_environment().items() if not name.startswith("WINDLASS_")}
    environ |= {"OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["160", "3"]
