"""Make an environment hold what a target of the Makefile needs, and do nothing when it already does.

`environment.py test` puts windlass (editable) with the extra `test` into `.venv`, beside what is there;
`environment.py protoc` puts the packages of pyproject's dependency group `protoc` into `build/protoc`, away
from windlass's own versions of them.

The invariant: `.made-by-windlass` in the environment says "ready" only after it is whole, and `.has-<name>`
holds the digest of everything that decided its content (pyproject, version, interpreter, folder). A second
call compares digests and ends. One call at a time: a lock under `build/` makes a second `make` wait.

Standard library only: this runs before anything is installed, by any Python >= 3.11, with the interpreter
that `python.sh` chose. Scripts in `.venv/bin` are never run, since their first line breaks in a long path or
one with a space.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
DECIDES = ("pyproject.toml", "client/windlass/_version.py")
READY = "ready {}.{}".format(*sys.version_info)

PROXY_NAMES = ("http_proxy", "https_proxy", "all_proxy", "pip_proxy")
PROXY_ANSWER_S = 3.0
LOG_TAIL_LINES = 20
UNIT_BYTES = {"bytes": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}


@dataclass(frozen=True, slots=True)
class Environment:
    """A folder, the name of what it shall hold, and what pip is asked for."""

    folder: Path
    name: str
    wanted: tuple[str, ...]

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def state(self) -> Path:
        return self.folder / ".made-by-windlass"

    @property
    def stamp(self) -> Path:
        return self.folder / f".has-{self.name}"


def named(name: str) -> Environment:
    """The environment that pyproject describes under `name`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if name in project["project"]["optional-dependencies"]:
        return Environment(ROOT / ".venv", name, ("--editable", f".[{name}]"))
    if name in project["dependency-groups"]:
        return Environment(BUILD / name, name, tuple(project["dependency-groups"][name]))
    raise SystemExit(f"pyproject.toml has neither an extra nor a dependency group named {name!r}.")


def digest(environment: Environment) -> str:
    """What the environment was made from; another value means that it has to be installed again."""
    made_from = hashlib.sha256(f"{environment.wanted}\n{READY}\n{ROOT}\n".encode())
    for name in DECIDES:
        made_from.update((ROOT / name).read_bytes())
    return made_from.hexdigest()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def make_folder(environment: Environment) -> None:
    """Create the environment anew with this interpreter; what another program made there is left alone."""
    folder = environment.folder
    if folder.exists() and not environment.state.is_file() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is there and `make` did not make it: move it away, then run this again.")
    print(f"making {folder.relative_to(ROOT)} with Python {sys.version.split()[0]} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment.state.write_text("half made\n", encoding="utf-8")
    outside: str = getattr(sys, "_base_executable", sys.executable)  # never the one that was just removed
    command = [outside, "-m", "venv", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise SystemExit(f"{made.stdout}{made.stderr}{command} ended with status {made.returncode}.")
    environment.state.write_text(READY + "\n", encoding="utf-8")


def answers(proxy: str) -> bool:
    """Whether something listens where a proxy variable points to."""
    try:
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        with socket.create_connection((url.hostname or "", url.port or 1080), timeout=PROXY_ANSWER_S):
            return True
    except (OSError, ValueError):
        return False


def environ_for_pip() -> dict[str, str]:
    """This process's variables without the proxies that refuse connections."""
    environ = dict(os.environ, PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    proxies = {name: value for name, value in environ.items() if name.lower() in PROXY_NAMES and value}
    reachable = {value: answers(value) for value in set(proxies.values())}
    dead = sorted(name for name, value in proxies.items() if not reachable[value])
    if dead:
        print(f"nothing answers where {', '.join(dead)} points to: installing without it.", flush=True)
    return {name: value for name, value in environ.items() if name not in dead}


def stored_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def fetched_bytes(log: str) -> int:
    """Sum of the sizes that pip printed for what it downloaded or took from its cache."""
    sizes = re.findall(r"^\s*(?:Downloading|Using cached) \S+ \(([\d.]+) (bytes|kB|MB|GB)\)", log, re.MULTILINE)
    return int(sum(float(number) * UNIT_BYTES[unit] for number, unit in sizes))


def install(environment: Environment) -> str:
    """Have pip install what is wanted; return its output, or end the program with its last lines."""
    command = [str(environment.python), "-m", "pip", "install", "--progress-bar", "off", *environment.wanted]
    log_path = BUILD / f"install-{environment.name}.log"
    lines = []
    with (
        log_path.open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ_for_pip(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as pip,
    ):
        assert pip.stdout is not None
        for line in pip.stdout:
            log.write(line)
            lines.append(line)
            show_progress(line)
    if pip.returncode != 0:
        print("".join(lines[-LOG_TAIL_LINES:]), file=sys.stderr)
        raise SystemExit(f"pip ended with status {pip.returncode}; all it said is in {log_path}")
    return "".join(lines)


def show_progress(line: str) -> None:
    """Keep one line on a terminal that says what is being fetched; write nothing into a log."""
    if sys.stdout.isatty() and (what := re.match(r"\s*(Downloading|Using cached|Installing) (\S+)", line)):
        print(f"\r\x1b[K  {what[1].lower()} {Path(what[2]).name[:60]}", end="", flush=True)


def bring_up_to_date(environment: Environment) -> None:
    """Leave the environment whole and holding what is wanted."""
    if text_of(environment.state) != READY:
        make_folder(environment)
    made_from = digest(environment)
    if text_of(environment.stamp) == made_from:
        return
    folder = environment.folder.relative_to(ROOT)
    print(f"installing what `{environment.name}` needs into {folder} ...", flush=True)
    started, before = time.monotonic(), stored_bytes(environment.folder)
    fetched_mb = 1e-6 * fetched_bytes(install(environment))
    stored_mb = 1e-6 * (stored_bytes(environment.folder) - before)
    clear = "\r\x1b[K" if sys.stdout.isatty() else ""
    took_s = time.monotonic() - started
    print(
        f"{clear}installed in {took_s:.0f} s: {fetched_mb:.0f} MB fetched, {stored_mb:.0f} MB on disk",
        flush=True,
    )
    environment.stamp.write_text(made_from + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "environment.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in arguments:
            bring_up_to_date(named(name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
