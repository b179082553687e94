"""The wheel as a stranger gets it: built here, installed in an empty folder, imported from another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What `import windlass` leaves alone: each costs more than windlass itself; `connect` or a command needs it.
HEAVY = {
    "grpc",
    "numba",
    "llvmlite",
    "google.protobuf",
    "typer",
    "rich",
    "click",
    "matplotlib",
    "asyncio",
    "sqlite3",
}
BUILD_S = 100


def run_python(*arguments: str, cwd: Path, pythonpath: Path | None = None) -> str:
    """Run this interpreter away from the checkout; return what it printed, or fail with what it said."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    if pythonpath is not None:
        environ["PYTHONPATH"] = str(pythonpath)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environ, capture_output=True, text=True, timeout=BUILD_S
    )
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    run_python("-m", "pip", "wheel", str(ROOT), *offline, "--wheel-dir", str(folder), cwd=folder)
    [built] = folder.glob("windlass-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's content and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check")
    run_python("-m", "pip", "install", str(wheel), *offline, "--target", str(folder), cwd=folder)
    return folder


def test_the_wheel_holds_every_python_file_of_our_packages(wheel: Path) -> None:
    roots = [ROOT / name for name in ("proto", "client", "server", "scheduler", "worker")]
    written = {
        path.relative_to(root).as_posix()
        for root in roots
        for package in root.glob("windlass*")
        for path in package.rglob("*.py")
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    assert packed == written


def test_the_wheel_carries_licences_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [entry_points] = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
        assert "windlass = windlass.cli:main" in archive.read(entry_points).decode("utf-8")
    for licence in ("LICENSE", "NOTICE", "LICENSE-digits.txt"):
        assert any(name.split("/")[-1] == licence and ".dist-info/" in name for name in names), licence


def test_importing_windlass_loads_numpy_and_nothing_heavy(installed: Path, tmp_path: Path) -> None:
    program = (
        "import json, sys, threading, windlass as wl; "
        "print(json.dumps([wl.__file__, wl.__version__, threading.active_count(), sorted(sys.modules)]))"
    )
    place, version, threads, loaded = json.loads(run_python("-c", program, cwd=tmp_path, pythonpath=installed))
    assert Path(place).is_relative_to(installed), "the checkout was imported, not the wheel"
    assert f"windlass-{version}.dist-info" in os.listdir(installed)
    assert threads == 1
    assert HEAVY.isdisjoint(loaded), f"import windlass loads {sorted(HEAVY & set(loaded))}"


def test_digits_load_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    program = (
        "import windlass.datasets as d; x, y = d.load_digits(); "
        "print(d.__file__); print(x.shape, x.dtype, y.shape, y.dtype)"
    )
    place, shapes = run_python("-c", program, cwd=tmp_path, pythonpath=installed).splitlines()
    assert Path(place).is_relative_to(installed)
    assert shapes == "(1797, 64) float32 (1797,) int64"


def test_every_package_of_the_wheel_imports_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    packages = sorted(path.name for path in installed.glob("windlass*") if (path / "__init__.py").is_file())
    assert {"windlass", "windlass_proto"} <= set(packages)
    files = ", ".join(f"{name}.__file__" for name in packages)
    program = f"import {', '.join(packages)}; print({files}, sep='\\n')"
    for place in run_python("-c", program, cwd=tmp_path, pythonpath=installed).splitlines():
        assert Path(place).is_relative_to(installed)
