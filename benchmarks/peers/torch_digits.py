"""PyTorch on the digits with DistributedDataParallel over gloo. Runs in build/peers/torch.

Arguments: a folder with train_x.npy, train_y.npy, test_x.npy and test_y.npy; batch; epochs; learning rate.
Rank and size come in torch's own variables; every rank answers one JSON line.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.course import Course

NAMES = ("train_x", "train_y", "test_x", "test_y")


def main() -> None:
    folder, batch, epochs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    learning_rate = float(sys.argv[4])
    torch: Any = importlib.import_module("torch")
    rank, workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)  # two threads were 13 to 45 times slower on 2 busy cores: the layers are tiny
    torch.distributed.init_process_group("gloo")
    tensors = [torch.from_numpy(np.load(folder / f"{name}.npy")) for name in NAMES]
    course, samples = train(torch, tensors, rank, workers, (batch, epochs, learning_rate))
    torch.distributed.destroy_process_group()
    print(json.dumps(course.to_json(samples)), flush=True)


def train(
    torch: Any, tensors: list[Any], rank: int, workers: int, settings: tuple[int, int, float]
) -> tuple[Course, int]:
    train_x, train_y, test_x, test_y = tensors
    batch, epochs, learning_rate = settings
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    model = torch.nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    loss_of = torch.nn.CrossEntropyLoss()
    mine = len(train_x) // workers
    torch.distributed.barrier()
    course = Course()
    for epoch in range(epochs):
        order = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(epoch))
        order = order[rank * mine : (rank + 1) * mine]
        for at in range(0, mine, batch):
            rows = order[at : at + batch]
            optimizer.zero_grad()
            loss_of(model(train_x[rows]), train_y[rows]).backward()
            optimizer.step()
        if rank == 0:
            with torch.no_grad():
                course.note(float((network(test_x).argmax(1) == test_y).float().mean()))
    return course, epochs * mine * workers


if __name__ == "__main__":
    main()
