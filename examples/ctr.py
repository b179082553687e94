"""Predicts clicks with a factorization machine (`--model fm`) or DeepFM, whose rows live in sparse tables.

    python examples/ctr.py                                         # generated data, a cluster of its own
    windlass run --servers 2 --workers 4 examples/ctr.py --data FOLDER --model deepfm
    python examples/ctr.py --data FOLDER --plain                   # the same model in NumPy alone, for comparison

FOLDER holds train.libfm and test.libfm (or .gz): a line a click, `label id:value id:value ...`, label 1 or not.
Published results on Frappe train on its training split, of 202,027 rows, and cannot be compared with runs on a part
of it, for example on its validation split.

Without a folder clicks are drawn from a factorization machine that is known, so that the best possible AUC is, too.

S. Rendle, "Factorization Machines", ICDM 2010; H. Guo et al., "DeepFM: A Factorization-Machine based Neural Network
for CTR Prediction", IJCAI 2017.
"""

import argparse
import gzip
import time
from pathlib import Path

import numpy as np

import windlass as wl

LR = 0.1
HIDDEN = 64
# How rows travel: of w, a value each, and of v. A row of one value has no use for a scale of its own.
CODECS = {
    "none": (None, None),
    "float16": (wl.codec.Float16(), wl.codec.Float16()),
    "int8": (wl.codec.Float16(), wl.codec.Int8()),
}


# ---- data ------------------------------------------------------------------------------------------------------------


def read_libfm(path):
    """(ids, values, labels) of a file of lines `label id:value ...`; short ones are filled up with values of 0."""
    packed = path.with_name(path.name + ".gz")
    with gzip.open(packed, "rt") if packed.exists() else path.open() as lines:
        rows = [line.split() for line in lines if line.strip()]
    fields = max(map(len, rows)) - 1
    ids, values = np.zeros((len(rows), fields), np.int64), np.zeros((len(rows), fields), np.float32)
    for i, (_, *features) in enumerate(rows):
        for j, feature in enumerate(features):
            name, _, value = feature.partition(":")
            ids[i, j], values[i, j] = int(name), float(value)
    return ids, values, np.array([float(label) > 0 for label, *_ in rows], np.float32)


def generated(rows, *, fields=6, a_field=30, k=4, seed=0):
    """Clicks of a planted factorization machine: two data sets, and the AUC of the machine itself on the second."""
    random = np.random.default_rng(seed)
    popular = 1 / np.arange(1, a_field + 1)
    ids = random.choice(a_field, (2 * rows, fields), p=popular / popular.sum()) + a_field * np.arange(fields)
    values = np.ones(ids.shape, np.float32)
    w, v = random.normal(0, 0.5, (fields * a_field, 1)), random.normal(0, 0.5, (fields * a_field, k))
    score = forward({"bias": np.full(1, -1.0)}, w[ids], v[ids], values)[0]
    labels = (random.random(len(score)) < 1 / (1 + np.exp(-score))).astype(np.float32)
    train, test = (ids[:rows], values[:rows], labels[:rows]), (ids[rows:], values[rows:], labels[rows:])
    return train, test, auc(score[rows:], test[2])


def auc(scores, labels):
    """How often a clicked row is scored above another, ties counting half: the rank statistic, exactly."""
    _, where, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[where]  # equal scores share the mean of their ranks
    clicked = int(np.count_nonzero(labels))
    return (ranks[labels > 0].sum() - clicked * (clicked + 1) / 2) / (clicked * (len(labels) - clicked))


# ---- the model -------------------------------------------------------------------------------------------------------


def first_dense(options, fields):
    """What is the same for every row: a bias, and the layers of the deep part."""
    if options.model == "fm":
        return {"bias": np.zeros(1, np.float32)}
    random = np.random.default_rng(options.seed)

    def layer(rows, columns):
        return random.normal(0, np.sqrt(2 / rows), (rows, columns)).astype(np.float32)

    return {
        "bias": np.zeros(1, np.float32),
        "w1": layer(fields * options.k, HIDDEN),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": layer(HIDDEN, HIDDEN),
        "b2": np.zeros(HIDDEN, np.float32),
        "w3": layer(HIDDEN, 1),
    }


def forward(dense, w, v, x):
    """Scores of rows: w (n, fields, 1) and v (n, fields, k) of their ids, x (n, fields) their values."""
    xv = v * x[..., None]
    total = xv.sum(axis=1)
    scores = dense["bias"] + (w[..., 0] * x).sum(axis=1) + 0.5 * ((total**2).sum(axis=1) - (xv**2).sum(axis=(1, 2)))
    if "w1" not in dense:
        return scores, (xv, total)
    flat = xv.reshape(len(x), -1)
    one = np.maximum(flat @ dense["w1"] + dense["b1"], 0)
    two = np.maximum(one @ dense["w2"] + dense["b2"], 0)
    return scores + (two @ dense["w3"])[:, 0], (xv, total, flat, one, two)


def loss_and_grads(dense, w, v, x, y):
    """Log loss, and its gradients by hand: of the dense tensors by name, of w and of v."""
    scores, (xv, total, *deep) = forward(dense, w, v, x)
    loss = np.logaddexp(0, np.where(y > 0, -scores, scores)).mean()
    clicked = 0.5 + 0.5 * np.tanh(0.5 * scores)  # 1 / (1 + exp(-scores)), which overflows
    back = ((clicked - y) / len(y)).astype(x.dtype)
    grads = {"bias": back.sum(keepdims=True)}
    to_xv = back[:, None, None] * (total[:, None] - xv)
    if deep:
        flat, one, two = deep
        to_two = back[:, None] * dense["w3"].T * (two > 0)
        to_one = to_two @ dense["w2"].T * (one > 0)
        grads |= {"w3": two.T @ back[:, None], "w2": one.T @ to_two, "b2": to_two.sum(axis=0)}
        grads |= {"w1": flat.T @ to_one, "b1": to_one.sum(axis=0)}
        to_xv += (to_one @ dense["w1"].T).reshape(to_xv.shape)
    return loss, grads, (back[:, None] * x)[..., None], to_xv * x[..., None]


# ---- training --------------------------------------------------------------------------------------------------------


def train(cluster, options, data):
    """Train on this worker's share of the clicks; returns what scores rows."""
    store = cluster.store("ctr", consistency=options.consistency)
    rule = wl.optim.Adagrad(lr=LR)
    dense = store.init(first_dense(options, data[0].shape[1]), optimizer=rule)
    of_w, of_v = CODECS[options.codec]
    store.table("w", 1, rule, init=wl.init.Zeros(), codec=of_w)
    store.table("v", options.k, rule, init=wl.init.Normal(0.01, seed=options.seed), codec=of_v)
    tensors = dict.fromkeys(dense)

    def rows_and_tensors(ids):
        found = store.pull({"w": ids, "v": ids, **tensors}, out=dense).result()  # closes the step before
        return found["w"], found["v"]

    for ids, x, y in cluster.batches(*data, size=options.size, epochs=options.epochs, seed=options.seed):
        w, v = rows_and_tensors(ids)
        loss, grads, to_w, to_v = loss_and_grads(dense, w, v, x, y)
        store.push({"w": wl.Rows(ids, to_w), "v": wl.Rows(ids, to_v), **grads}, weight=len(y))
        cluster.log(loss=loss)
    rows_and_tensors(data[0][:1])
    cluster.barrier("trained")
    return lambda ids, x: forward(dense, *rows_and_tensors(ids), x)[0]


def train_plain(options, data, workers=1):
    """The same model in one NumPy process, in the order of `cluster.batches`, all workers' batches in one."""
    ids, x, y = data
    random = np.random.default_rng([options.seed, 1])  # not the stream that first_dense draws from
    weights = first_dense(options, ids.shape[1])
    weights["w"] = np.zeros((options.features, 1), np.float32)
    weights["v"] = random.normal(0, 0.01, (options.features, options.k)).astype(np.float32)
    squares = {name: np.zeros_like(array) for name, array in weights.items()}

    def adagrad(name, rows, grad):
        squares[name][rows] += grad**2
        weights[name][rows] -= LR * grad / (np.sqrt(squares[name][rows]) + 1e-10)

    for epoch in range(options.epochs):
        order = np.random.Generator(np.random.Philox(key=[options.seed, epoch])).permutation(len(y))
        for batch in np.array_split(order, -(-len(y) // (options.size * workers))):
            once, where = np.unique(ids[batch], return_inverse=True)
            w, v = (weights[name][ids[batch]] for name in "wv")
            _, grads, *of_rows = loss_and_grads(weights, w, v, x[batch], y[batch])
            for name, grad in grads.items():
                adagrad(name, ..., grad)
            for name, grad in zip("wv", of_rows, strict=True):
                total = np.zeros((len(once), grad.shape[-1]), np.float32)
                np.add.at(total, where.reshape(-1), grad.reshape(-1, grad.shape[-1]))
                adagrad(name, once, total)
    return lambda ids, x: forward(weights, weights["w"][ids], weights["v"][ids], x)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="train.libfm and test.libfm; default: generated")
    parser.add_argument("--rows", type=int, default=20_000, help="of each generated data set")
    parser.add_argument("--model", choices=["fm", "deepfm"], default="fm")
    parser.add_argument("--k", type=int, default=16, help="values of a factor")
    parser.add_argument("--size", type=int, default=128, help="rows of a worker's batch")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of first weights and batches")
    parser.add_argument("--consistency", default="bsp", help="bsp, ssp:N or asp")
    parser.add_argument("--codec", choices=CODECS, default="none", help="of the gradients of rows")
    parser.add_argument("--plain", type=int, metavar="WORKERS", help="NumPy alone, in batches of as many workers")
    options = parser.parse_args()
    if options.data is not None:
        data, test, best = *(read_libfm(options.data / name) for name in ("train.libfm", "test.libfm")), None
    else:
        data, test, best = generated(options.rows)
    options.features = 1 + max(int(ids.max()) for ids, _, _ in (data, test))
    said = f", generated by a machine of AUC {best:.4f}" if options.data is None else ""
    if options.plain:
        print(f"test AUC {auc(train_plain(options, data, options.plain)(*test[:2]), test[2]):.4f}{said}")
        return
    with wl.connect() as cluster:
        began = time.perf_counter()
        score = train(cluster, options, data)
        took_s = time.perf_counter() - began
        if cluster.is_main:
            found = auc(score(*test[:2]), test[2])
            cluster.log(auc=found)
            print(f"test AUC {found:.4f}, {options.epochs * len(data[2]) / took_s:,.0f} clicks/s{said}")


if __name__ == "__main__":
    main()
