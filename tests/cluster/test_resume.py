"""A run that is killed whole and resumed ends as one that was left alone, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.workers import Workers
from windlass.local_cluster import LocalCluster
from windlass_proto import checkpoint_folders

pytestmark = pytest.mark.cluster

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits.py"
EPOCHS = 4
STEPS = EPOCHS * 29  # 1,797 rows in batches of at most 32 for two workers
STOPS_AT = 47  # inside the second epoch, and between two checkpoints

SCRIPT = f"""
import hashlib, runpy, sys, threading
import numpy as np
import windlass as wl
from windlass.datasets import load_digits

TRAVELS = {{"plain": {{}}, "one bit": {{"codec": wl.codec.OneBit(block=64), "codec_down": wl.codec.OneBit(block=64)}}}}
place, stops_at, travels = sys.argv[1], int(sys.argv[2]), TRAVELS[sys.argv[3]]
digits = runpy.run_path({str(DIGITS)!r})
with wl.connect() as cluster:
    store = cluster.store("digits", consistency="bsp")
    params = store.init(digits["initial"](0), optimizer=wl.optim.Adam(lr=1e-2), **travels)
    rule = wl.optim.Adam(lr=wl.schedule.Step(0.1, step_size=30, gamma=0.5))
    table = store.table("seen", 4, rule, admit=wl.admit.Count(9), evict=wl.evict.TTL(1))
    print("resumed", store.resume(place), flush=True)
    for x, y in cluster.batches(*load_digits(), size=32, epochs={EPOCHS}, seed=5):
        loss, grads = digits["loss_and_grads"](params, x, y)
        ids = (x[:, 20:24] * 16).astype(np.uint64)
        table.push(ids, y[:, None, None].repeat(4, 1).repeat(4, 2).astype(np.float32) - 4.5, weight=len(x))
        store.update(grads, out=params, weight=len(x))
        cluster.log(loss=loss)
        if store.steps_done % 10 == 0:
            saving = store.checkpoint(place, state={{"seen": store.steps_done}}, keep_last=2)
        if store.steps_done == stops_at:
            saving.result()
            print("stopped", flush=True)
            threading.Event().wait()
    cluster.barrier("trained")
    values = store.pull().result()
    values["rows"] = table.pull(np.arange(100)).result()
    digest = hashlib.sha256(b"".join(values[name].tobytes() for name in sorted(values))).hexdigest()
    print("ended", store.steps_done, digest)
"""


@contextlib.contextmanager
def running(run: Path, *arguments: str) -> Iterator[tuple[LocalCluster, Workers]]:
    """Two servers and two workers of the script."""
    with (
        LocalCluster.start(servers=2, run_dir=run) as cluster,
        Workers(cluster, SCRIPT, count=2, run_dir=run, arguments=arguments) as workers,
    ):
        yield cluster, workers


def last_line(out: str) -> list[str]:
    return out.splitlines()[-1].split()


@pytest.mark.parametrize("travels", ["plain", "one bit"])
def test_a_run_killed_and_resumed_ends_as_an_undisturbed_one(travels: str, tmp_path: Path) -> None:
    ends = []
    for name in ("undisturbed", "killed"):
        run = tmp_path / name
        run.mkdir()
        place = str(run / "checkpoints")
        if name == "killed":
            with running(run, place, str(STOPS_AT), travels) as (cluster, workers):
                for rank in (0, 1):
                    workers.await_text(rank, "stopped")
                for pid in (workers[0].process.pid, *cluster.pids.values(), workers[1].process.pid):
                    os.kill(pid, signal.SIGKILL)
            assert [folder.name for folder in checkpoint_folders.folders(Path(place))] == ["step-000040", "step-000030"]
        with running(run, place, "-1", travels) as (_, workers):
            outs = [worker.out for worker in workers.finish()]
        begun = "None" if name == "undisturbed" else "Resume(step=40, epoch=1, state={'seen': 40})"
        assert all(out.startswith(f"resumed {begun}\n") for out in outs), outs
        assert last_line(outs[0]) == last_line(outs[1])
        kept = [110, 100] if name == "undisturbed" else [110, 100, 40]  # whoever joins later reads what was resumed
        assert checkpoint_folders.folders(Path(place)) == [Path(place) / f"step-{step:06d}" for step in kept]
        logged = {json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()}
        first = 1 if name == "undisturbed" else 41
        assert set(range(first, STEPS + 1)) <= logged <= set(range(1, STEPS + 1)), "steps go on counting"
        ends.append(last_line(outs[0]))
    assert ends[0][:2] == ["ended", str(STEPS)]
    assert ends[1] == ends[0]
