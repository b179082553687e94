"""What holds for every test: nothing leaks, nothing is skipped in silence, examples are drawn alike in CI.

Leaks: after each test the threads, file descriptors and child processes must be those from before it. What is
still ending (a thread, a socket that gRPC closes on a thread of its own) has a deadline for it. Fixtures of a
wider scope (a cluster for a module) are set up before the count and so are not charged to the test.

Skips: `WINDLASS_REQUIRE_ALL=1` (set by `.ci/run`) fails the run when a test was skipped for a reason that is
not in `SKIPS_ALLOWED_IN_CI`. `make test-all` sets `WINDLASS_TEST_ALL=1`, without which tests marked `large`
are skipped.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

LARGE_TIMEOUT_S = 600  # on a busy machine they take three minutes
TEST_ALL = os.environ.get("WINDLASS_TEST_ALL") == "1"
REQUIRE_ALL = os.environ.get("WINDLASS_REQUIRE_ALL") == "1"

# Beginnings of the reasons for which a test may be skipped even where everything is required to run.
SKIPS_ALLOWED_IN_CI = ("needs a GPU", "macOS only")

LEAK_GRACE_S = 5.0
LEAK_POLL_S = 0.02
FD_FOLDER = Path("/proc/self/fd") if Path("/proc/self/fd").is_dir() else Path("/dev/fd")
TASKS_FOLDER = Path("/proc/self/task")

# Lent buffers are digested when they are sent and when they are acknowledged; read where the client is first imported.
os.environ.setdefault("WINDLASS_CHECK_BUFFERS", "1")

settings.register_profile("dev", deadline=None)
settings.register_profile(
    "ci", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@dataclass(frozen=True, slots=True)
class Held:
    """What this process holds at one moment; a descriptor is its number and what it stands for."""

    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]
    children: frozenset[int]

    def beyond(self, before: Held) -> list[str]:
        """In words, what is held here and was not `before`."""
        threads = [f"thread {t.name} (daemon: {t.daemon})" for t in self.threads - before.threads]
        descriptors = [f"file descriptor {fd}: {what}" for fd, what in self.descriptors - before.descriptors]
        children = [f"child process {pid}" for pid in self.children - before.children]
        return sorted(threads + descriptors + children)


def held_now() -> Held:
    return Held(frozenset(threading.enumerate()), open_descriptors(), child_processes())


def open_descriptors() -> frozenset[tuple[int, str]]:
    found = set()
    for entry in os.listdir(FD_FOLDER):
        # The descriptor that listed the folder is closed by now; another thread may have closed one as well.
        with contextlib.suppress(OSError):
            what = os.readlink(FD_FOLDER / entry)
            if not what.startswith("/dev/nvidia"):  # the driver's own, opened when it likes
                found.add((int(entry), what))
    return frozenset(found)


def child_processes() -> frozenset[int]:
    """Children of any thread, zombies among them; empty where the kernel does not list them."""
    found: set[int] = set()
    for children in TASKS_FOLDER.glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, children.read_text(encoding="ascii").split()))
    return frozenset(found)


def leaked_since(before: Held, grace_s: float = LEAK_GRACE_S) -> list[str]:
    """Name what is held now and was not before, once what is ending had `grace_s` to end."""
    deadline = time.monotonic() + grace_s
    if not held_now().beyond(before):
        return []
    gc.collect()
    for thread in frozenset(threading.enumerate()) - before.threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    pause = threading.Event()
    while (added := held_now().beyond(before)) and time.monotonic() < deadline:
        pause.wait(LEAK_POLL_S)
        gc.collect()
    return added


@pytest.fixture(scope="session", autouse=True)
def descriptors_of_libraries() -> None:
    """Open what gRPC keeps open for the life of the process, lest the first test to meet it be charged."""
    import grpc

    with grpc.insecure_channel("unix:/nonexistent", options=[("grpc.enable_http_proxy", 0)]):
        pass


@pytest.fixture(scope="session")
def tracker_of_multiprocessing(descriptors_of_libraries: None) -> None:
    """Start the process that Python keeps for the life of the interpreter once something was spawned."""
    resource_tracker.ensure_running()


@pytest.fixture(autouse=True)
def nothing_leaks(descriptors_of_libraries: None) -> Iterator[None]:
    before = held_now()
    yield
    if leaked := leaked_since(before):
        pytest.fail("left behind by this test: " + "; ".join(leaked), pytrace=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("large"):
            item.add_marker(pytest.mark.timeout(LARGE_TIMEOUT_S))
            if not TEST_ALL:
                item.add_marker(pytest.mark.skip(reason="large: `make test-all` runs it"))
        for needed in item.iter_markers("needs_debian"):
            package, program = needed.args
            if shutil.which(program) is None:
                reason = f"needs {program}: `apt-get install {package}` as root, then `make test-all`"
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipPolicy(), "windlass-skips")


class SkipPolicy:
    """Collects why tests were skipped, says so at the end, and fails the run where every test is required."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._reasons[report.nodeid] = reason_of(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._reasons[report.nodeid] = reason_of(report)

    def forbidden(self) -> dict[str, str]:
        if not REQUIRE_ALL:
            return {}
        return {k: v for k, v in self._reasons.items() if not v.startswith(SKIPS_ALLOWED_IN_CI)}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.forbidden() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._reasons:
            return
        terminalreporter.section("not run")
        for reason in sorted(set(self._reasons.values())):
            count = list(self._reasons.values()).count(reason)
            terminalreporter.write_line(f"{count} x {reason}")
        for nodeid in self.forbidden():
            terminalreporter.write_line(f"FAILED {nodeid}: skipped, and WINDLASS_REQUIRE_ALL=1 forbids it", red=True)


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The words behind `Skipped: ` in a report of a skip."""
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return said.removeprefix("Skipped: ")
