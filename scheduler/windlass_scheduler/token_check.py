"""The token check: no call is looked at before its caller has shown the cluster's token."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc

from windlass_proto import errors
from windlass_proto.errors import UsageError

TOKEN_KEY: Final = "windlass-token"  # noqa: S105 - the name of the metadata key


class TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses every call whose metadata does not carry the cluster's token."""

    def __init__(self, token: bytes) -> None:
        self._token = token

    async def intercept_service(self, continuation: Callable[..., Awaitable[Any]], details: Any) -> Any:
        shown = dict(details.invocation_metadata).get(TOKEN_KEY, "")
        shown_bytes = shown if isinstance(shown, bytes) else shown.encode()
        if hmac.compare_digest(shown_bytes, self._token):
            return await continuation(details)
        if details.method.endswith("/Watch"):
            return grpc.unary_stream_rpc_method_handler(_deny_stream)
        return grpc.unary_unary_rpc_method_handler(_deny)


def _denied() -> str:
    error = UsageError(
        "the scheduler refused this process: its cluster token is another one",
        next_move="Use the token file of this cluster (WINDLASS_TOKEN_FILE).",
    )
    return errors.to_wire(error).decode()


async def _deny(_request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, _denied())
    return b""


async def _deny_stream(_request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, _denied())
    yield b""
