"""Codecs as they are declared: how gradients, or weights on their way down, are made shorter.

A codec is a name with numbers, never code; `windlass_proto.codecs` has its kernels. It works on one segment (a tensor's
part of a block) at a time, so what arrives depends neither on the link nor on how a call was cut into frames.

`feedback`: what encoding loses is kept by the sender and added to its next gradient, which is what makes biased codecs
converge (Stich et al., NeurIPS 2018; Karimireddy et al., ICML 2019). A codec whose mean is the value itself needs none.
`exact`: it is a rounding, whose result depends on the value alone and needs no state at either end; so it may be used
on the way down in any mode; any other brings weights down as deltas (`weight_deltas`), in modes with steps.

Invariant: a spec is a value; equal specs encode equal values with equal seeds to equal bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from windlass_proto.arguments import refused_in_words
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import codecs_pb2

BLOCK_MIN: Final = 64
BLOCK_MAX: Final = 65_536


@refused_in_words
@dataclass(frozen=True, slots=True)
class Float16:
    """IEEE half precision, rounded to nearest even: 2 bytes a value. What exceeds 65,504 is cut to it."""

    feedback: ClassVar[bool] = True
    exact: ClassVar[bool] = True


@refused_in_words
@dataclass(frozen=True, slots=True)
class BFloat16:
    """The upper half of a float32, rounded to nearest even: 2 bytes a value, float32's range."""

    feedback: ClassVar[bool] = True
    exact: ClassVar[bool] = True


@refused_in_words
@dataclass(frozen=True, slots=True)
class Int8:
    """Values of a block as multiples of max|x| / 127, rounded to nearest even: 1 byte a value, 4 a block.

    Dettmers, "8-Bit Approximations for Parallelism in Deep Learning" (ICLR 2016), with one scale a block.
    """

    block: int = 256
    feedback: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_block("Int8", self.block)


@refused_in_words
@dataclass(frozen=True, slots=True)
class OneBit:
    """Signs, times the mean of |x| over a block: 1 bit a value, 4 bytes a block.

    EF-signSGD of Karimireddy et al. (ICML 2019), with one scale a block; 1-bit SGD is Seide et al. (Interspeech 2014).
    """

    block: int = 1024
    feedback: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_block("OneBit", self.block)


@refused_in_words
@dataclass(frozen=True, slots=True)
class TwoBit:
    """threshold where x >= threshold, -threshold where x <= -threshold, else 0: 2 bits a value.

    x is the gradient with what was kept back, so small gradients travel once they have added up. Strom (Interspeech
    2015); the same formula and codes for +, -, 0 as Apache MXNet's "2bit", whose default threshold is 0.5. One step
    moves a value by at most `threshold`: take about the size of a large gradient.
    """

    threshold: float
    feedback: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_number("TwoBit", "threshold", self.threshold, 1e-30, 1e30)


@refused_in_words
@dataclass(frozen=True, slots=True)
class TopK:
    """The `ratio` of values that are largest in magnitude, ties by place, with their places: 8 bytes each.

    Of a segment at least one. Aji and Heafield (EMNLP 2017); Stich et al. (NeurIPS 2018).
    """

    ratio: float = 0.01
    feedback: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_number("TopK", "ratio", self.ratio, 1e-6, 0.5)


@refused_in_words
@dataclass(frozen=True, slots=True)
class RandomK:
    """One value from each of ratio * n equal runs, at a place that a seed says: 4 bytes each and 8 for the seed.

    Of a segment at least one. Stich et al. (NeurIPS 2018, random-k), with strata so that places are in order.
    """

    ratio: float = 0.01
    seed: int = 0
    feedback: ClassVar[bool] = True
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_number("RandomK", "ratio", self.ratio, 1e-6, 0.5)
        _check_seed("RandomK", self.seed)


@refused_in_words
@dataclass(frozen=True, slots=True)
class Dithering:
    """|x| / max|x| of a block rounded up or down by chance to a level, so that its mean is x: `bits` a value.

    Levels are 0, 1/s, ..., 1 (QSGD of Alistarh et al., NeurIPS 2017, with the maximum for the norm), or with `natural`
    0 and the powers of two up to 1 (Horvath et al., MSML 2022); s is 7 for 4 bits and 127 for 8.
    """

    bits: int = 4
    block: int = 256
    natural: bool = False
    seed: int = 0
    feedback: ClassVar[bool] = False
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in (4, 8):
            raise UsageError("Dithering takes 4 or 8 bits", bits=self.bits, next_move="Change bits.")
        if not isinstance(self.natural, bool):
            raise UsageError("Dithering takes natural=True or False", natural=repr(self.natural)[:80])
        _check_block("Dithering", self.block)
        _check_seed("Dithering", self.seed)

    @property
    def levels(self) -> int:
        """s: how many levels there are beside 0."""
        return (1 << (self.bits - 1)) - 1


CodecSpec: TypeAlias = Float16 | BFloat16 | Int8 | OneBit | TwoBit | TopK | RandomK | Dithering

CODECS: Final[dict[str, Any]] = {
    "float16": Float16,
    "bfloat16": BFloat16,
    "int8": Int8,
    "one_bit": OneBit,
    "two_bit": TwoBit,
    "top_k": TopK,
    "random_k": RandomK,
    "dithering": Dithering,
}
"""Field of the message `Codec` -> class."""

_FIELDS: Final = {cls: name for name, cls in CODECS.items()}


def to_message(spec: CodecSpec | None) -> codecs_pb2.Codec | None:
    """The message of `spec`; None for none."""
    if spec is None:
        return None
    name = _FIELDS[type(spec)]
    made: Callable[..., Message] = getattr(codecs_pb2, type(spec).__name__)
    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    return codecs_pb2.Codec(**{name: made(**values)})  # type: ignore[arg-type]


def from_message(message: codecs_pb2.Codec) -> CodecSpec:
    """Read what `to_message` wrote.

    Raises:
        ProtocolError: it is of a codec that is not known, or has values that none may have.
    """
    name = message.WhichOneof("codec")
    if name is None or not (all_known(message) and all_known(getattr(message, name))):
        raise ProtocolError("a codec is not known, or has numbers that are not", codec=name or "none")
    cls = CODECS[name]
    chosen = getattr(message, name)
    try:
        spec: CodecSpec = cls(**{field.name: getattr(chosen, field.name) for field in dataclasses.fields(cls)})
    except UsageError as cause:
        raise ProtocolError("a codec has values that none may have", reason=str(cause)) from cause
    return spec


def all_known(message: Message) -> bool:
    """Has this message no field that is unknown here? It might change what the sender means."""
    return len(UnknownFieldSet(message)) == 0


def _check_block(codec: str, block: object) -> None:
    if type(block) is not int or block & (block - 1) or not BLOCK_MIN <= block <= BLOCK_MAX:
        raise UsageError(
            f"{codec} takes a block that is a power of two from {BLOCK_MIN} to {BLOCK_MAX}",
            block=block,
            next_move="Pass block=256, for example.",
        )


def _check_number(codec: str, name: str, number: object, least: float, most: float) -> None:
    good = isinstance(number, int | float) and not isinstance(number, bool)
    if not good or not least <= float(number) <= most:  # type: ignore[arg-type]
        raise UsageError(
            f"{codec} takes a {name} from {least:g} to {most:g}", **{name: number}, next_move=f"Change {name}."
        )


def _check_seed(codec: str, seed: object) -> None:
    if type(seed) is not int or not 0 <= seed < 1 << 64:
        raise UsageError(f"{codec} takes a seed of 0 to 2**64 - 1", seed=seed)
