"""What of a slow network a training step hides: gradients pushed after backward, or each as soon as it is there.

One worker, one server, a throttle between them, bsp. A network of equal layers: forward needs them first to last,
backward has their gradients last to first. A layer is a NumPy matmul, or computed by a device for which the process
waits (it sleeps), so that the processor's other work does not count. *After*: the whole model in one update. *Each, in
turn*: a push_pull of each layer inside the step, as soon as its gradient is there; the next forward waits for each
layer when it comes to it. *Each, first layer first*: the same with the layer's place as priority. The floor computes
and sends nothing. Hidden is how much of what the first adds to the floor the others do not.

*Behind a transfer*: how long a pull of 4 KiB takes that is asked for while 64 MiB are on their way up, or down.
"""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import windlass as wl
from benchmarks.case import Case, Extent, size_text
from benchmarks.child import REPOSITORY
from benchmarks.report import Row
from benchmarks.slow_cluster import ADVERTISED, AdvertisedCluster, listening_ports
from windlass.store import Store
from windlass.ticket import Ticket

LAYERS = 12
SETTINGS = ((1024, 0), (512, 512), (512, 64))  # width, batch: the last computes for shorter than it sends
DEVICE_S = (0.012, 0.024)  # a layer forward and backward; one of 4 MiB is sent in 42 ms
BYTES_PER_S = 100e6
LARGE_BYTES, SMALL_BYTES = 64 << 20, 4 << 10

Arrays = dict[str, np.ndarray]
Step = Callable[[], None]


class Network:
    """Layers whose weights are `params`, computed by a batch of so many samples, or by a device (batch 0)."""

    def __init__(self, params: Arrays, batch: int) -> None:
        self.params = params
        self.batch = batch
        width = next(iter(params.values())).shape[0]
        self.signal = np.random.default_rng(0).normal(size=(max(1, batch), width)).astype(np.float32)
        self.gradient = np.full((width, width), 1e-6, np.float32)
        self.names = list(params)

    def forward(self, await_layer: Callable[[str], None]) -> None:
        for name in self.names:
            await_layer(name)
            if self.batch:
                self.signal @ self.params[name]
            else:
                time.sleep(DEVICE_S[0])

    def backward(self, found: Callable[[str, np.ndarray], None]) -> None:
        for name in reversed(self.names):
            found(name, self._gradient(name))

    def _gradient(self, name: str) -> np.ndarray:
        if not self.batch:
            time.sleep(DEVICE_S[1])
            return self.gradient
        self.signal @ self.params[name].T
        return self.signal.T @ self.signal * np.float32(1e-6)


def overlap(extent: Extent) -> Iterator[Row]:
    steps = 3 if extent.quick else 18
    with ExitStack() as opened:
        cluster = opened.enter_context(_slow_cluster(opened))
        for width, batch in ((128, 0),) if extent.quick else SETTINGS:
            first = {f"layer {i:02}": np.zeros((width, width), np.float32) for i in range(LAYERS)}
            store = cluster.store(f"batch {batch}", consistency="bsp")
            network = Network(store.init(first, optimizer=wl.optim.SGD(lr=1e-3)), batch)
            kinds: dict[str, Step] = {
                "floor: computes only": functools.partial(_alone, network),
                "after backward": functools.partial(_after, store, network),
                "each, in turn": _Layerwise(store, network, priorities=False).step,
                "each, first layer first": _Layerwise(store, network, priorities=True).step,
            }
            by = f"batch {batch}" if batch else f"device {DEVICE_S[0] * 1e3:.0f}+{DEVICE_S[1] * 1e3:.0f} ms"
            setting = f"{LAYERS} x {size_text(4 * width * width)}, {by}, {BYTES_PER_S / 1e6:.0f} MB/s"
            yield from _rows(setting, _rounds(kinds, steps))
        yield from _behind_a_transfer(cluster, extent)


def _behind_a_transfer(cluster: wl.Cluster, extent: Extent) -> Iterator[Row]:
    nbytes, times = (4 << 20, 1) if extent.quick else (LARGE_BYTES, 5)
    store = cluster.store("transfer", consistency="asp")
    arrays = {"large": np.zeros(nbytes // 4, np.float32), "small": np.zeros(SMALL_BYTES // 4, np.float32)}
    store.init(arrays, optimizer=wl.optim.SGD(lr=1e-3))
    large = {"large": arrays["large"]}
    for way, begin in (("up", lambda: store.push(large)), ("down", lambda: store.pull("large"))):
        in_turn = 0.0
        for kind, priority in (("in turn", 0), ("priority 1", 1)):
            seconds = [_time_behind(store, begin, priority) for _ in range(times)]
            answer_s = statistics.median(seconds)
            in_turn = in_turn or answer_s
            ratios = {"in turn": in_turn / answer_s} if priority else {}
            setting = f"{size_text(SMALL_BYTES)} behind {size_text(nbytes)} {way}, {BYTES_PER_S / 1e6:.0f} MB/s"
            yield Row("overlap", setting, kind, {"answer_s": answer_s}, ratios)


def _time_behind(store: Store, begin: Callable[[], Ticket], priority: int) -> float:
    """Seconds until a small pull is answered that is asked for behind what `begin` begins."""
    with store.step():
        large = begin()
        began = time.perf_counter()
        store.pull("small", priority=priority).result()
        seconds = time.perf_counter() - began
    large.result()
    return seconds


def _rows(setting: str, seconds: dict[str, list[float]]) -> Iterator[Row]:
    floor, after, *_ = (statistics.median(found) for found in seconds.values())
    for kind, found in seconds.items():
        figures = {"step_s": statistics.median(found), "best_s": min(found)}
        if kind.startswith("each"):
            figures["hidden_percent"] = 100 * (after - statistics.median(found)) / (after - floor)
        ratios = {} if kind == "after backward" else {"after backward": after / statistics.median(found)}
        yield Row("overlap", setting, kind, figures, ratios)


def _rounds(kinds: dict[str, Step], steps: int) -> dict[str, list[float]]:
    """Seconds of each step. Contenders take turns; a turn's first step, beside what others left, is not counted."""
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(steps // 3):
        for kind, step in kinds.items():
            step()
            for _ in range(3):
                begin = time.perf_counter()
                step()
                seconds[kind].append(time.perf_counter() - begin)
    return seconds


def _nothing(*_: object) -> None:
    """Neither waits for a layer nor sends one."""


def _alone(network: Network) -> None:
    network.forward(_nothing)
    network.backward(_nothing)


def _after(store: Store, network: Network) -> None:
    grads: Arrays = {}
    network.forward(_nothing)
    network.backward(grads.__setitem__)
    store.update(grads, out=network.params)


class _Layerwise:
    """A push_pull of each layer as soon as its gradient is there; the next forward waits for each layer."""

    def __init__(self, store: Store, network: Network, *, priorities: bool) -> None:
        self.store = store
        self.network = network
        self.place = {name: -i if priorities else 0 for i, name in enumerate(network.names)}
        self.coming: dict[str, Ticket] = {}

    def step(self) -> None:
        self.network.forward(self._await)
        with self.store.step():
            self.network.backward(self._send)

    def _await(self, name: str) -> None:
        ticket = self.coming.pop(name, None)
        if ticket is not None:
            ticket.result()

    def _send(self, name: str, gradient: np.ndarray) -> None:
        out = {name: self.network.params[name]}
        self.coming[name] = self.store.push_pull({name: gradient}, out, priority=self.place[name])


def _slow_cluster(opened: ExitStack) -> wl.Cluster:
    """A worker of a cluster whose one server is behind a throttle, a process of its own."""
    folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
    local = opened.enter_context(AdvertisedCluster.start(servers=1, run_dir=folder))
    (port,) = listening_ports(local)
    argv = [sys.executable, "-m", "benchmarks.throttle", f"{ADVERTISED}:{port}", f"127.0.0.1:{port}", str(BYTES_PER_S)]
    throttle = subprocess.Popen(argv, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    opened.enter_context(throttle)  # which closes its input, and waits
    assert throttle.stdout is not None
    throttle.stdout.readline()
    os.environ |= {"WINDLASS_TOKEN_FILE": str(local.token_file), "WINDLASS_LINK": "tcp"}
    opened.callback(os.environ.pop, "WINDLASS_LINK")
    return wl.connect(local.address, job="bench", workers=1)


CASES = (Case("overlap", "a slow link: pushes after backward, during it, and with priorities", overlap),)
