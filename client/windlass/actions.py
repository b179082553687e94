"""Actions: what all workers ask for at the same step and one of them carries out.

Invariant: every worker's n-th call of an action at one step is the same action; the scheduler compares their digests,
grants it to one worker, and lets the others wait until that one has said that it is done. Owner: the store, which
counts the calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from windlass.arrays import Array

if TYPE_CHECKING:
    from windlass.store import Store
    from windlass_proto.gen import control_pb2

_TEXT_CHARACTERS = 500  # of an action in words; up to 4 bytes each


def agree(store: Store, action: str, names: list[str], digest: str, text: str) -> int | None:
    """Ask to carry out `action` at this step: its id if this worker is to do it, None once another has done it."""
    request = asking(store, action, f"call {next_call(store, action)}", digest, text)
    request.names.extend(names if action == "delete" else ())
    reply = ask(store, request, f"{action} in store {store.name}")
    return reply.action_id if reply.granted else None


def asking(
    store: Store, action: str, key: str, digest: str, text: str, *, step: int | None = None
) -> control_pb2.AgreeRequest:
    """The request for an action of this step, or of `step`."""
    from windlass_proto.gen import control_pb2 as pb

    return pb.AgreeRequest(
        session=store.member.session,
        store_id=store.store_id,
        step=store.clock if step is None else step,
        action=action,
        key=key,
        digest=digest,
        text=text[:_TEXT_CHARACTERS],
    )


def ask(store: Store, request: control_pb2.AgreeRequest, what: str) -> control_pb2.AgreeReply:
    """Wait until this worker is granted the action, or another has done it."""
    return store.member.ask_peers(store.member.control.agree, request, what)


def agreed(store: Store, action_id: int, result: str = "") -> None:
    """The granted action is done; the others are told `result`."""
    from windlass_proto.gen import control_pb2 as pb

    request = pb.AgreeDoneRequest(
        session=store.member.session, store_id=store.store_id, action_id=action_id, result=result
    )
    store.member.control.agree_done(request)


def next_call(store: Store, action: str) -> int:
    """Counts the calls of `action` at this step, from 1: every worker's n-th is the same action."""
    step, calls = store.actions.get(action, (-1, 0))
    store.actions[action] = (store.clock, calls + 1 if step == store.clock else 1)
    return store.actions[action][1]


def in_words(arrays: Mapping[str, Array]) -> str:
    """Names and first values, for an error."""
    shown = [f"{name}={np.array2string(array.reshape(-1)[:3], precision=6)}" for name, array in arrays.items()]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def digest_of_text(text: str) -> str:
    """A digest of a text."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(text.encode())


def digest_of(arrays: Mapping[str, Array]) -> str:
    """A digest of names and values."""
    import xxhash

    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
