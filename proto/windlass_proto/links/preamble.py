"""The preamble: the first bytes of every data link prove that both ends know the cluster's token.

    client -> server   "WLP1" protocol min, max | session (16) | nonce (32) | flags                     64 bytes
    server -> client   "WLP1" protocol | nonce (32) | HMAC("server", all before)                        96 bytes
    client -> server   HMAC("client", all before)                                                       32 bytes
    server -> client   "WLOK" or "WLNO" and an error record                                             <= 8 KiB

HMAC-SHA256 over both nonces under a key derived from token and cluster id; neither nonce is chosen by one side alone,
so a recorded preamble cannot be replayed. It authenticates the ends; integrity and secrecy of what follows are TLS's
part.

Invariant: before a peer has proven the token it has made us hold at most `limits.PREAUTH_BYTES_MAX` bytes for at most
`limits.HANDSHAKE_S` seconds. A refused peer of right token is told why; one of wrong token is told only that.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

from windlass_proto import errors, limits
from windlass_proto.errors import ProtocolError, UnavailableError, UsageError, WindlassError

_MAGIC: Final = b"WLP1"
_HELLO: Final = struct.Struct("<4sHH16s32sQ")
_CHALLENGE: Final = struct.Struct("<4sHxx32s24x32s")
_REPLY: Final = struct.Struct("<4sI")

assert _HELLO.size == 64
assert _CHALLENGE.size == 96
assert _HELLO.size + 32 <= limits.PREAUTH_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client says before it is known."""

    session: bytes
    flags: int
    protocol: int


def link_key(token: bytes, cluster_id: str) -> bytes:
    """The key of every data link of a cluster (32 bytes)."""
    return hmac.digest(token, b"windlass data link\0" + cluster_id.encode(), "sha256")


def greet(sock: socket.socket, key: bytes, session: bytes, *, flags: int = 0, timeout_s: float) -> None:
    """Client side. The socket blocks with a deadline meanwhile and is left non-blocking.

    Raises:
        UsageError: the server has another token, or refused this session in words.
        UnavailableError: no answer in time.
    """
    deadline = time.monotonic() + timeout_s
    nonce = secrets.token_bytes(32)
    hello = _HELLO.pack(_MAGIC, limits.PROTOCOL_MIN, limits.PROTOCOL_MAX, session, nonce, flags)
    try:
        _send(sock, hello, deadline)
        challenge = _receive(sock, _CHALLENGE.size, deadline)
        magic, _, _, proof = _CHALLENGE.unpack(challenge)
        if magic != _MAGIC:
            raise ProtocolError("the peer is not a windlass server", got=magic.hex(), expected=_MAGIC.hex())
        if not hmac.compare_digest(proof, hmac.digest(key, b"server" + hello + challenge[:64], "sha256")):
            raise UsageError(
                "the server does not know this cluster's token",
                next_move="Give every member the same token file.",
            )
        _send(sock, hmac.digest(key, b"client" + hello + challenge, "sha256"), deadline)
        verdict, size = _REPLY.unpack(_receive(sock, _REPLY.size, deadline))
        if verdict != b"WLOK":
            if verdict != b"WLNO" or size > 8192:
                raise ProtocolError("the server's verdict cannot be read", got=verdict.hex())
            raise errors.from_wire_untrusted(_receive(sock, size, deadline))
    except OSError as cause:
        raise UnavailableError(
            "the server did not complete the preamble", reason=str(cause) or type(cause).__name__
        ) from cause
    sock.setblocking(False)


def receive_hello_untrusted(sock: socket.socket, key: bytes) -> Hello:
    """Server side, first part: learn who asks and that they know the token.

    Raises:
        ProtocolError: wrong bytes, wrong token, or too slow; close the socket.
    """
    deadline = time.monotonic() + limits.HANDSHAKE_S
    try:
        hello = _receive(sock, _HELLO.size, deadline)
        magic, low, high, session, _, flags = _HELLO.unpack(hello)
        if magic != _MAGIC:
            raise ProtocolError("a peer did not begin with the preamble", got=magic.hex(), expected=_MAGIC.hex())
        protocol = min(high, limits.PROTOCOL_MAX)
        head = _CHALLENGE.pack(_MAGIC, protocol, secrets.token_bytes(32), bytes(32))[:64]
        challenge = head + hmac.digest(key, b"server" + hello + head, "sha256")
        _send(sock, challenge, deadline)
        proof = _receive(sock, 32, deadline)
        if not hmac.compare_digest(proof, hmac.digest(key, b"client" + hello + challenge, "sha256")):
            refuse(sock, UsageError("the server does not accept this token", next_move="Use the cluster's token file."))
            raise ProtocolError("a peer does not know the token")
        if protocol < max(low, limits.PROTOCOL_MIN):
            refusal = UsageError(
                "no common protocol version",
                client=f"{low}..{high}",
                server=f"{limits.PROTOCOL_MIN}..{limits.PROTOCOL_MAX}",
                next_move="Install the same release of windlass on both.",
            )
            refuse(sock, refusal)
            raise ProtocolError("no common protocol version", client=f"{low}..{high}")
    except OSError as cause:
        raise ProtocolError("a peer did not complete the preamble", reason=str(cause)) from cause
    return Hello(session, flags, protocol)


def accept(sock: socket.socket) -> None:
    """Server side, last part: the link stands. The socket is left non-blocking."""
    try:
        sock.sendall(_REPLY.pack(b"WLOK", 0))
    except OSError as cause:
        raise ProtocolError("a peer left during the preamble", reason=str(cause)) from cause
    sock.setblocking(False)


def refuse(sock: socket.socket, error: WindlassError) -> None:
    """Server side: say why not. The caller closes the socket."""
    record = errors.to_wire(error)
    try:
        sock.settimeout(limits.HANDSHAKE_S)
        sock.sendall(_REPLY.pack(b"WLNO", len(record)) + record)
    except OSError:
        return  # the peer is gone; there is nobody to tell


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the preamble took too long")
    return left


def _send(sock: socket.socket, raw: bytes, deadline: float) -> None:
    sock.settimeout(_left(deadline))
    sock.sendall(raw)


def _receive(sock: socket.socket, size: int, deadline: float) -> bytes:
    """Exactly `size` bytes: never more, so that no byte of the first frame is taken."""
    got = b""
    while len(got) < size:
        sock.settimeout(_left(deadline))
        part = sock.recv(size - len(got))
        if not part:
            raise ConnectionError("the peer closed the link during the preamble")
        got += part
    return got
