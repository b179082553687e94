"""The boundary of a call: its errors cross to the caller as the same class with the same values.

A refused call ends with a status whose details are an error record (`windlass_proto.errors`). An error that is not ours
is a bug: logged, and named so to the caller; the scheduler goes on.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, TypeVar

import grpc

from windlass_proto import errors
from windlass_proto.errors import InvariantError, WindlassError

_log = logging.getLogger("windlass.scheduler")

_CODES: Final = {
    errors.UsageError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FencedError: grpc.StatusCode.ABORTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.ClosedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ProtocolError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CorruptionError: grpc.StatusCode.DATA_LOSS,
    errors.InvariantError: grpc.StatusCode.INTERNAL,
}

_Servicer = TypeVar("_Servicer")
_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


async def abort(context: grpc.aio.ServicerContext, error: WindlassError) -> NoReturn:
    """End a call with `error`."""
    await context.abort(_CODES[type(error)], errors.to_wire(error).decode())
    raise AssertionError("abort raises")


def call(
    method: Callable[[_Servicer, _Request, grpc.aio.ServicerContext], Awaitable[_Reply]],
) -> Callable[[_Servicer, _Request, grpc.aio.ServicerContext], Awaitable[_Reply]]:
    """Let a method's errors cross to the caller; one that is not ours is a bug, logged and named so."""

    @functools.wraps(method)
    async def answered(self: _Servicer, request: _Request, context: grpc.aio.ServicerContext) -> _Reply:
        try:
            return await method(self, request, context)
        except WindlassError as error:
            await abort(context, error)
        except Exception as bug:  # noqa: BLE001 - the RPC boundary
            _log.exception("call_failed method=%s", method.__name__)
            what = InvariantError("the scheduler failed in a call", call=method.__name__, reason=repr(bug)[:200])
            await abort(context, what)

    return answered
