"""How the values of a group travel: codecs up and down, and what is done with gradients that are not finite.

Invariant: a transfer is checked against what it is for (`check`) where it is declared and again where it is read, so no
server holds one that it cannot carry out. The plain one has no bytes, so that old declarations read as before.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from google.protobuf.message import DecodeError

from windlass_proto import codec_specs
from windlass_proto.codec_specs import CodecSpec
from windlass_proto.consistency import Consistency, Mode
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import codecs_pb2


class Nonfinite(StrEnum):
    """What is done with a gradient that holds an infinity or a NaN.

    reject: it is not applied, its sender is told, the step goes on without it. zero: such values count as 0. clip:
    infinities count as large numbers, which the rule's clip_value cuts, NaN as 0. allow: nobody looks.
    """

    REJECT = "reject"
    ZERO = "zero"
    CLIP = "clip"
    ALLOW = "allow"


@dataclass(frozen=True, slots=True)
class Transfer:
    """See the module; None: values travel as they are."""

    up: CodecSpec | None = None
    down: CodecSpec | None = None
    nonfinite: Nonfinite = Nonfinite.REJECT

    @property
    def deltas(self) -> bool:
        """Do weights come down as deltas (`weight_deltas`)? Else, where they are encoded at all, each is rounded."""
        return self.down is not None and not self.down.exact

    def arguments(self) -> dict[str, object]:
        """What was given to declare it."""
        return {"codec": self.up, "codec_down": self.down, "nonfinite": self.nonfinite.value}

    def in_words(self) -> str:
        """For errors."""
        return ", ".join(f"{name}={value}" for name, value in self.arguments().items())


PLAIN: Final = Transfer()


def of(codec: object, codec_down: object, nonfinite: object) -> Transfer:
    """The transfer of a caller's arguments.

    Raises:
        UsageError: one is of another kind; the nearest is named.
    """
    for name, given in (("codec", codec), ("codec_down", codec_down)):
        if given is not None and type(given) not in codec_specs.CODECS.values():
            known = {cls.__name__.lower(): cls.__name__ for cls in codec_specs.CODECS.values()}
            asked = given.__name__ if isinstance(given, type) else str(given)
            near = difflib.get_close_matches(asked.lower().replace("_", ""), list(known), n=1, cutoff=0.4)
            example = known[near[0]] if near else "Int8"
            raise UsageError(
                f"{name} is not a codec",
                got=str(given)[:80],
                known=", ".join(known.values()),
                next_move=f"Pass {name}=wl.codec.{example}(...), an object of one of these.",
            )
    policies = [policy.value for policy in Nonfinite]
    if nonfinite not in policies:
        near = difflib.get_close_matches(str(nonfinite), policies, n=1, cutoff=0.1)
        raise UsageError(
            "nonfinite is not a policy",
            got=str(nonfinite)[:80],
            known=", ".join(policies),
            next_move=f"Pass nonfinite={near[0] if near else 'reject'!r}.",
        )
    return Transfer(codec, codec_down, Nonfinite(str(nonfinite)))  # type: ignore[arg-type]  # checked above


def check(transfer: Transfer, *, dtype: str, rule: Any) -> None:
    """Can tensors of `dtype` under `rule` travel so?

    Raises:
        UsageError: they cannot; what can is named.
    """
    for name, spec in (("codec", transfer.up), ("codec_down", transfer.down)):
        if spec is not None and dtype != "float32":
            raise UsageError(
                "codecs are for float32 tensors",
                dtype=dtype,
                **{name: spec},
                next_move="Declare float32 tensors, or leave the codec out: half types travel as halves already."
                if "16" in dtype
                else "Declare float32 tensors, or leave the codec out.",
            )
    if transfer.nonfinite is Nonfinite.CLIP and getattr(rule, "clip_value", None) is None:
        raise UsageError(
            "nonfinite='clip' needs a bound to clip to",
            rule=rule,
            next_move="Give the rule a clip_value, or pass nonfinite='zero'.",
        )


def check_mode(transfer: Transfer, consistency: Consistency) -> None:
    """Can weights travel so in this mode?

    Raises:
        UsageError: they come down as the changes of steps, which this mode does not have.
    """
    if transfer.deltas and consistency.mode is not Mode.BSP:
        raise UsageError(
            "such a codec brings weights down as what a step changed, and in this mode workers have no step in common",
            codec_down=transfer.down,
            consistency=consistency,
            next_move='Open the store with consistency="bsp", or use codec_down=wl.codec.Float16() or BFloat16().',
        )


def to_bytes(transfer: Transfer) -> bytes:
    """What travels of it; empty for the plain one."""
    if transfer == PLAIN:
        return b""
    message = codecs_pb2.Transfer(
        up=codec_specs.to_message(transfer.up),
        down=codec_specs.to_message(transfer.down),
        nonfinite=transfer.nonfinite.value,
    )
    return message.SerializeToString(deterministic=True)


def from_bytes_untrusted(raw: bytes) -> Transfer:
    """Read what `to_bytes` wrote.

    Raises:
        ProtocolError: it is not one.
    """
    if not raw:
        return PLAIN
    try:
        message = codecs_pb2.Transfer.FromString(raw)
    except DecodeError as cause:
        raise ProtocolError("a transfer cannot be read", reason=str(cause)[:200]) from cause
    if not codec_specs.all_known(message) or message.nonfinite not in [policy.value for policy in Nonfinite]:
        raise ProtocolError("a transfer holds what this release does not know", nonfinite=message.nonfinite[:64])
    return Transfer(
        codec_specs.from_message(message.up) if message.HasField("up") else None,
        codec_specs.from_message(message.down) if message.HasField("down") else None,
        Nonfinite(message.nonfinite),
    )
