"""What `examples/ctr.py` is made of: its gradients, its AUC, its reader."""

from __future__ import annotations

import argparse
import gzip
import itertools
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CTR: dict[str, Any] = runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples" / "ctr.py"))


@pytest.mark.parametrize("model", ["fm", "deepfm"])
def test_gradients_are_those_of_finite_differences(model: str) -> None:
    random = np.random.default_rng(3)
    dense = CTR["first_dense"](argparse.Namespace(model=model, k=4, seed=1), 3)
    given = {name: random.normal(0, 0.5, array.shape) for name, array in dense.items()}
    given |= {"w_rows": random.normal(size=(5, 3, 1)), "v_rows": random.normal(size=(5, 3, 4))}
    x, y = random.uniform(0.5, 2, (5, 3)), np.array([1.0, 0.0, 0.0, 1.0, 1.0])

    def results() -> Any:
        tensors = {name: given[name] for name in dense}
        return CTR["loss_and_grads"](tensors, given["w_rows"], given["v_rows"], x, y)

    _, grads, to_w, to_v = results()
    grads |= {"w_rows": to_w, "v_rows": to_v}
    assert grads.keys() == given.keys()
    for name, array in given.items():
        for at in itertools.islice(np.ndindex(array.shape), 0, None, 7):
            kept, losses = array[at], []
            for moved in (1e-5, -1e-5):
                array[at] = kept + moved
                losses.append(results()[0])
            array[at] = kept
            assert grads[name][at] == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-6), name


def test_auc_counts_every_pair_and_ties_half() -> None:
    random = np.random.default_rng(0)
    scores, labels = random.integers(0, 9, 200) / 8, random.integers(0, 2, 200)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels > 0] for b in scores[labels == 0]]
    assert CTR["auc"](scores, labels) == pytest.approx(np.mean(pairs), abs=1e-12)


@pytest.mark.parametrize("packed", [False, True])
def test_libfm_files_are_read_with_their_values_and_uneven_lines(packed: bool, tmp_path: Path) -> None:
    text = b"1 3:1 7:0.5\n-1 9:2\n\n0 1:1 2:1\n"
    path = tmp_path / "train.libfm"
    (tmp_path / "train.libfm.gz").write_bytes(gzip.compress(text)) if packed else path.write_bytes(text)
    ids, values, labels = CTR["read_libfm"](path)
    assert ids.tolist() == [[3, 7], [9, 0], [1, 2]]
    assert values.tolist() == [[1.0, 0.5], [2.0, 0.0], [1.0, 1.0]]
    assert labels.tolist() == [1.0, 0.0, 0.0]
