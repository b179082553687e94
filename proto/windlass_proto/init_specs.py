"""Initialisers of sparse rows: what an id's row holds before anything was pushed to it.

Invariant: a value depends on (seed, table, id, column) alone, in integer arithmetic and one IEEE product and sum in
float64, rounded once to the table's dtype: the same bits on every server, replica and machine, so that a pull of an
absent row may answer without inserting it.

    key    = mix64(id ^ seed of the table)               a bijection of the id: `ids.py`
    stream = mix64(key ^ mix64(seed + 1))
    bits j = mix64(stream + (j + 1) * 0x9E3779B97F4A7C15)      SplitMix64, Steele et al., OOPSLA 2014

A uniform takes the top 24 bits. A normal is the sum of eight 16-bit uniforms of two such words, centred and scaled to
its variance (Irwin-Hall): no logarithm, so no libm. It ends at 4.9 standard deviations and its kurtosis is 2.85, which
suits initial weights; who needs true tails writes the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

from windlass_proto.arguments import is_number, refused_in_words
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import control_pb2

CONSTANT: Final = 0
UNIFORM: Final = 1
NORMAL: Final = 2

# The sum of eight uniforms over 0..65535 has mean 4 * 65535 and variance 8 * (2**32 - 1) / 12.
NORMAL_CENTRE: Final = 4 * 65535
NORMAL_DEVIATION: Final = math.sqrt(8 * (2**32 - 1) / 12)


@refused_in_words
@dataclass(frozen=True, slots=True)
class Zeros:
    """Every value is 0."""

    def numbers(self) -> tuple[int, float, float, int]:
        """Kind, the two numbers of the kernel, seed."""
        return CONSTANT, 0.0, 0.0, 0


@refused_in_words
@dataclass(frozen=True, slots=True)
class Constant:
    """Every value is `value`, finite."""

    value: float

    def __post_init__(self) -> None:
        _finite("Constant", value=self.value)

    def numbers(self) -> tuple[int, float, float, int]:
        """Kind, the two numbers of the kernel, seed."""
        return CONSTANT, float(self.value), 0.0, 0


@refused_in_words
@dataclass(frozen=True, slots=True)
class Uniform:
    """Values are even in [low, high), in steps of (high - low) / 2**24."""

    low: float
    high: float
    seed: int = 0

    def __post_init__(self) -> None:
        _finite("Uniform", low=self.low, high=self.high)
        _seed("Uniform", self.seed)
        if not self.low <= self.high:
            raise UsageError("Uniform takes low <= high", low=self.low, high=self.high)

    def numbers(self) -> tuple[int, float, float, int]:
        """Kind, the two numbers of the kernel, seed."""
        return UNIFORM, float(self.low), (float(self.high) - float(self.low)) / (1 << 24), self.seed


@refused_in_words
@dataclass(frozen=True, slots=True)
class Normal:
    """Values are near normal (see the module) with deviation `std` >= 0 around `mean`."""

    std: float
    mean: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _finite("Normal", std=self.std, mean=self.mean)
        _seed("Normal", self.seed)
        if self.std < 0:
            raise UsageError("Normal takes std >= 0", std=self.std)

    def numbers(self) -> tuple[int, float, float, int]:
        """Kind, the two numbers of the kernel, seed."""
        return NORMAL, float(self.mean), float(self.std) / NORMAL_DEVIATION, self.seed


InitSpec: TypeAlias = Zeros | Constant | Uniform | Normal


def to_message(spec: InitSpec) -> control_pb2.Init:
    """The message of `spec`."""
    match spec:
        case Zeros():
            return control_pb2.Init(kind="zeros")
        case Constant(value):
            return control_pb2.Init(kind="constant", a=value)
        case Uniform(low, high, seed):
            return control_pb2.Init(kind="uniform", a=low, b=high, seed=seed)
        case Normal(std, mean, seed):
            return control_pb2.Init(kind="normal", a=std, b=mean, seed=seed)


def from_message(message: control_pb2.Init) -> InitSpec:
    """Read what `to_message` wrote.

    Raises:
        ProtocolError: no such initialiser, or values that it may not have.
    """
    try:
        match message.kind:
            case "zeros":
                return Zeros()
            case "constant":
                return Constant(message.a)
            case "uniform":
                return Uniform(message.a, message.b, message.seed)
            case "normal":
                return Normal(message.a, message.b, message.seed)
    except UsageError as cause:
        raise ProtocolError("an initialiser holds values that none may have", reason=str(cause)) from cause
    raise ProtocolError("an initialiser is not known", kind=message.kind[:64])


def _finite(name: str, **values: float) -> None:
    for field, value in values.items():
        if not is_number(value) or not math.isfinite(value):
            raise UsageError(f"{name} takes a finite {field}", **{field: value}, next_move=f"Change {field}.")


def _seed(name: str, seed: int) -> None:
    if type(seed) is not int or not 0 <= seed < 1 << 64:
        raise UsageError(f"{name} takes a seed of 0 to 2**64 - 1", seed=seed)
