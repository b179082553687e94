"""Disagreements: why a `Declare` call is not taken, in words.

A call may be one that no cluster can hold, or it may contradict what was declared before: then both sides are named,
with their ranks. Pure functions of the call and of what is recorded; `declaration_core` calls them before it changes
anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from windlass_proto import limits as wire_limits
from windlass_proto import table_specs, transfer_specs
from windlass_proto.errors import UsageError
from windlass_proto.layout import TensorSpec, check_whole, dtype_named, layout_named
from windlass_scheduler import limits
from windlass_scheduler.declared import Call, Declaration, Group, Store, Tensor

if TYPE_CHECKING:
    from windlass_scheduler.declaration_core import Declare

_ELEMENTS_MAX: Final = 1 << 48
_DIMENSIONS_MAX: Final = 32


def check_name(what: str, name: str) -> None:
    if not name or len(name.encode()) > wire_limits.NAME_BYTES_MAX:
        raise UsageError(f"a {what} needs a name of 1 to {wire_limits.NAME_BYTES_MAX} bytes", name=repr(name[:40]))


def check_declare(event: Declare, store: Store) -> None:
    """The request in itself is one that a cluster can hold."""
    if event.job != store.job:
        raise UsageError("a store belongs to another job", job=event.job, store_job=store.job)
    if not 0 < len(event.tensors) <= wire_limits.TENSORS_MAX:
        raise UsageError(
            "a declaration has a wrong number of tensors",
            tensors=len(event.tensors),
            allowed=f"1..{wire_limits.TENSORS_MAX}",
        )
    if event.reduce not in ("mean", "sum"):
        raise UsageError("a declaration has an unknown reduce", reduce=repr(event.reduce[:40]), known="mean or sum")
    cap = event.block_elements_max
    if cap and (cap & (cap - 1) or not wire_limits.BLOCK_ELEMENTS_FLOOR <= cap <= wire_limits.BLOCK_ELEMENTS_MAX):
        raise UsageError(
            "block_elements_max is not a power of two in range",
            block_elements_max=cap,
            allowed=f"{wire_limits.BLOCK_ELEMENTS_FLOOR}..{wire_limits.BLOCK_ELEMENTS_MAX}",
        )
    transfer_specs.from_bytes_untrusted(event.transfer)
    layout_named(event.layout)
    if len(event.rule) > limits.TEXT_BYTES_MAX:
        raise UsageError("an update rule is too long", bytes=len(event.rule), bytes_max=limits.TEXT_BYTES_MAX)
    seen: set[str] = set()
    for tensor in event.tensors:
        check_name("tensor", tensor.spec.name)
        if tensor.spec.name in seen:
            raise UsageError("a declaration names a tensor twice", tensor=tensor.spec.name)
        seen.add(tensor.spec.name)
        dtype_named(tensor.dtype)
        if len(tensor.spec.shape) > _DIMENSIONS_MAX or tensor.spec.elements > _ELEMENTS_MAX:
            raise UsageError("a tensor is too large", tensor=tensor.spec.name, shape=_shape_text(tensor.spec.shape))
        if event.layout == "whole" and not tensor.table:
            check_whole(tensor.spec.name, tensor.spec.elements, tensor.dtype)


def compare_tensor(declared: Declaration, group: Group, spec: TensorSpec, tensor: Tensor, event: Declare) -> None:
    both = (
        ("shape", _shape_text(spec.shape), _shape_text(tensor.spec.shape)),
        ("dtype", group.dtype, tensor.dtype),
        ("lr_mult", f"{spec.lr_mult:g}", f"{tensor.spec.lr_mult:g}"),
        ("decay_mult", f"{spec.decay_mult:g}", f"{tensor.spec.decay_mult:g}"),
        ("reduce", group.reduce, event.reduce),
        ("lazy", str(group.lazy), str(event.lazy)),
        ("layout", group.layout, "blocks" if tensor.table else event.layout),
        ("kind", table_specs.in_words(group.table), table_specs.in_words(tensor.table)),
    )
    for what, before, now in both:
        if before != now:
            _refuse_tensor(tensor.spec.name, what, declared.rank, before, event.rank, now)
    if group.transfer != event.transfer:
        before, now = (transfer_specs.from_bytes_untrusted(raw).in_words() for raw in (group.transfer, event.transfer))
        _refuse_tensor(tensor.spec.name, "transfer", declared.rank, before, event.rank, now)
    if group.rule != event.rule:
        before, now = declared.rule_text, event.rule_text
        _refuse_tensor(tensor.spec.name, "optimizer", declared.rank, before, event.rank, now)


def _refuse_tensor(name: str, what: str, rank: int, declared: str, rank_now: int, asked: str) -> NoReturn:
    raise UsageError(
        f"tensor {name} was declared with another {what}",
        tensor=name,
        **{f"rank_{rank}_declared": declared, f"rank_{rank_now}_declares": asked},
        next_move="Declare the same on every worker; live values are changed with store.set().",
    )


def refuse_names(store: Store, call: Call, event: Declare, names: frozenset[str]) -> NoReturn:
    raise UsageError(
        f"workers declare different tensors in store {store.name}",
        **{
            f"only_rank_{call.rank}_declared": _names_text(call.names - names),
            f"only_rank_{event.rank}_declares": _names_text(names - call.names),
        },
        next_move="Every worker makes the same init calls with the same names, in the same order.",
    )


def _names_text(names: frozenset[str]) -> str:
    shown = sorted(names)[:5]
    more = len(names) - len(shown)
    return (", ".join(shown) or "none") + (f" and {more} more" if more else "")


def _shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(str(extent) for extent in shape) or "scalar"
