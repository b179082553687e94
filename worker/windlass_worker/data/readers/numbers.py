"""Numbers in text, many at a time: where tokens begin and end, in which line they are, and what they are worth.

Tokens are found by comparing bytes. Plain decimals, which ids and most values are, are added up digit by digit over all
tokens at once; NumPy's parser, which is slower, reads the others in one call. So no Python runs per token, and where
something is wrong, the block is read again line by line, to say where.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import CorruptionError

_NEWLINE: Final = 10
_SPACE: Final = 32
_ZERO: Final = 48
_MINUS, _PLUS, _POINT = b"-+."
_DIGITS_MAX: Final = 15  # exact in a float64

Places: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of `text`: where each begins and ends, and the how manieth line with any it is in."""

    text: npt.NDArray[np.uint8]
    begins: Places
    ends: Places
    lines: Places

    @property
    def firsts(self) -> npt.NDArray[np.bool_]:
        """Which are the first ones of their lines."""
        found = np.ones(len(self.lines), bool)
        found[1:] = self.lines[1:] != self.lines[:-1]
        return found

    def before(self) -> npt.NDArray[np.uint8]:
        """The byte before each, a newline before the first."""
        return np.concatenate([[_NEWLINE], self.text]).astype(np.uint8)[self.begins]

    def after(self) -> npt.NDArray[np.uint8]:
        """The byte behind each, a newline behind the last."""
        return np.concatenate([self.text, [_NEWLINE]]).astype(np.uint8)[self.ends]


def tokens(block: bytes, separator: int) -> Tokens:
    """The tokens between white space and separators."""
    text = np.frombuffer(block, np.uint8)
    solid = np.zeros(len(text) + 2, np.int8)
    solid[1:-1] = (text > _SPACE) & (text != separator)
    edges = np.diff(solid)
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    newlines = _counted(text == _NEWLINE)[begins]
    lines = np.zeros(len(begins), np.int64)
    np.cumsum(newlines[1:] != newlines[:-1], out=lines[1:])
    return Tokens(text, begins, ends, lines)


def worth(found: Tokens) -> npt.NDArray[np.float64] | None:
    """The numbers that the tokens are, correctly rounded; None if one is none.

    A decimal of up to 15 digits is a whole number over a power of ten, both exact in a float64, so their quotient is
    the nearest one (W. D. Clinger, How to Read Floating Point Numbers Accurately, PLDI 1990).
    """
    text, ends = found.text, found.ends
    lead = text[found.begins]
    signed = (lead == _MINUS) | (lead == _PLUS)
    begins = found.begins + signed
    points = _counted(text == _POINT)
    pointed = points[ends] - points[begins]
    strange = _counted((text - np.uint8(_ZERO) > 9) & (text != _POINT))
    odd = strange[ends] - strange[begins]
    digits = ends - begins - pointed
    plain = (odd == 0) & (pointed <= 1) & (digits >= 1) & (digits <= _DIGITS_MAX)
    worths = _digits(text, begins, ends - begins, int((ends - begins)[plain].max(initial=0))).astype(np.float64)
    if points[-1]:
        with_point = np.flatnonzero(plain & (pointed == 1))
        behind = ends[with_point] - np.flatnonzero(text == _POINT)[points[begins[with_point]]] - 1
        worths[with_point] /= 10.0**behind
    np.negative(worths, out=worths, where=lead == _MINUS)
    if not plain.all():
        others = _other(found, ~plain)
        if others is None:
            return None
        worths[~plain] = others
    return worths


def _counted(which: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """How many of the bytes before each place are such ones."""
    counts = np.zeros(len(which) + 1, np.int32)
    np.cumsum(which, out=counts[1:])
    return counts


def _digits(text: npt.NDArray[np.uint8], begins: Places, lengths: Places, length_max: int) -> Places:
    """The digits of each token as one whole number; what is no digit is passed over."""
    values = np.zeros(len(begins), np.int64)
    last = len(text) - 1
    for at in range(length_max):
        digit = text[np.minimum(begins + at, last)] - np.uint8(_ZERO)
        values = np.where((at < lengths) & (digit <= 9), 10 * values + digit, values)
    return values


def _other(found: Tokens, which: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64] | None:
    """NumPy's reading of some tokens, cut out of the text with a space behind each."""
    begins, ends = found.begins[which], found.ends[which]
    inside = np.zeros(len(found.text) + 2, np.int8)
    inside[begins] += 1
    inside[ends + 1] -= 1
    kept = np.cumsum(inside[:-1], dtype=np.int8).astype(bool)
    text = np.append(found.text, _SPACE).astype(np.uint8)
    text[ends] = _SPACE
    return parsed(text[kept].tobytes(), len(begins))


def parsed(text: bytes, count: int) -> npt.NDArray[np.float64] | None:
    """The `count` numbers, separated by white space; None if there is anything else in `text`, or another count."""
    if not text.strip():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # how older releases of NumPy say that there is
        try:
            found = np.fromstring(text, np.float64, sep=" ")
        except (DeprecationWarning, ValueError):
            return None
    return found if len(found) == count else None


def refuse(file: Any, first_line: int, block: bytes, wrong: Callable[[bytes], tuple[str, str] | None]) -> NoReturn:
    """Raise for the first line that is `wrong`: a function of a line to what was expected and what was found."""
    for number, line in enumerate(block.split(b"\n"), first_line):
        said = wrong(line)
        if said is not None:
            expected, found = said
            raise CorruptionError(
                "a line is not what it should be", file=file, line=number, expected=expected, found=repr(found[:60])
            )
    raise CorruptionError("lines could not be read", file=file, line=first_line)


def is_number(token: bytes) -> bool:
    """Would the parser take it?"""
    return parsed(token.strip(), 1) is not None
