"""Trains on the digits, once, and says how it went: alone with NumPy, or as a worker of a windlass cluster.

`python -m benchmarks.digits_worker alone | windlass [--servers N]`; the answer is one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os

import numpy as np

from benchmarks.course import Course
from benchmarks.mlp import BATCH, EPOCHS, LEARNING_RATE, accuracy, gradients, initial, split_digits
from windlass.datasets import load_digits


def alone() -> tuple[Course, int]:
    """One process, no cluster: Adam from the same kernels that servers run."""
    from windlass_proto.rule_specs import Adam
    from windlass_rules import registry

    spec = Adam(lr=LEARNING_RATE)
    built = registry.build(spec, "float32")
    train_x, train_y, test_x, test_y = split_digits(*load_digits())
    params = initial(0)
    flat = {name: value.reshape(-1) for name, value in params.items()}
    slots = {name: tuple(np.zeros_like(value) for _ in built.slots) for name, value in flat.items()}
    random = np.random.default_rng(0)
    course, step = Course(), 0
    for _ in range(EPOCHS):
        order = random.permutation(len(train_x))
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            step += 1
            scalars = built.scalars(spec, step)
            for name, gradient in gradients(params, train_x[rows], train_y[rows]).items():
                built.update(flat[name], slots[name], 0, gradient.reshape(-1), 1.0, scalars)
        course.note(accuracy(params, test_x, test_y))
    return course, EPOCHS * len(train_x)


def clustered(servers: int | None) -> tuple[Course, int]:
    """A worker: its share of every epoch, BSP, Adam on the servers."""
    import windlass as wl

    train_x, train_y, test_x, test_y = split_digits(*load_digits())
    with wl.connect(servers=servers) if servers is not None else wl.connect() as cluster:
        store = cluster.store("digits", consistency="bsp")
        params = store.init(initial(0), optimizer=wl.optim.Adam(lr=LEARNING_RATE))
        steps_an_epoch = max(1, len(train_x) // BATCH // cluster.num_workers)
        cluster.barrier("start")
        course = Course()
        batches = cluster.batches(train_x, train_y, size=BATCH, epochs=EPOCHS, seed=0)
        for step, (x, y) in enumerate(batches, 1):
            store.update(gradients(params, x, y), out=params, weight=len(x))
            if cluster.is_main and step % steps_an_epoch == 0:
                course.note(accuracy(params, test_x, test_y))
        return course, EPOCHS * len(train_x)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("how", choices=["alone", "windlass"])
    parser.add_argument("--servers", type=int, default=None)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    course, samples = alone() if arguments.how == "alone" else clustered(arguments.servers)
    print(json.dumps(course.to_json(samples)), file=answers, flush=True)


if __name__ == "__main__":
    main()
