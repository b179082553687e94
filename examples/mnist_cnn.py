"""Learns handwritten digits with a small convolutional network.

python examples/mnist_cnn.py --data FOLDER                         # on a cluster of its own
python examples/mnist_cnn.py --data FOLDER --devices cpu:0,cpu:1   # each batch split over two devices
windlass run --workers 4 examples/mnist_cnn.py --data FOLDER       # each batch split over four workers

FOLDER holds MNIST's idx files, plain or gzipped: all of them, or the 10,000 test digits, of which then the first 8,000
are for training and the rest for testing. Without --data the 1,797 digits of 8 x 8 pixels that come with windlass do.
"""

import argparse

import numpy as np

import windlass as wl
from windlass.datasets import load_digits


class Net(wl.nn.HybridBlock):
    def __init__(self):
        super().__init__()
        self.conv1 = wl.nn.Conv2D(20, kernel_size=3, padding=1, activation="relu")
        self.pool1 = wl.nn.MaxPool2D(pool_size=2)
        self.conv2 = wl.nn.Conv2D(50, kernel_size=3, padding=1, activation="relu")
        self.pool2 = wl.nn.MaxPool2D(pool_size=2)
        self.hidden = wl.nn.Dense(128, activation="relu")
        self.scores = wl.nn.Dense(10)

    def forward(self, x):
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(x))
        return self.scores(self.hidden(x))


def load(folder):
    """Images of (channel, height, width), values 0 to 1, with their labels: to train, and to test."""
    if folder:
        to_tensor = wl.data.transforms.ToTensor()
        return [wl.data.readers.MNIST(folder, train=train).transform_first(to_tensor) for train in (True, False)]
    x, y = load_digits()
    x, test = x.reshape(-1, 1, 8, 8), np.arange(len(x)) % 5 == 0
    return [wl.data.ArrayDataset(x[rows], y[rows]) for rows in (~test, test)]


def accuracy(net, dataset):
    metric = wl.metric.Accuracy()
    for x, y in wl.data.DataLoader(dataset, batch_size=500):
        metric.update(y, net(wl.nd.array(x)))
    return metric.get()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of MNIST's idx files")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64, help="rows of one step, over all workers and devices")
    parser.add_argument("--devices", default="cpu:0", help="of each worker, e.g. cpu:0,cpu:1 or gpu:0")
    parser.add_argument("--lr", type=float, default=3e-3)
    options = parser.parse_args()
    devices = options.devices.split(",")
    train_data, test_data = load(options.data)

    net = Net()
    net.initialize(wl.init.Xavier(), device=devices)
    net.hybridize()
    loss = wl.loss.SoftmaxCrossEntropy()

    with wl.connect() as cluster:
        batches = wl.data.DataLoader(
            train_data, options.batch_size // cluster.num_workers, shuffle=True, cluster=cluster
        )
        net(wl.nd.array(train_data[0][0][None]))  # tells the layers their shapes
        trainer = wl.Trainer(net.collect_params(), wl.optim.Adam(lr=options.lr), store=cluster.store("mnist"))
        for epoch in range(options.epochs):
            for x, y in batches:
                xs, ys = (wl.split_and_load(part, devices, even_split=False) for part in (x, y))
                with wl.autograd.record():
                    losses = [loss(net(x), y) for x, y in zip(xs, ys, strict=True)]
                trainer.backward(losses)  # each gradient leaves as soon as it is complete
                trainer.step()
                cluster.log(loss=np.concatenate([one.numpy() for one in losses]).mean())
            if cluster.is_main:
                print(f"epoch {epoch + 1}: test accuracy {accuracy(net, test_data):.2%}")
        cluster.barrier("trained")


if __name__ == "__main__":
    main()
