"""House rules that a machine can check: functions from sources to findings, each shown to catch a violation.

A finding is `path:line what is wrong and what to do`. Files come from the folder, not from git, so that a
rule speaks before a commit and in a tree without git. The figures that may only fall are constants here.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import held_now, leaked_since

ROOT = Path(__file__).resolve().parents[1]
OURS = {
    "windlass_proto": "proto",
    "windlass": "client",
    "windlass_server": "server",
    "windlass_rules": "server",
    "windlass_scheduler": "scheduler",
    "windlass_dashboard": "scheduler",
    "windlass_worker": "worker",
    "windlass_graph": "worker",
}
MAY_IMPORT = {
    "windlass_proto": set[str](),
    "windlass_graph": set[str](),
    "windlass": {"windlass_proto"},
    "windlass_rules": {"windlass_proto"},
    "windlass_scheduler": {"windlass_proto"},
    "windlass_dashboard": {"windlass_proto"},
    "windlass_server": {"windlass_rules", "windlass_proto"},
    "windlass_worker": {"windlass", "windlass_graph", "windlass_rules", "windlass_proto"},
}
# What a package may take of another that is otherwise closed to it: leaves that know nothing of a cluster.
MAY_IMPORT_MODULES = {
    "windlass_graph": {
        "windlass_proto.arguments",
        "windlass_proto.errors",
        "windlass_proto.kernel_cache",
        "windlass_proto.storage",
        "windlass_proto.tensor_file",
    },
}
FACADE = "client/windlass/__init__.py"

# A ratchet: lower it when the longest function has become shorter than this by more than the slack.
FUNCTION_LINES_MAX = 60
FUNCTION_LINES_SLACK = 25
FILE_LINES_MAX = 600

NEVER_IMPORTED = {"pickle", "cPickle", "marshal", "cloudpickle", "dill", "joblib", "shelve"}
NEVER_CALLED = {"eval", "exec", "__import__"}
NOT_IN_CORES = {
    "asyncio", "datetime", "multiprocessing", "queue", "random", "secrets", "select", "selectors", "signal",
    "socket", "subprocess", "threading", "time", "uuid",
}  # fmt: skip
PURE_MODULES = {f"proto/windlass_proto/{name}.py" for name in ("keys", "layout", "frames")}
WALL_CLOCK = {"time.time", "time.time_ns", "datetime.datetime.now", "datetime.datetime.utcnow"}
# Where the wall clock is what is meant: path -> why.
WALL_CLOCK_ALLOWED = {
    "benchmarks/__main__.py": "a published measurement carries its date",
    "tests/rules/record_device.py": "a record of tests carries its date",
    "client/windlass/run_folder.py": "events of a run carry their date",
    "client/windlass/scalar_log.py": "logged scalars carry their date",
    "scheduler/windlass_scheduler/cluster.py": "events shown to people carry their date",
}
NAMELESS_MODULES = {"utils", "util", "common", "core", "misc", "helpers", "helper"}
NAMELESS_CLASS = re.compile(r"(Manager|Handler|Helper|Util|Utils|Wrapper|Impl|Processor)$")
SKIPPED_FOLDERS = {"build", "dist", "runs", "node_modules", "__pycache__"}
GENERATED = "proto/windlass_proto/gen/"
ENTRY_POINTS = {"__main__", "__init__", "_version"}

FORBIDDEN_TEXT = {
    re.compile(r"(?<![\w.~-])/(work|root)/"): "a path of one machine",
    re.compile(r"(?<![\w.~-])/home/(?!(user|you|me)\b)\w+/"): "a path of one machine",
    re.compile(r"\b(TODO|FIXME|XXX)\b"): "a left-over note: do it, or write down the limit",
}
TEXT_SUFFIXES = {".py", ".pyi", ".md", ".toml", ".txt", ".sh", ".yaml", ".yml", ".proto", ".json", ".cfg", ""}


@dataclass(frozen=True, slots=True)
class Source:
    """One text file of the repository; `tree` is empty for what is not Python."""

    path: str
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        parts = self.path.split("/")
        return parts[1] if len(parts) > 2 and OURS.get(parts[1]) == parts[0] else ""

    @property
    def module(self) -> str:
        """Dotted name as it is imported, for a file of one of our packages."""
        return ".".join(self.path.removesuffix(".py").removesuffix("/__init__").split("/")[1:]) if self.package else ""

    @property
    def is_core(self) -> bool:
        return bool(self.package) and (self.path.endswith("_core.py") or self.path in PURE_MODULES)

    @property
    def is_test(self) -> bool:
        return self.path.startswith("tests/")

    def finding(self, node: ast.AST | int, what: str) -> str:
        line = node if isinstance(node, int) else getattr(node, "lineno", 1)
        return f"{self.path}:{line} {what}"


Check = Callable[[Sequence[Source]], list[str]]


def source(path: str, text: str) -> Source:
    return Source(path, text, ast.parse(text if path.endswith(".py") else "", path))


def repository(root: Path = ROOT) -> list[Source]:
    """Every text file that a person wrote, hidden and built folders left out."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS and (f == ".ci" or f[0] != "."))
        for path in (Path(folder) / name for name in sorted(names)):
            relative = path.relative_to(root).as_posix()
            if path.suffix in TEXT_SUFFIXES and not relative.startswith(GENERATED):
                found.append(source(relative, path.read_text(encoding="utf-8")))
    return found


def imports_of(one: Source) -> Iterator[tuple[ast.AST, str]]:
    """Each imported dotted name with its node; `from a import b` is `a.b`, `import_module("a")` is `a`."""
    package = one.module if one.path.endswith("/__init__.py") else one.module.rpartition(".")[0]
    for node in ast.walk(one.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("import_module") and node.args:
            yield from ((node, name) for name in texts(node.args[0]))


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def calls_of(one: Source) -> Iterator[tuple[ast.Call, str]]:
    """Each call with its dotted name; `from time import time as now; now()` is `time.time`."""
    renamed = {}
    for node in ast.walk(one.tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            renamed.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
        elif isinstance(node, ast.Import):
            renamed.update({a.asname: a.name for a in node.names if a.asname})
    for node in ast.walk(one.tree):
        if isinstance(node, ast.Call) and (name := dotted(node.func)):
            first, dot, rest = name.partition(".")
            yield node, renamed.get(first, first) + dot + rest


def import_direction(sources: Sequence[Source]) -> list[str]:
    found = []
    for one in sources:
        if not one.package or one.path == FACADE:
            continue
        for node, name in imports_of(one):
            other = name.split(".")[0]
            leaves = MAY_IMPORT_MODULES.get(one.package, set())
            if any(f"{name}.".startswith(f"{leaf}.") for leaf in leaves):
                continue
            if other in OURS and other != one.package and other not in MAY_IMPORT[one.package]:
                allowed = ", ".join(sorted(MAY_IMPORT[one.package] | leaves)) or "nothing of ours"
                found.append(one.finding(node, f"{one.package} imports {other}; it may import {allowed}"))
    return found


def code_that_runs_data(sources: Sequence[Source]) -> list[str]:
    found = []
    for one in sources:
        found += [
            one.finding(node, f"imports {name}: data from outside must never become code")
            for node, name in imports_of(one)
            if name.split(".")[0] in NEVER_IMPORTED
        ]
        for call, name in calls_of(one):
            if name in NEVER_CALLED:
                found.append(one.finding(call, f"calls {name}(): write the code out"))
            if any(k.arg == "allow_pickle" and not is_false(k.value) for k in call.keywords):
                found.append(one.finding(call, "allows pickles: read arrays with allow_pickle left off"))
    return found


def is_false(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def cores_without_io(sources: Sequence[Source]) -> list[str]:
    found = []
    for one in (s for s in sources if s.is_core):
        for node, name in imports_of(one):
            if name.split(".")[0] in NOT_IN_CORES or name.startswith("numpy.random"):
                found.append(one.finding(node, f"imports {name}: in a core, time and chance arrive with the event"))
        for call, name in calls_of(one):
            if ".random." in name and name.split(".")[0] in {"np", "numpy"}:
                found.append(one.finding(call, f"calls {name}(): in a core, chance arrives with the event"))
            if name in {"open", "print", "input"}:
                found.append(one.finding(call, f"calls {name}(): a core does no input or output"))
    return found


def wall_clock(sources: Sequence[Source]) -> list[str]:
    return [
        one.finding(
            call,
            f"reads the wall clock with {name}(): use the monotonic one, or say why in WALL_CLOCK_ALLOWED",
        )
        for one in sources
        if one.path not in WALL_CLOCK_ALLOWED
        for call, name in calls_of(one)
        if name in WALL_CLOCK
    ]


def names_that_say_nothing(sources: Sequence[Source]) -> list[str]:
    found = []
    for one in (s for s in sources if s.path.endswith(".py")):
        for part in one.path.removesuffix(".py").split("/"):
            if part in NAMELESS_MODULES:
                found.append(one.finding(1, f"is called {part}: name the noun it holds"))
        for node in ast.walk(one.tree):
            if isinstance(node, ast.ClassDef) and (suffix := NAMELESS_CLASS.search(node.name)):
                found.append(one.finding(node, f"class {node.name}: say what it is without {suffix[1]}"))
    return found


def functions(
    sources: Sequence[Source],
) -> Iterator[tuple[int, Source, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for one in sources:
        for node in ast.walk(one.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield (node.end_lineno or node.lineno) - node.lineno + 1, one, node


def long_functions(sources: Sequence[Source]) -> list[str]:
    return [
        one.finding(node, f"{node.name} has {lines} lines, at most {FUNCTION_LINES_MAX}: cut it at its nouns")
        for lines, one, node in functions(sources)
        if lines > FUNCTION_LINES_MAX
    ]


def long_files(sources: Sequence[Source]) -> list[str]:
    return [
        one.finding(lines, f"has {lines} lines, at most {FILE_LINES_MAX}: one noun per module")
        for one in sources
        if one.path.endswith((".py", ".sh")) and (lines := one.text.count("\n")) > FILE_LINES_MAX
    ]


def honest_tests(sources: Sequence[Source]) -> list[str]:
    found = []
    for one in (s for s in sources if s.is_test):
        for node, name in imports_of(one):
            if name.split(".")[0] in {"mock", "pytest_mock"} or name.startswith("unittest.mock"):
                found.append(
                    one.finding(node, f"imports {name}: use the real thing, or a fake that keeps its promises")
                )
        for call, name in calls_of(one):
            pause = call.args[0] if call.args else None
            gives_way = name == "asyncio.sleep" and isinstance(pause, ast.Constant) and pause.value == 0
            if name in {"time.sleep", "asyncio.sleep"} and not gives_way:
                found.append(one.finding(call, f"calls {name}(): wait for the condition, with a deadline"))
    return found


def forbidden_text(sources: Sequence[Source]) -> list[str]:
    return [
        one.finding(number, f"{match[0]!r}: {why}")
        for one in sources
        if one.path not in {"tests/test_tidy.py", "LICENSE"}
        for number, line in enumerate(one.text.splitlines(), 1)
        for pattern, why in FORBIDDEN_TEXT.items()
        for match in pattern.finditer(line)
    ]


def dead_modules(sources: Sequence[Source]) -> list[str]:
    """Modules that nothing imports, starts with -m or names in a string (lazy imports of the facade)."""
    used: set[str] = set()
    for one in sources:
        names = [*(name for _, name in imports_of(one)), *texts(one.tree)]
        if one.path == FACADE:
            names += [f"windlass.{name.lstrip('.')}" for name in texts(one.tree)]
        for parts in (name.split(".") for name in names):
            if parts[0] in OURS:
                used.update({".".join(parts[:n]) for n in range(1, len(parts) + 1)} - {one.module})
    return [
        one.finding(1, f"nothing imports {one.module}: delete it, or use it")
        for one in sources
        if one.package and one.path.endswith(".py") and Path(one.path).stem not in ENTRY_POINTS
        and one.module not in used
    ]  # fmt: skip


def public_names_exist(sources: Sequence[Source]) -> list[str]:
    """Names in `__all__` are bound in the module, or spelled in the table that its `__getattr__` reads."""
    found = []
    for one in sources:
        listed = {name: node for node in one.tree.body if assigns_all(node) for name in texts(node)}
        lazy = any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in one.tree.body)
        bound = set(bound_names(one.tree.body))
        if lazy:
            bound |= {name for node in one.tree.body if not assigns_all(node) for name in texts(node)}
        found += [
            one.finding(node, f"__all__ names {name!r}, which the module lacks")
            for name, node in listed.items()
            if name not in bound
        ]
    return found


def assigns_all(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets)


def texts(node: ast.AST) -> Iterator[str]:
    """The string constants in and below a node."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def bound_names(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that the statements bind at their own level, branches included."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.alias):
                yield part.asname or part.name.split(".")[0]
            elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                yield part.id
            elif isinstance(part, ast.FunctionDef | ast.ClassDef):
                yield part.name


def unread_settings(sources: Sequence[Source]) -> list[str]:
    """Fields of `...Config`, `...Options` and `...Settings` classes that no code reads."""
    ours = [s for s in sources if s.package]
    read = {
        node.attr
        for one in ours
        for node in ast.walk(one.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    return [
        one.finding(field, f"nothing reads {node.name}.{field.target.id}: an option must change something")
        for one in ours
        for node in ast.walk(one.tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Options", "Settings"))
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.target.id not in read
    ]


CHECKS: list[Check] = [
    import_direction,
    code_that_runs_data,
    cores_without_io,
    wall_clock,
    names_that_say_nothing,
    long_functions,
    long_files,
    honest_tests,
    forbidden_text,
    dead_modules,
    public_names_exist,
    unread_settings,
]


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return repository()


@pytest.mark.parametrize("check", CHECKS)
def test_the_repository_keeps_the_rule(check: Check, sources: list[Source]) -> None:
    found = check(sources)
    if found:
        pytest.fail(f"{check.__name__}:\n" + "\n".join(found), pytrace=False)


def test_the_ratchet_of_long_functions_is_tight(sources: list[Source]) -> None:
    lines, one, node = max(functions(sources), key=lambda found: found[0])
    tight = lines + FUNCTION_LINES_SLACK
    assert tight >= FUNCTION_LINES_MAX, f"the longest is {one.path} {node.name} with {lines}: lower the maximum"


def test_exemptions_are_still_needed(sources: list[Source]) -> None:
    paths = {one.path for one in sources}
    assert not WALL_CLOCK_ALLOWED.keys() - paths, "files that may read the wall clock but are gone"


SEEDED = [
    (import_direction, "client/windlass/a.py", "import windlass_server.shares"),
    (import_direction, "server/windlass_rules/a.py", "from windlass_server import shares"),
    (import_direction, "proto/windlass_proto/a.py", "def f():\n    import windlass"),
    (import_direction, "scheduler/windlass_scheduler/a.py", "import_module('windlass')"),
    (import_direction, "worker/windlass_graph/a.py", "from windlass_proto import frames"),
    (import_direction, "worker/windlass_graph/a.py", "import windlass"),
    (code_that_runs_data, "tests/a.py", "from pickle import loads"),
    (code_that_runs_data, "server/windlass_server/a.py", "eval('1')"),
    (code_that_runs_data, "server/windlass_server/a.py", "import numpy\nnumpy.load('x', allow_pickle=True)"),
    (cores_without_io, "server/windlass_server/share_core.py", "from time import monotonic"),
    (cores_without_io, "proto/windlass_proto/keys.py", "import threading"),
    (cores_without_io, "proto/windlass_proto/layout.py", "import numpy as np\nnp.random.default_rng()"),
    (cores_without_io, "client/windlass/window_core.py", "print(1)"),
    (wall_clock, "client/windlass/a.py", "import time\ntime.time()"),
    (wall_clock, "client/windlass/a.py", "from time import time as now\nnow()"),
    (wall_clock, "client/windlass/a.py", "from datetime import datetime\ndatetime.now()"),
    (names_that_say_nothing, "client/windlass/utils.py", ""),
    (names_that_say_nothing, "client/windlass/common/a.py", ""),
    (names_that_say_nothing, "client/windlass/a.py", "class LinkManager: ..."),
    (long_functions, "tests/a.py", "def f():\n" + "    1\n" * FUNCTION_LINES_MAX),
    (long_files, "client/windlass/a.py", "\n" * (FILE_LINES_MAX + 1)),
    (honest_tests, "tests/a.py", "import time\ntime.sleep(1)"),
    (honest_tests, "tests/a.py", "from asyncio import sleep\nasync def f():\n    await sleep(0.1)"),
    (honest_tests, "tests/a.py", "from unittest.mock import patch"),
    (forbidden_text, "docs/a.md", "see /" + "work/main"),
    (forbidden_text, "docs/a.md", "see /" + "home/somebody/x"),
    (forbidden_text, "Makefile", "# TO" + "DO later"),
    (dead_modules, "client/windlass/a.py", "import windlass.a"),
    (public_names_exist, "client/windlass/a.py", "__all__ = ['gone']"),
    (public_names_exist, "client/windlass/__init__.py", "__all__ = ['gone']\ndef __getattr__(name): ..."),
    (unread_settings, "server/windlass_server/a.py", "class ServerConfig:\n    port: int"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "path", "text"), SEEDED)
def test_a_seeded_violation_is_caught(check: Check, path: str, text: str) -> None:
    found = check([source(path, text)])
    assert len(found) == 1
    assert found[0].startswith(f"{path}:")


ALLOWED = [
    ("client/windlass/__init__.py", "import windlass_graph\nimport windlass_rules.adam"),
    ("server/windlass_server/a.py", "from windlass_rules import adam\nimport windlass_proto.keys"),
    ("server/windlass_server/b.py", "import numpy, windlass_server.a\nnumpy.load('x', allow_pickle=False)"),
    ("server/windlass_server/__main__.py", "import windlass_server.b\nimport time\ntime.monotonic()"),
    ("client/windlass/a.py", "__all__ = ['f']\ndef f(): ..."),
    ("client/windlass/cli/__init__.py", "from .. import a\nfrom windlass.a import f"),
    ("tests/a.py", "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n"),
    ("docs/a.md", "The network's homework/root/cause is documented."),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
def test_what_is_allowed_is_not_reported(check: Check) -> None:
    assert not check([source(path, text) for path, text in ALLOWED])


def test_every_rule_has_a_seeded_violation() -> None:
    assert {check for check, _, _ in SEEDED} == set(CHECKS)


def test_a_thread_a_descriptor_and_a_child_left_behind_are_named() -> None:
    before = held_now()
    assert leaked_since(before, grace_s=0.0) == []
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="left-behind")
    thread.start()
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        leaked = leaked_since(before, grace_s=0.0)
        child.communicate(b"\n")
    release.set()
    thread.join()
    os.close(reader)
    os.close(writer)
    assert f"child process {child.pid}" in leaked
    assert "thread left-behind (daemon: False)" in leaked
    assert sum(said.startswith((f"file descriptor {reader}:", f"file descriptor {writer}:")) for said in leaked) == 2


def test_a_thread_that_ends_within_the_grace_is_no_leak() -> None:
    before = held_now()
    release = threading.Event()
    threading.Thread(target=release.wait).start()
    threading.Thread(target=release.set).start()
    assert leaked_since(before) == []
