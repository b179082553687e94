"""The token's file: its owner's alone, made once, read whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from windlass_proto.errors import UsageError
from windlass_proto.token_file import read_token, write_token


def private(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    path.chmod(0o600)
    return path


def test_a_written_token_is_read_back_and_is_its_owners_alone(tmp_path: Path) -> None:
    token = write_token(tmp_path / "token")
    assert read_token(tmp_path / "token") == token
    assert len(token) >= 32
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600


def test_tokens_differ_and_none_is_overwritten(tmp_path: Path) -> None:
    first, second = write_token(tmp_path / "a"), write_token(tmp_path / "b")
    assert first != second
    with pytest.raises(FileExistsError):
        write_token(tmp_path / "a")
    assert read_token(tmp_path / "a") == first


def test_white_space_around_a_token_is_not_part_of_it(tmp_path: Path) -> None:
    assert read_token(private(tmp_path / "token", b" secret\r\n")) == b"secret"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_token_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "token", b"secret")
    path.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600"):
        read_token(path)


@pytest.mark.parametrize("raw", [b"", b" \n", b"x" * 4097])
def test_an_empty_or_endless_token_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(UsageError, match="empty or too long"):
        read_token(private(tmp_path / "token", raw))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read") as caught:
        read_token(tmp_path / "absent")
    assert caught.value.values["path"] == tmp_path / "absent"
    with pytest.raises(UsageError, match="cannot be read"):
        read_token(tmp_path)


def test_a_refusal_never_shows_the_token(tmp_path: Path) -> None:
    path = private(tmp_path / "token", b"secret")
    os.chmod(path, 0o644)
    with pytest.raises(UsageError) as caught:
        read_token(path)
    assert "secret" not in str(caught.value)
