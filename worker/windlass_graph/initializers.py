"""First values of parameters: `wl.init`.

Invariant: the values are determined by the seed, the parameter's structural name and the initializer, by nothing else:
neither the order in which parameters are made nor the number of devices changes them. An initializer is immutable.

The specs that sparse tables take (Zeros, Constant, Uniform, Normal of `windlass_proto.init_specs`) serve here too. The
engine knows nothing of tables, so it takes them by their fields; the bits differ from a table's, whose generator is
that of its servers.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from windlass_proto.arguments import did_you_mean, is_number, refused_in_words
from windlass_proto.errors import UsageError

Values: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

__all__ = ["MSRA", "Bilinear", "Initializer", "LSTMBias", "Mixed", "One", "Orthogonal", "Xavier"]


@runtime_checkable
class Drawing(Protocol):
    """An initializer of this module, or a user's."""

    def draw(self, name: str, shape: Shape, random: np.random.Generator) -> Values:
        """Values of that shape for the parameter of that structural name."""


Initializer: TypeAlias = Any
"""A `Drawing`, or a table's spec: an object with `value`, with `low` and `high`, with `std` and `mean`, or `Zeros`."""

_FACTOR_TYPES: Final = ("avg", "in", "out")
_DISTRIBUTIONS: Final = ("uniform", "gaussian")


def fans(shape: Shape, name: str) -> tuple[float, float]:
    """How many inputs reach one output and how many outputs one input does, of a weight (out, in, *kernel).

    Raises:
        UsageError: the shape has fewer than two axes.
    """
    if len(shape) < 2:
        raise UsageError(
            "an initializer that scales by fan-in and fan-out needs a weight of two axes or more",
            next_move="Give this parameter an initializer of its own, such as wl.init.Zeros().",
            parameter=name or "unnamed",
            shape=shape,
        )
    field_size = math.prod(shape[2:])
    return shape[1] * field_size, shape[0] * field_size


@refused_in_words
@dataclass(frozen=True, slots=True)
class Xavier:
    """Scaled so that the variance of activations and gradients stays about equal from layer to layer.

        scale = sqrt(magnitude / factor),   factor = (fan_in + fan_out) / 2, fan_in or fan_out
        uniform in [-scale, scale), or normal of deviation scale

    With uniform, avg and magnitude 3 it is the "normalized initialization" of Glorot and Bengio, Understanding the
    difficulty of training deep feedforward neural networks, AISTATS 2010, equation 16.

    Args:
        rnd_type: "uniform" or "gaussian".
        factor_type: "avg", "in" or "out".
        magnitude: see above, above 0.
        seed: draws other values of the same kind.
    """

    rnd_type: str = "uniform"
    factor_type: str = "avg"
    magnitude: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("rnd_type", self.rnd_type, _DISTRIBUTIONS)
        _one_of("factor_type", self.factor_type, _FACTOR_TYPES)
        _positive("magnitude", self.magnitude)
        whole_seed(self.seed)

    def draw(self, name: str, shape: Shape, random: np.random.Generator) -> Values:
        fan_in, fan_out = fans(shape, name)
        factor = {"avg": (fan_in + fan_out) / 2, "in": fan_in, "out": fan_out}[self.factor_type]
        scale = math.sqrt(self.magnitude / factor) if factor else 0.0
        if self.rnd_type == "gaussian":
            return random.standard_normal(shape, np.float32) * np.float32(scale)
        return (random.random(shape, np.float32) * 2 - 1) * np.float32(scale)


@refused_in_words
@dataclass(frozen=True, slots=True)
class MSRA:
    """For layers before a leaky rectifier of this slope: normal of deviation sqrt(2 / ((1 + slope^2) fan)).

    Source: He et al., Delving deep into rectifiers, ICCV 2015, equations 10 and 14. MXNet's default slope is .25,
    that of its PReLU; it is kept.

    Args:
        factor_type: the fan: "in" keeps the variance of activations, "out" that of gradients, "avg" their mean.
        slope: of the rectifier below 0; 0 for a plain one.
        seed: draws other values of the same kind.
    """

    factor_type: str = "avg"
    slope: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("factor_type", self.factor_type, _FACTOR_TYPES)
        whole_seed(self.seed)

    def draw(self, name: str, shape: Shape, random: np.random.Generator) -> Values:
        like = Xavier("gaussian", self.factor_type, 2 / (1 + self.slope**2))
        return like.draw(name, shape, random)


@refused_in_words
@dataclass(frozen=True, slots=True)
class Orthogonal:
    """A random matrix with orthonormal rows or columns, whichever are fewer, times `scale`; later axes are one.

    Source: Saxe, McClelland and Ganguli, Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks, ICLR 2014, section 3; made by QR with the signs of R's diagonal, which makes it uniform (Mezzadri 2007).
    """

    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _positive("scale", self.scale)
        whole_seed(self.seed)

    def draw(self, name: str, shape: Shape, random: np.random.Generator) -> Values:
        fans(shape, name)
        rows, columns = shape[0], math.prod(shape[1:])
        tall = random.standard_normal((max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(tall)
        q = q * np.sign(np.diag(r))
        return (self.scale * (q if rows >= columns else q.T)).reshape(shape)


@refused_in_words
@dataclass(frozen=True, slots=True)
class Bilinear:
    """Kernels of a transposed convolution that interpolate bilinearly, the same for every pair of channels.

    Source: Long, Shelhamer and Darrell, Fully convolutional networks, CVPR 2015, section 3.3.
    """

    def draw(self, name: str, shape: Shape, random: np.random.Generator) -> Values:
        if len(shape) < 3:
            raise UsageError("Bilinear fills the kernels of a convolution", parameter=name or "unnamed", shape=shape)
        kernel = np.ones((), np.float64)
        for size in shape[2:]:
            factor = math.ceil(size / 2)
            centre = (2 * factor - 1 - factor % 2) / (2 * factor)
            ramp = 1 - np.abs(np.arange(size) / factor - centre)
            kernel = np.multiply.outer(kernel, ramp)
        return np.broadcast_to(kernel, shape)


@refused_in_words
@dataclass(frozen=True, slots=True)
class LSTMBias:
    """Zero but for the forget gates, in the order of gates input, forget, cell, output.

    Source: Jozefowicz, Zaremba and Sutskever, An empirical exploration of recurrent network architectures, ICML 2015.
    """

    forget_bias: float = 1.0

    def draw(self, name: str, shape: Shape, random: np.random.Generator) -> Values:
        if len(shape) != 1 or shape[0] % 4:
            raise UsageError("LSTMBias fills one vector of four gates", parameter=name or "unnamed", shape=shape)
        found = np.zeros(shape)
        hidden = shape[0] // 4
        found[hidden : 2 * hidden] = self.forget_bias
        return found


@refused_in_words
@dataclass(frozen=True, slots=True)
class One:
    """Every value is 1."""

    def draw(self, name: str, shape: Shape, random: np.random.Generator) -> Values:
        return np.ones(shape)


@refused_in_words
@dataclass(frozen=True, slots=True)
class Mixed:
    """One initializer for each pattern of names; the first pattern that fits is taken.

        Mixed({"*bias": Zeros(), "embed.*": Normal(0.02), "*": Xavier()})

    Patterns are those of fnmatch, as everywhere: `*` stands for anything, and case counts.
    """

    by_pattern: Mapping[str, Initializer] = field(hash=False)

    def __post_init__(self) -> None:
        if not self.by_pattern:
            raise UsageError("Mixed takes at least one pattern", next_move='End with "*" for all others.')
        for pattern, init in self.by_pattern.items():
            resolved(init, pattern)

    def draw(self, name: str, shape: Shape, random: np.random.Generator) -> Values:
        for pattern, init in self.by_pattern.items():
            if fnmatch.fnmatchcase(name, pattern):
                return _values(resolved(init), name, shape, random)
        raise UsageError(
            "no pattern of Mixed fits a parameter",
            next_move='End with "*" for all others.',
            parameter=name or "unnamed",
            patterns=", ".join(self.by_pattern),
        )


@dataclass(frozen=True, slots=True)
class _Zero:
    value: float = 0.0


_BY_NAME: Final[Mapping[str, Callable[[], Initializer]]] = {
    "zeros": _Zero,
    "ones": One,
    "xavier": Xavier,
    "msra": MSRA,
    "orthogonal": Orthogonal,
    "bilinear": Bilinear,
}


def resolved(init: Initializer | str, of: str = "") -> Initializer:
    """The initializer meant by an object, or by a name such as "zeros".

    Raises:
        UsageError: it is none.
    """
    if isinstance(init, str):
        found = _BY_NAME.get(init.lower())
        if found is None:
            raise UsageError(f"there is no initializer {init!r}", next_move=did_you_mean(init, _BY_NAME))
        return found()
    if isinstance(init, Drawing) and not isinstance(init, type):
        return init
    if _table_kind(init):
        return init
    raise UsageError(
        "this is no initializer",
        next_move="Use one of wl.init, or an object with draw(name, shape, random).",
        got=init.__name__ + " (the class; call it)" if isinstance(init, type) else type(init).__name__,
        **({"of": of} if of else {}),
    )


def _table_kind(init: Any) -> str:
    """Which of a table's specs this is, by its fields."""
    if isinstance(init, type):
        return ""
    if hasattr(init, "std") and hasattr(init, "mean"):
        return "normal"
    if hasattr(init, "low") and hasattr(init, "high"):
        return "uniform"
    if hasattr(init, "value"):
        return "constant"
    return "zeros" if type(init).__name__ == "Zeros" else ""


def _values(init: Initializer, name: str, shape: Shape, random: np.random.Generator) -> Values:
    if isinstance(init, Drawing):
        return init.draw(name, shape, random)
    kind = _table_kind(init)
    if kind == "normal":
        return random.standard_normal(shape, np.float32) * np.float32(init.std) + np.float32(init.mean)
    if kind == "uniform":
        return random.random(shape, np.float32) * np.float32(init.high - init.low) + np.float32(init.low)
    return np.full(shape, init.value if kind == "constant" else 0.0)


def drawn(init: Initializer, name: str, shape: Shape, dtype: str, seed: int) -> Values:
    """First values of the parameter of that structural name.

    Raises:
        UsageError: the initializer gives another shape.
    """
    digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    words = (seed, int(getattr(init, "seed", 0)), digest)
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
    values = np.asarray(_values(init, name, shape, random))
    if values.shape != shape:
        raise UsageError(
            "an initializer gave another shape than its parameter's",
            parameter=name or "unnamed",
            expected=shape,
            got=values.shape,
        )
    return np.ascontiguousarray(values, dtype)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"this is no {name}", next_move=did_you_mean(str(value), known), got=value)


def _positive(name: str, value: float) -> None:
    if not is_number(value) or not 0 < value < math.inf:
        raise UsageError(f"{name} is a number above 0", got=value)


def whole_seed(seed: int) -> None:
    """Refuse what is no seed."""
    if type(seed) is not int or not 0 <= seed < 1 << 64:
        raise UsageError("a seed is 0 to 2**64 - 1", seed=seed)
