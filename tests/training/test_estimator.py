"""Estimator and callbacks in one process: what a fit does, what it says, how it ends and how it goes on."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import windlass as wl
from tests.training.digits_model import DigitsNet, MakersRows, X, Y, normalised
from windlass_proto.errors import CorruptionError, UsageError

SPEC: Any = wl.optim.Adam(lr=1e-2)


def loader(begin: int = 0, end: int = 640, size: int = 64, **options: Any) -> wl.data.DataLoader:
    return wl.data.DataLoader(wl.data.ArrayDataset(X[begin:end], Y[begin:end]), size, **options)


def estimator(net: DigitsNet | None = None, spec: Any = SPEC, **options: Any) -> wl.Estimator:
    return wl.Estimator(net or DigitsNet(), cross_entropy, spec, metrics=[wl.metric.Accuracy()], **options)


def cross_entropy(scores: Any, labels: Any) -> Any:
    return wl.nd.softmax_cross_entropy(scores, labels)


class Told(wl.callback.Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.moments: list[tuple[str, int, int]] = []
        self.errors: list[BaseException | None] = []

    def begin(self, event: wl.callback.Event) -> None:
        self.moments.append(("begin", event.epoch, event.step))

    def epoch_begin(self, event: wl.callback.Event) -> None:
        self.moments.append(("epoch_begin", event.epoch, event.step))

    def batch_end(self, event: wl.callback.Event) -> None:
        self.moments.append(("batch_end", event.epoch, event.step))

    def epoch_end(self, event: wl.callback.Event) -> None:
        self.moments.append(("epoch_end", event.epoch, event.step))

    def end(self, event: wl.callback.Event) -> None:
        self.moments.append(("end", event.epoch, event.step))
        self.errors.append(event.error)


MOMENTS: dict[str, str] = {}


class Once(wl.callback.Callback):
    """Does something after one batch."""

    def __init__(self, step: int, act: Any) -> None:
        self.step, self.act = step, act

    def batch_end(self, event: wl.callback.Event) -> None:
        if event.step == self.step:
            self.act(event)


def raising(error: BaseException) -> Any:
    def act(event: Any) -> None:
        raise error

    return act


def test_a_fit_learns_and_tells_what_evaluate_says() -> None:
    made = estimator()
    history = made.fit(loader(shuffle=True), 8, validation=loader(1000, 1400))
    assert history[-1]["loss"] < history[0]["loss"] / 3
    assert history[-1]["validation_accuracy"] > 0.85
    found = made.evaluate(loader(1000, 1400, size=50))
    assert found["accuracy"] == history[-1]["validation_accuracy"]
    np.testing.assert_allclose(found["loss"], history[-1]["validation_loss"], rtol=1e-5)
    scores = made.predict(X[1000:1400])
    assert float((scores.argmax(axis=1) == Y[1000:1400]).mean()) == found["accuracy"]
    np.testing.assert_allclose(made.predict(loader(1000, 1400, size=33)), scores, rtol=1e-4, atol=1e-5)


def test_callbacks_are_told_of_every_moment_in_order() -> None:
    told = Told()
    estimator().fit(loader(0, 128), 2, callbacks=[told])
    moments = [("epoch_begin", 0), ("batch_end", 1), ("batch_end", 2), ("epoch_end", 2)]
    epochs = [[(moment, n, 2 * n + done) for moment, done in moments] for n in range(2)]
    assert told.moments == [("begin", 0, 0), *epochs[0], *epochs[1], ("end", 2, 4)]
    assert told.errors == [None]


def test_two_devices_fit_as_one() -> None:
    curves = []
    for devices in (["cpu:0"], ["cpu:0", "cpu:1"]):
        made = estimator(DigitsNet(devices), devices=devices)
        curves.append([figures["loss"] for figures in made.fit(loader(0, 330), 3)])
        assert made.evaluate(loader(0, 65))["accuracy"] > 0.5, "a last batch of one row is judged on one device"
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)


def test_devices_are_those_of_the_parameters() -> None:
    made = estimator(DigitsNet(["cpu:1", "cpu:2"]))
    made.fit(loader(0, 128), 1)
    assert [str(device) for device in made.devices] == ["cpu:1", "cpu:2"]


def test_a_trainer_of_ones_own_is_used() -> None:
    net = DigitsNet()
    trainer = wl.Trainer(net.collect_params(), SPEC)
    made = estimator(net, trainer)
    made.fit(loader(), 1)
    assert made.trainer is trainer


def test_an_epoch_of_so_many_batches_goes_on_where_the_last_one_ended() -> None:
    seen: list[int] = []

    def collate(samples: list[Any]) -> Any:
        seen.extend(int(sample[1]) for sample in samples)
        return np.stack([X[int(sample[1])] for sample in samples]), Y[[int(sample[1]) for sample in samples]]

    rows = wl.data.ArrayDataset(np.zeros(5), np.arange(5))
    estimator().fit(wl.data.DataLoader(rows, 1, collate=collate), 4, batches_per_epoch=3)
    assert seen[1:] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1], "behind the example"


@pytest.mark.usefixtures("tracker_of_multiprocessing")
def test_a_loaders_processes_last_as_long_as_the_fit() -> None:
    made_by: set[float] = set()

    class Seeing(DigitsNet):
        def __call__(self, x: Any) -> Any:
            made_by.update(np.asarray(x)[:, 0].tolist())
            return super().__call__(x * 0.0)

    estimator(Seeing()).fit(wl.data.DataLoader(MakersRows(), 4, num_workers=1), 3)
    assert len(made_by) == 1
    assert float(os.getpid()) not in made_by


def batches(count: int) -> Iterator[Any]:
    for i in range(count):
        yield X[i * 8 : i * 8 + 8], Y[i * 8 : i * 8 + 8]


def test_an_iterator_loses_no_batch_and_is_refused_when_it_is_at_its_end() -> None:
    told = Told()
    estimator().fit(batches(6), 2, batches_per_epoch=3, callbacks=[told])
    assert told.moments[-1] == ("end", 2, 6)
    with pytest.raises(UsageError, match="batches ended inside an epoch"):
        estimator().fit(batches(5), 2, batches_per_epoch=3)
    with pytest.raises(UsageError, match=r"an epoch has no batches.*epoch=1"):
        estimator().fit(batches(5), 2)


def test_a_stop_is_asked_for_and_ends_the_fit_after_the_batch() -> None:
    told = Told()
    stop = Once(3, lambda event: event.request_stop("enough"))
    assert len(estimator().fit(loader(0, 320), 5, callbacks=[stop, told])) == 1
    assert told.moments[-3:] == [("batch_end", 0, 3), ("epoch_end", 0, 3), ("end", 1, 3)]


class Canned(wl.callback.Callback):
    """Puts figures in the place of those that were measured."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def epoch_end(self, event: wl.callback.Event) -> None:
        assert event.merged is not None
        event.merged["loss"] = self.values[event.epoch]


@pytest.mark.parametrize(
    ("values", "options", "epochs", "best"),
    [
        ([3, 2, 2.5, 2.1, 9, 9], {"patience": 2}, 4, 1),
        ([3, 2, 2.5, 1.9, 1.8, 1.7], {"patience": 2}, 6, 5),
        ([3, 2.9, 2.8, 2.7, 9, 9], {"patience": 2, "min_delta": 0.5}, 3, 0),
        ([1, 2, 1, 1, 9, 9], {"patience": 2, "mode": "max"}, 4, 1),
        ([float("nan")] * 6, {"patience": 3}, 3, None),
    ],
)
def test_early_stopping_waits_as_long_as_it_is_told(
    values: list[float], options: dict[str, Any], epochs: int, best: int | None
) -> None:
    stopping = wl.callback.EarlyStopping("loss", **options)
    history = estimator().fit(loader(0, 64), 6, callbacks=[Canned(values), stopping])
    assert (len(history), stopping.best_epoch) == (epochs, best)


def test_a_schedule_sets_the_rate_from_figures() -> None:
    made = estimator(spec=wl.optim.SGD(lr=0.5))
    rates = iter([None, 0.0, 0.0])
    before = []
    keep = Once(2, lambda _: before.append(made.net.params["w1"].numpy()))
    made.fit(loader(0, 64), 3, callbacks=[wl.callback.Schedule(lambda _: next(rates)), keep])
    np.testing.assert_array_equal(made.net.params["w1"], before[0])


@pytest.mark.parametrize("moment", ["begin", "epoch_begin", "batch_end", "epoch_end"])
def test_an_error_of_a_callback_ends_the_fit_with_its_name(moment: str) -> None:
    class Broken(wl.callback.Callback):
        pass

    setattr(Broken, moment, lambda *_: MOMENTS["nothing"])
    told = Told()
    made = estimator()
    with pytest.raises(KeyError) as caught:
        made.fit(loader(0, 128), 2, callbacks=[told, Broken()])
    assert caught.value.__notes__ == [f"raised by the callback Broken at {moment} of epoch 0"]
    assert told.moments[-1][0] == "end"
    assert told.errors == [caught.value]
    assert len(made.fit(loader(0, 128), 1)) == 1, "the estimator is usable"


def test_an_interrupt_leaves_the_trainer_usable() -> None:
    made, whole = estimator(), estimator()

    class Interrupted:
        def __call__(self, scores: Any, labels: Any) -> Any:
            if next(calls) == 3:
                raise KeyboardInterrupt
            return cross_entropy(scores, labels)

    calls = itertools.count()
    made.loss = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        made.fit(loader(), 1)
    made.loss = cross_entropy
    made.fit(loader(192, 640), 1)
    whole.fit(loader(), 1)
    for name, array in whole.net.params.items():
        np.testing.assert_array_equal(array, made.net.params[name])


def test_progress_is_one_plain_line_an_epoch_where_nobody_watches() -> None:
    out = io.StringIO()
    estimator().fit(loader(0, 128), 2, validation=loader(0, 64), callbacks=[wl.callback.Progress(out)])
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  loss ")
    assert all(word in lines[1] for word in ("epoch 2/2", "accuracy", "validation_loss", "samples/s"))
    assert "\r" not in out.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_rewrites_its_line_and_leaves_one_an_epoch() -> None:
    out = Terminal()
    stop = Once(4, lambda event: event.request_stop("enough"))
    estimator().fit(loader(0, 128), 3, callbacks=[wl.callback.Progress(out), stop])
    assert "█" in out.getvalue()
    screen = [line.rsplit("\r", 1)[-1].rstrip() for line in out.getvalue().split("\n")[:-1]]
    assert [line.split("  ")[0] for line in screen] == ["epoch 1/3", "epoch 2/3", "stopped after epoch 2: enough"]


def test_the_speedometer_says_samples_a_second_and_figures() -> None:
    out = io.StringIO()
    estimator().fit(loader(0, 320), 1, callbacks=[wl.callback.Speedometer(2, out)])
    lines = out.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1 batch 2", "epoch 1 batch 4"]
    assert all("samples/s, loss " in line and "accuracy " in line for line in lines)


def test_records_are_json_lines_of_epochs_and_of_every_so_many_batches(tmp_path: Path) -> None:
    path = tmp_path / "records" / "fit.jsonl"
    history = estimator().fit(loader(0, 256), 2, callbacks=[wl.callback.Logging(path, every=2)])
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(record["epoch"], record["batch"], record["step"]) for record in records] == [
        (0, 2, 2), (0, 4, 4), (0, 4, 4), (1, 2, 6), (1, 4, 8), (1, 4, 8)
    ]  # fmt: skip
    assert records[-1]["loss"] == history[-1]["loss"]


def fitted(folder: Path, epochs: int, **options: Any) -> tuple[wl.Estimator, list[dict[str, float]], Any]:
    stopping = wl.callback.EarlyStopping("loss", patience=50)
    made = estimator(spec=wl.optim.Adam(lr=wl.schedule.Polynomial(1e-2, steps=100)))
    saving = wl.callback.Checkpoint(folder, keep=2, monitor="loss")
    history = made.fit(loader(shuffle=True, seed=3), epochs, callbacks=[stopping, saving], resume=folder, **options)
    return made, history, stopping


@pytest.mark.parametrize("options", [{}, {"batches_per_epoch": 7}], ids=["passes", "so many batches"])
def test_a_resumed_fit_ends_bit_for_bit_as_one_that_was_left_alone(tmp_path: Path, options: dict[str, int]) -> None:
    whole, wanted, waited = fitted(tmp_path / "whole", 6, **options)
    fitted(tmp_path / "parted", 3, **options)
    resumed, history, stopping = fitted(tmp_path / "parted", 6, **options)
    assert history == wanted
    assert (stopping.waited, stopping.best) == (waited.waited, waited.best)
    for name, array in whole.net.params.items():
        np.testing.assert_array_equal(resumed.net.params[name], array)
    assert sorted(path.name for path in (tmp_path / "parted").iterdir()) == ["best", "epoch-000005", "epoch-000006"]
    assert [path.name for path in (tmp_path / "parted" / "best").iterdir()] == [f"epoch-{stopping.best_epoch + 1:06d}"]


def test_moving_averages_are_resumed_too(tmp_path: Path) -> None:
    found = []
    for folder, stops in (("whole", []), ("parted", [2])):
        for epochs in (*stops, 4):
            net = normalised()
            made = wl.Estimator(net, cross_entropy, SPEC)
            saving = wl.callback.Checkpoint(tmp_path / folder)
            made.fit(loader(), epochs, callbacks=[saving], resume=tmp_path / folder)
        found.append({name: np.asarray(each.data()) for name, each in net.collect_params().items()})
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)
    assert any("running" in name for name in found[0])


def test_a_torn_checkpoint_is_passed_over_and_an_altered_one_is_refused(tmp_path: Path) -> None:
    fitted(tmp_path, 2)
    (tmp_path / "epoch-000002" / "fit.json").unlink()
    made, history, _ = fitted(tmp_path, 1)
    assert len(history) == 1, "the first epoch was resumed from, and nothing was left to do"
    file = tmp_path / "epoch-000001" / "parameters.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    before = made.net.params["w1"].numpy()
    with pytest.raises(CorruptionError, match=r"altered.*parameters\.safetensors"):
        fitted(tmp_path, 2)
    np.testing.assert_array_equal(made.net.params["w1"], before)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    fitted(tmp_path, 1)
    other = estimator(DigitsNet(units=32))
    with pytest.raises(UsageError, match="of another model: 'b1'"):
        other.fit(loader(), 2, resume=tmp_path)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: estimator().fit([X[:4]], 1), "not inputs and labels"),
        (lambda: estimator().fit([], 1), "no batches"),
        (lambda: estimator().fit(cast("Any", 3), 1), "gives no batches"),
        (lambda: estimator().fit(loader(), -1), "no such number of epochs"),
        (lambda: estimator().fit(loader(), 1, batches_per_epoch=0), "no such number of batches"),
        (lambda: estimator().predict([]), "no batches to predict"),
        (lambda: estimator().trainer, "Call fit first"),
        (lambda: estimator(store=object()), "store was given without its cluster"),
        (lambda: wl.Estimator(DigitsNet(), cross_entropy, SPEC, [wl.metric.Loss()]), "two metrics have one name"),
        (lambda: wl.callback.EarlyStopping(mode=cast("Any", "least")), "mode is none"),
        (lambda: wl.callback.EarlyStopping(patience=0), "patience is not positive"),
        (lambda: wl.callback.Checkpoint("x", keep=0), "keep is not positive"),
        (lambda: wl.callback.Checkpoint("x", every=0), "every is not positive"),
        (lambda: estimator().fit(loader(), 1, callbacks=[wl.callback.Logging()]), "nobody would see"),
        (
            lambda: estimator().fit(loader(0, 64), 1, callbacks=[wl.callback.EarlyStopping("validation_los")]),
            "no such figure",
        ),
        (
            lambda: wl.Estimator(DigitsNet(), lambda a, b: cross_entropy(a, b).mean(), SPEC).fit(loader(), 1),
            "one number for all samples",
        ),
        (
            lambda: estimator(DigitsNet(["cpu:0", "cpu:1"])).fit(loader(0, 65), 1),
            "fewer samples than there are devices",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call()
