"""The errors of windlass, cut by whose move is next.

Invariant: an error is fields (a fact, named values, a next move), and its text is made of them, so that the same class
with the same fields arrives on the other side of a wire. `to_wire` and `from_wire_untrusted` are that crossing.

Prior art: trio's errors, which are cut by what the caller can do about them.
"""

from __future__ import annotations

import json
from typing import Final

_WIRE_TEXT_BYTES_MAX: Final = 8192


class WindlassError(Exception):
    """Something windlass could not do: the fact, the values it is about, and what to do next.

    Args:
        fact: what happened, one clause without a final full stop.
        next_move: what the reader can do about it, one sentence.
        values: the values that disagree, by name; shown in the text in the order given.
    """

    def __init__(self, fact: str, *, next_move: str = "", **values: object) -> None:
        self.fact = fact
        self.next_move = next_move
        self.values = values
        super().__init__(fact)

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value}" for name, value in self.values.items())
        text = f"{self.fact} ({shown})" if shown else self.fact
        return f"{text}. {self.next_move}" if self.next_move else text


class UsageError(WindlassError):
    """The caller's bug: change the call."""


class FencedError(WindlassError):
    """The routing was older than the range's owner: refresh it and send again."""


class UnavailableError(WindlassError):
    """A peer did not answer in time or is gone: back off, then try again."""


class ClosedError(WindlassError):
    """The object was closed by its user, or its process forked."""


class ProtocolError(WindlassError):
    """The peer sent what the protocol does not allow: the link is closed."""


class CorruptionError(WindlassError):
    """Bytes are not what was written: never retried."""


class InvariantError(WindlassError):
    """A bug of windlass: the operation stops before it can do harm."""


_CLASSES: Final = {
    error.__name__: error
    for error in (
        UsageError,
        FencedError,
        UnavailableError,
        ClosedError,
        ProtocolError,
        CorruptionError,
        InvariantError,
    )
}


def to_wire(error: WindlassError) -> bytes:
    """Encode `error` as JSON in ASCII, of at most 8 KiB; values become text, and what is too long loses its end."""
    characters = _WIRE_TEXT_BYTES_MAX // 4
    while True:
        record = {
            "class": type(error).__name__,
            "fact": error.fact[:characters],
            "next_move": error.next_move[: characters // 2],
            "values": {name[:64]: str(value)[: characters // 6] for name, value in list(error.values.items())[:12]},
        }
        raw = json.dumps(record).encode()
        if len(raw) <= _WIRE_TEXT_BYTES_MAX:
            return raw
        characters //= 2  # one character may take 12 bytes


def from_wire_untrusted(raw: bytes) -> WindlassError:
    """Decode what `to_wire` wrote.

    Raises:
        ProtocolError: if `raw` is not such a record.
    """
    if len(raw) > _WIRE_TEXT_BYTES_MAX:
        raise ProtocolError("an error record is too long", bytes=len(raw), bytes_max=_WIRE_TEXT_BYTES_MAX)
    try:
        record = json.loads(raw)
        cls = _CLASSES[record["class"]]
        fact, next_move, values = record["fact"], record["next_move"], record["values"]
        if not (isinstance(fact, str) and isinstance(next_move, str) and isinstance(values, dict)):
            raise TypeError("fields of an error record have other types")
        return cls(fact, next_move=next_move, **{str(name): str(value) for name, value in values.items()})
    except (ValueError, KeyError, TypeError, RecursionError) as cause:
        raise ProtocolError("an error record could not be read", reason=str(cause)[:200]) from cause
