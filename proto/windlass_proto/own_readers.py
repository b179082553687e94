"""Own readers as values: a function of an installed package that servers run on what they hold, asked for by name.

As with own rules, the code is never sent: a package declares a reader as an entry point of the group
`windlass.readers`, whoever runs a server puts its name on that server's allow-list, and each server says at join which
it has, in which version.

    request   the payload of a READ entry: the reader's name and version, how long an answer may be, bytes for it
    answer    u64 length, the bytes, zeros up to the length that was allowed

Invariant: a `Reading` that exists is well-formed; what its bytes mean is the reader's own affair.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from windlass_proto import arguments, limits, own_rules
from windlass_proto.errors import ProtocolError, UsageError, WindlassError
from windlass_proto.gen import control_pb2

ENTRY_POINTS: Final = "windlass.readers"
"""The group of entry points in which packages declare readers."""

REQUEST_BYTES_MAX: Final = limits.MIB
ANSWER_BYTES_MAX: Final = 16 * limits.MIB
INSTALLED_MAX: Final = 64

_HEAD: Final = struct.Struct("<HHI")
_LENGTH: Final = struct.Struct("<Q")


class InstalledReader(NamedTuple):
    """A reader that a server may run, and the version of its package."""

    name: str
    version: str


class Reading(NamedTuple):
    """What a server is asked: reader and version ("" is any), bytes that an answer may have, and the request."""

    name: str
    version: str
    answer_bytes: int
    request: bytes


def to_bytes(reading: Reading) -> bytes:
    """The payload of an entry."""
    name, version = reading.name.encode(), reading.version.encode()
    return _HEAD.pack(len(name), len(version), reading.answer_bytes) + name + version + reading.request


def from_bytes_untrusted(raw: bytes) -> Reading:
    """Read a payload.

    Raises:
        ProtocolError: it is none.
    """
    try:
        name_bytes, version_bytes, answer_bytes = _HEAD.unpack_from(raw)
        at, end = _HEAD.size + name_bytes, _HEAD.size + name_bytes + version_bytes
        name, version = raw[_HEAD.size : at].decode(), raw[at:end].decode()
        check(name, version, raw[end:], answer_bytes)
        if end > len(raw):
            raise ValueError("it is too short")
    except (struct.error, ValueError, WindlassError) as cause:
        raise ProtocolError("a reading cannot be read", reason=str(cause)[:200]) from cause
    return Reading(name, version, answer_bytes, raw[end:])


def check(name: object, version: object, request: object, answer_bytes: object) -> None:
    """Can this be asked?

    Raises:
        UsageError: not so.
    """
    own_rules.check_name(name)
    if not isinstance(version, str):
        raise UsageError("the version of a reader is not a string", type=type(version).__name__)
    own_rules.parse_allowed(f"{name}=={version}" if version else str(name))
    if not isinstance(request, bytes | bytearray | memoryview):
        raise UsageError("a reader's request is not bytes", type=type(request).__name__, next_move="Encode it.")
    if len(request) > REQUEST_BYTES_MAX:
        raise UsageError("a reader's request is too long", bytes=len(request), bytes_max=REQUEST_BYTES_MAX)
    if type(answer_bytes) is not int or not 0 < answer_bytes <= ANSWER_BYTES_MAX:
        raise UsageError("answer_bytes is out of range", got=answer_bytes, allowed=f"1..{ANSWER_BYTES_MAX}")


def answer_room(answer_bytes: int) -> int:
    """The length of what travels back."""
    return _LENGTH.size + answer_bytes


def pack_answer(answer: bytes, room: Any) -> None:
    """Write an answer into `room`, zeros after it."""
    view = memoryview(room).cast("B")
    end = _LENGTH.size + len(answer)
    view[: _LENGTH.size] = _LENGTH.pack(len(answer))
    view[_LENGTH.size : end] = answer
    view[end:] = bytes(len(view) - end)


def unpack_answer_untrusted(raw: bytes | bytearray) -> bytes:
    """What `pack_answer` was given.

    Raises:
        ProtocolError: its length is none.
    """
    (length,) = _LENGTH.unpack_from(raw)
    if length > len(raw) - _LENGTH.size:
        raise ProtocolError("a reader's answer is longer than its room", bytes=length, room=len(raw))
    return bytes(raw[_LENGTH.size : _LENGTH.size + length])


def version_on_all(name: str, version: str, servers: Mapping[str, tuple[InstalledReader, ...]]) -> str:
    """The one version in which all `servers` have the reader `name`; `version`: that which is asked for, "" any.

    Raises:
        UsageError: one has it not, or in another version; it is named, with both.
    """
    wanted, of = version, "the call"
    for server, readers in servers.items():
        there = dict(readers).get(name)
        if there is None:
            raise UsageError(
                "a server does not have a reader",
                reader=name,
                server=server,
                allowed_there=", ".join(f"{each.name}=={each.version}" for each in readers) or "none",
                next_move=arguments.did_you_mean(name, dict(readers))
                if readers
                else f"Install its package there and start the server with --allow-reader {name}.",
            )
        if wanted and there != wanted:
            raise UsageError(
                "a server has another version of a reader",
                reader=name,
                server=server,
                version_there=there,
                version_asked=wanted,
                asked_by=of,
                next_move="Install the same version of its package on every server.",
            )
        if not wanted:
            wanted, of = there, server
    return wanted


def installed_message(reader: InstalledReader) -> control_pb2.InstalledReader:
    """What a server says at join."""
    return control_pb2.InstalledReader(name=reader.name, version=reader.version)


def installed_untrusted(messages: Any) -> tuple[InstalledReader, ...]:
    """What a server said at join.

    Raises:
        ProtocolError: it is too much, or no readers.
    """
    if len(messages) > INSTALLED_MAX:
        raise ProtocolError("a server has too many readers", readers=len(messages), readers_max=INSTALLED_MAX)
    try:
        for message in messages:
            check(message.name, message.version, b"", 1)
    except UsageError as cause:
        raise ProtocolError("a server's reader has a name or version that is none", reason=str(cause)) from cause
    return tuple(InstalledReader(message.name, message.version) for message in messages)
