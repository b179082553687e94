"""Learns 1,797 handwritten digits on a parameter server, in plain NumPy.

python examples/digits.py                        # a cluster of its own
windlass run --workers 2 examples/digits.py      # two workers, one model
"""

import argparse
import time

import numpy as np

import windlass as wl
from windlass.datasets import load_digits


def initial(seed):
    random = np.random.default_rng(seed)

    def layer(rows, columns):
        return random.normal(0, np.sqrt(2 / rows), (rows, columns)).astype(np.float32)

    return {
        "w1": layer(64, 128),
        "b1": np.zeros(128, np.float32),
        "w2": layer(128, 10),
        "b2": np.zeros(10, np.float32),
    }


def forward(params, x):
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
    return hidden, hidden @ params["w2"] + params["b2"]


def loss_and_grads(params, x, y):
    """Cross entropy of the softmax, and its gradients by hand."""
    hidden, scores = forward(params, x)
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.log(p[rows, y] + 1e-12).mean()
    p[rows, y] -= 1
    p /= len(y)
    back = (p @ params["w2"].T) * (hidden > 0)
    return loss, {"w1": x.T @ back, "b1": back.sum(axis=0), "w2": hidden.T @ p, "b2": p.sum(axis=0)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the first weights")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--consistency", default="bsp", help="bsp, ssp:N or asp")
    options = parser.parse_args()

    x, y = load_digits()
    test = np.arange(len(x)) % 5 == 0

    with wl.connect() as cluster:
        store = cluster.store("digits", consistency=options.consistency)
        params = store.init(initial(options.seed), optimizer=wl.optim.Adam(lr=1e-2))
        began = time.perf_counter()
        for batch_x, batch_y in cluster.batches(x[~test], y[~test], size=32, epochs=options.epochs):
            loss, grads = loss_and_grads(params, batch_x, batch_y)
            store.update(grads, out=params, weight=len(batch_x))
            cluster.log(loss=loss)
        cluster.barrier("trained")
        took_s = time.perf_counter() - began

        if cluster.is_main:
            params = store.pull().result()
            accuracy = (forward(params, x[test])[1].argmax(axis=1) == y[test]).mean()
            cluster.log(accuracy=accuracy)
            samples_s = options.epochs * np.count_nonzero(~test) / took_s
            moved_mb = 2e-6 * store.clock * sum(param.nbytes for param in params.values())
            print(f"test accuracy {accuracy:.2%}, {samples_s:,.0f} samples/s, {moved_mb:,.0f} MB moved by each worker")


if __name__ == "__main__":
    main()
