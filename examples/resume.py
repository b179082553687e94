"""Trains the digits, saves every epoch, and goes on where it was killed: run the same command again.

windlass run --workers 2 examples/resume.py --folder /tmp/digits-run     # kill it at any moment, in any way
windlass run --workers 2 examples/resume.py --folder /tmp/digits-run     # ends with the bits of a run left alone

With as many workers as before the weights at the end are the same bit for bit, on any number of servers.
"""

import argparse
import hashlib

import numpy as np
from digits import forward, initial, loss_and_grads

import windlass as wl
from windlass.datasets import load_digits


def fingerprint(params):
    """The weights in eight letters: equal ones are equal bits."""
    digest = hashlib.sha256()
    for name in sorted(params):
        digest.update(np.ascontiguousarray(params[name]).tobytes())
    return digest.hexdigest()[:8]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", required=True, help="where the checkpoints of this run are, on every start the same"
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--every", type=int, default=20, metavar="STEPS", help="steps from one checkpoint to the next")
    options = parser.parse_args()

    x, y = load_digits()
    test = np.arange(len(x)) % 5 == 0

    with wl.connect() as cluster:
        store = cluster.store("digits")
        params = store.init(initial(0), optimizer=wl.optim.Adam(lr=wl.schedule.Cosine(1e-2, steps=400)))
        resumed = store.resume(options.folder)
        best = resumed.state["best_loss"] if resumed else float("inf")
        if cluster.is_main:
            print(f"resumed at step {resumed.step}" if resumed else "began anew")
        for batch_x, batch_y in cluster.batches(x[~test], y[~test], size=32, epochs=options.epochs):
            loss, grads = loss_and_grads(params, batch_x, batch_y)
            store.update(grads, out=params, weight=len(batch_x))
            cluster.log(loss=loss)
            if store.steps_done % options.every == 0:
                # What every worker holds alike may be saved beside the weights.
                best = min(best, float(loss_and_grads(params, x[test], y[test])[0]))
                store.checkpoint(options.folder, state={"best_loss": best}, keep_last=2)
                if cluster.is_main:
                    print(f"saving step {store.steps_done}, best test loss {best:.4f}", flush=True)
        cluster.barrier("trained")
        if cluster.is_main:
            params = store.pull().result()
            accuracy = (forward(params, x[test])[1].argmax(axis=1) == y[test]).mean()
            print(f"test accuracy {accuracy:.2%}, {store.steps_done} steps, weights {fingerprint(params)}")


if __name__ == "__main__":
    main()
