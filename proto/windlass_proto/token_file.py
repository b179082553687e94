"""The cluster's token: a secret in a file that only its owner can read.

Invariant: a token is never taken from a file that others could read, never shown, and never put into arguments.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from windlass_proto.errors import UsageError

_TOKEN_BYTES_MAX = 4096


def read_token(path: Path) -> bytes:
    """The token in `path`, without surrounding white space.

    Raises:
        UsageError: the file cannot be read, is empty, or can be read by others than its owner.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(_TOKEN_BYTES_MAX + 1).strip()
    except OSError as cause:
        raise UsageError(
            "the token file cannot be read",
            path=path,
            reason=cause.strerror,
            next_move="Check $WINDLASS_TOKEN_FILE or --token-file.",
        ) from cause
    if mode & 0o077:
        raise UsageError(
            "the token file can be read by others than its owner",
            path=path,
            mode=oct(mode & 0o777),
            next_move=f"Run: chmod 600 {path}",
        )
    if not 0 < len(token) <= _TOKEN_BYTES_MAX:
        raise UsageError(
            "the token file is empty or too long",
            path=path,
            bytes=len(token),
            bytes_max=_TOKEN_BYTES_MAX,
            next_move="Write 32 random bytes, base64, into it.",
        )
    return token


def write_token(path: Path) -> bytes:
    """Make a fresh token and write it to `path`, mode 0600; the file must not exist."""
    token = secrets.token_urlsafe(32).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(token + b"\n")
    return token
