"""Initialisers: the same bits everywhere, and the distribution they are named after."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from windlass_proto import ids, init_specs, keys
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import control_pb2 as pb
from windlass_proto.init_specs import Constant, InitSpec, Normal, Uniform, Zeros
from windlass_server.row_table import RowTable

SEED = 0x1234_5678_9ABC_DEF0


def rows_of(spec: InitSpec, count: int, dim: int, dtype: str = "float32") -> np.ndarray:
    """What a table answers for ids 0..count-1 that nobody pushed to."""
    table = RowTable("t", range(16), 16, SEED, dim, np.dtype(dtype), spec, (), 100)
    out = np.empty(count * dim, dtype)
    table.read(np.arange(count, dtype=np.uint64), out)
    assert len(table) == 0
    return out.reshape(count, dim)


def written_out(spec: Uniform | Normal, item: int, column: int) -> float:
    """The module's equations in Python's integers and floats."""
    stream = keys.mix64(keys.mix64(item ^ SEED) ^ keys.mix64(spec.seed + 1))

    def word(n: int) -> int:
        return keys.mix64(stream + n * 0x9E3779B97F4A7C15)

    if isinstance(spec, Uniform):
        return spec.low + (spec.high - spec.low) / 2**24 * (word(column + 1) >> 40)
    parts = [(w >> shift) & 0xFFFF for w in (word(2 * column + 1), word(2 * column + 2)) for shift in (0, 16, 32, 48)]
    return spec.mean + spec.std / init_specs.NORMAL_DEVIATION * (sum(parts) - init_specs.NORMAL_CENTRE)


@pytest.mark.parametrize("spec", [Uniform(-0.5, 0.25), Normal(0.01), Normal(2.0, mean=1.0, seed=2**64 - 1)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_are_those_of_the_equations(spec: Uniform | Normal, dtype: str) -> None:
    found = rows_of(spec, 5, 7, dtype)
    expected = [[written_out(spec, item, column) for column in range(7)] for item in range(5)]
    assert np.array_equal(found, np.array(expected, dtype))


@pytest.mark.parametrize(
    ("spec", "golden"),
    [
        (Uniform(-0.05, 0.05), "72509a7ac6352089"),
        (Normal(0.01), "925d456d3dfcc49f"),
        (Normal(0.01, seed=1), "dc6860ab3965a2d2"),
    ],
    ids=str,
)
def test_bits_never_change(spec: InitSpec, golden: str) -> None:
    assert hashlib.sha256(rows_of(spec, 1000, 16).tobytes()).hexdigest()[:16] == golden


def test_values_have_the_distribution_named() -> None:
    normal = rows_of(Normal(0.5, mean=2.0), 20_000, 16, "float64").reshape(-1)
    assert abs(normal.mean() - 2.0) < 0.005
    assert abs(normal.std() - 0.5) < 0.005
    assert abs(((normal - 2.0) / 0.5).__pow__(4).mean() - 2.85) < 0.05
    uniform = rows_of(Uniform(-1.0, 3.0), 20_000, 16, "float64").reshape(-1)
    assert uniform.min() >= -1.0
    assert uniform.max() < 3.0
    assert np.abs(np.histogram(uniform, 16, (-1.0, 3.0))[0] / uniform.size - 1 / 16).max() < 0.003


def test_rows_columns_tables_and_seeds_differ() -> None:
    rows = rows_of(Normal(1.0), 100, 16)
    assert np.unique(rows).size > 1590
    assert not np.array_equal(rows, rows_of(Normal(1.0, seed=1), 100, 16))
    other = RowTable("u", range(16), 16, SEED + 1, 16, np.dtype("float32"), Normal(1.0), (), 100)
    out = np.empty(16, np.float32)
    other.read(np.zeros(1, np.uint64), out)
    assert not np.array_equal(out, rows[0])
    assert (rows_of(Constant(0.25), 2, 3) == 0.25).all()
    assert (rows_of(Zeros(), 2, 3) == 0.0).all()


@pytest.mark.parametrize("spec", [Zeros(), Constant(-2.5), Uniform(-1.0, 1.0, 9), Normal(0.1, 0.2, 2**63)], ids=str)
def test_an_initialiser_arrives_as_it_was_made(spec: InitSpec) -> None:
    assert init_specs.from_message(pb.Init.FromString(init_specs.to_message(spec).SerializeToString())) == spec


def test_wrong_initialisers_are_refused() -> None:
    for make in (
        lambda: Normal(-1.0),
        lambda: Normal(float("nan")),
        lambda: Uniform(1.0, 0.0),
        lambda: Constant(float("inf")),
        lambda: Normal(1.0, seed=-1),
    ):
        with pytest.raises(UsageError):
            make()
    for message in (pb.Init(kind="pickle"), pb.Init(kind="normal", a=-1.0), pb.Init()):
        with pytest.raises(ProtocolError):
            init_specs.from_message(message)


def test_keys_are_those_of_the_routing() -> None:
    plan = ids.plan(np.arange(100, dtype=np.uint64), SEED, 256)
    for v in range(256):
        for item in plan.ids[plan.begins[v] : plan.begins[v + 1]]:
            assert keys.vshard_of(keys.mix64(int(item) ^ SEED), 256) == v
