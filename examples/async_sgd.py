"""What waiting costs: bsp, ssp:4 and asp with one worker that takes five times as long for a step as the others.

    windlass run --workers 3 examples/async_sgd.py

Under bsp everybody waits for the slow worker in every step, under ssp:4 once they are 4 steps ahead of it (so its
stalls are hidden, a steady lag is not), under asp never. What asp gains in time it pays in staleness: gradients meet
weights that others have changed since they were computed from them. That is measured, not guessed: the tensor
`updates` counts what the servers have applied, and it comes back with the weights of every step.
"""

import argparse
import time

import numpy as np

import windlass as wl

STEP_S, SLOW_STEP_S = 0.004, 0.020
LR = 0.1


def regression(rank, steps):
    """This worker's share of a noisy linear problem whose answer is all ones."""
    random = np.random.default_rng(rank)
    for _ in range(steps):
        x = random.normal(size=(32, 64)).astype(np.float32)
        yield x, x.sum(axis=1) + random.normal(scale=0.1, size=32).astype(np.float32)


def train(cluster, mode, steps):
    """Train in a store of this mode: this worker's times, how stale its gradients were, how far off the weights end."""
    store = cluster.store(f"async-{mode}", consistency=mode)
    first = {"w": np.zeros(64, np.float32), "updates": np.zeros(1, np.float32)}
    params = store.init(first, optimizer=wl.optim.SGD(lr=LR))
    slow = cluster.rank == cluster.num_workers - 1
    times_s, staleness = [], []
    cluster.barrier(f"{mode} begins")
    for x, y in regression(cluster.rank, steps):
        began = time.perf_counter()
        errors = x @ params["w"] - y
        time.sleep(SLOW_STEP_S if slow else STEP_S)  # a model that takes longer to differentiate
        before = params["updates"][0]
        grads = {"w": x.T @ errors / len(y), "updates": np.full(1, -1 / LR, np.float32)}
        store.update(grads, out=params)
        staleness.append(round(float(params["updates"][0] - before)) - 1)  # 1 is the update of this step itself
        times_s.append(time.perf_counter() - began)
    cluster.barrier(f"{mode} ends")
    return times_s, staleness, float(np.abs(store.pull("w").result()["w"] - 1).max())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of every worker in every mode")
    options = parser.parse_args()
    with wl.connect() as cluster:
        if cluster.num_workers < 2:
            raise SystemExit("Nobody to wait for. Try: windlass run --workers 3 examples/async_sgd.py")
        if cluster.is_main:
            print("mode    step of a fast worker    updates in between (median, most)    error of the weights")
        for mode in ("bsp", "ssp:4", "asp"):
            mine = train(cluster, mode, options.steps)
            times_s, staleness, errors = zip(
                *(cluster.broadcast(mine, root=r) for r in range(cluster.num_workers)), strict=True
            )
            step_ms = 1e3 * np.median(times_s[:-1])
            if cluster.is_main:
                between = f"{np.median(staleness):.0f}, {np.max(staleness)}"
                print(f"{mode:5} {step_ms:20.1f} ms {between:>35} {errors[0]:23.3f}")


if __name__ == "__main__":
    main()
