"""Update rules as values: a rule's name and typed hyper-parameters, and their bytes.

Invariant: a spec that exists is valid. It checks itself when made, so whoever holds one (from a user's
call, from the wire, from a checkpoint) needs no check of its own. Specs are immutable; a change made live
is another spec.

Names, defaults and meaning are those of `torch.optim`; what servers do with them is in `windlass_rules`.
A rule is data, never code and never a pickle. Prior art: MXNet sends its optimizer pickled, which hands
the server to whoever can write to it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import rules_pb2
from windlass_proto.schedules import Rate, Schedule, from_message_untrusted, to_message

RULE_BYTES_MAX: Final = 1024
"""A rule travels in band with a step's marks, so it stays small; without a schedule it takes under 64 bytes."""

SCHEDULED: Final = ("lr", "weight_decay")
"""Hyper-parameters that may be a schedule instead of a number."""

SWITCHES: Final = ("momentum", "clip_value")
"""Where a rule has them, other kernels run with them at 0 (or None) than otherwise."""

ONLY_AT_FIRST: Final = ("initial_accumulator_value",)
"""What fills slots before the first step, and counts for nothing later."""

_BETAS: Final = (0.9, 0.999)


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent, with momentum (Polyak or Nesterov) if `momentum` is not 0.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        momentum: share of the buffer kept each step, >= 0.
        dampening: share of the gradient kept out of the buffer, finite.
        weight_decay: L2 penalty added to the gradient, >= 0.
        nesterov: look ahead along the buffer; needs momentum > 0 and dampening = 0.

    Raises:
        UsageError: if a value is not a finite number in its range, or values contradict.
    """

    lr: Rate
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: Rate = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _require_finite(self, "dampening")
        _require_not_negative(self, "lr", "momentum", "weight_decay")
        if not isinstance(self.nesterov, bool):
            raise UsageError("SGD takes nesterov=True or False", nesterov=self.nesterov)
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise UsageError(
                "Nesterov momentum needs momentum > 0 and dampening = 0",
                momentum=self.momentum,
                dampening=self.dampening,
                next_move="Set both so, or nesterov=False.",
            )


@dataclass(frozen=True, slots=True)
class Adagrad:
    """Adagrad: each parameter's rate falls with the sum of its squared gradients.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        lr_decay: step t uses lr / (1 + (t - 1) * lr_decay), >= 0.
        weight_decay: L2 penalty added to the gradient, >= 0.
        initial_accumulator_value: the sum before the first step, >= 0.
        eps: added to the root of the sum, >= 0.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-2
    lr_decay: float = 0.0
    weight_decay: Rate = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    def __post_init__(self) -> None:
        _require_not_negative(self, "lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam, with weight decay (if any) added to the gradient.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        betas: share of the first and of the second moment kept each step, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: L2 penalty added to the gradient, >= 0.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-3
    betas: tuple[float, float] = _BETAS
    eps: float = 1e-8
    weight_decay: Rate = 0.0

    def __post_init__(self) -> None:
        _require_not_negative(self, "lr", "eps", "weight_decay")
        _require_betas(self)


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay: the weight shrinks by lr * weight_decay, the moments never see it.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        betas: share of the first and of the second moment kept each step, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: share of the weight lost a step, in units of lr, >= 0.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-3
    betas: tuple[float, float] = _BETAS
    eps: float = 1e-8
    weight_decay: Rate = 1e-2

    def __post_init__(self) -> None:
        _require_not_negative(self, "lr", "eps", "weight_decay")
        _require_betas(self)


RuleSpec: TypeAlias = SGD | Adagrad | Adam | AdamW

RULES: Final[Mapping[str, type[RuleSpec]]] = {"sgd": SGD, "adagrad": Adagrad, "adam": Adam, "adamw": AdamW}
"""Every rule by its name: the field of the message RuleSpec, what logs and status show."""

_NAMES: Final = {cls: name for name, cls in RULES.items()}


def rule_name(spec: RuleSpec) -> str:
    """The name of the rule of `spec`, for example "adamw"."""
    return _NAMES[type(spec)]


def from_name(name: str, hyper_parameters: Mapping[str, object]) -> RuleSpec:
    """The spec of the rule called `name`, as a command line or a configuration file writes it.

    Raises:
        UsageError: if no rule has that name or no such hyper-parameter, or a value is not valid.
    """
    if name not in RULES:
        raise UsageError("no update rule has this name", name=name, next_move=_did_you_mean(name, RULES))
    cls = RULES[name]
    known = [field.name for field in dataclasses.fields(cls)]
    for given in hyper_parameters:
        if given not in known:
            raise UsageError(f"{name} has no such hyper-parameter", given=given, next_move=_did_you_mean(given, known))
    if cls is SGD and "lr" not in hyper_parameters:
        raise UsageError("sgd has no default learning rate", given=sorted(hyper_parameters), next_move="Give lr.")
    return cls(**hyper_parameters)  # type: ignore[arg-type]  # a spec checks its own values


def is_scheduled(spec: RuleSpec) -> bool:
    """Does a hyper-parameter of `spec` follow a schedule?"""
    return any(isinstance(getattr(spec, name, None), Schedule) for name in SCHEDULED)


def changed(spec: RuleSpec, values: Mapping[str, object]) -> RuleSpec:
    """`spec` with other numbers, as a live change makes it: the same kernel goes on with the same slots.

    Raises:
        UsageError: its rule has no such hyper-parameter, a value is not valid, or another kernel would be needed.
    """
    name, known = rule_name(spec), [field.name for field in dataclasses.fields(spec)]
    for given in values:
        if given not in known:
            raise UsageError(f"{name} has no such hyper-parameter", given=given, next_move=_did_you_mean(given, known))
        before, after = getattr(spec, given), values[given]
        switched = isinstance(before, bool) or (given in SWITCHES and bool(before) != bool(after))
        if switched or given in ONLY_AT_FIRST:
            raise UsageError(
                f"{given} of {name} cannot be changed while training",
                declared=before,
                asked=after,
                next_move="Declare the tensors with it: their slots are made for what was declared.",
            )
    return dataclasses.replace(spec, **values)  # type: ignore[arg-type]  # a spec checks its own values


def to_bytes(spec: RuleSpec) -> bytes:
    """The message RuleSpec of `spec`; equal specs give equal bytes.

    Raises:
        UsageError: its schedules take more than RULE_BYTES_MAX.
    """
    message = rules_pb2.RuleSpec()
    rule = getattr(message, rule_name(spec))
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.name == "betas":
            rule.beta1, rule.beta2 = value
        elif isinstance(value, Schedule):
            getattr(message, f"{field.name}_schedule").CopyFrom(to_message(value))
        else:
            setattr(rule, field.name, value)
    rule.SetInParent()
    raw = message.SerializeToString(deterministic=True)
    if len(raw) > RULE_BYTES_MAX:
        raise UsageError(
            "an update rule is too long", bytes=len(raw), bytes_max=RULE_BYTES_MAX, next_move="Shorten its schedules."
        )
    return raw


def from_bytes_untrusted(raw: bytes) -> RuleSpec:
    """Decode what `to_bytes` wrote, here or in a neighbouring release.

    An absent hyper-parameter has its default; one that this release does not know is refused, because
    leaving it out would train with other mathematics than the sender meant.

    Raises:
        ProtocolError: if `raw` is no message, names no rule known here, or holds invalid values.
    """
    if len(raw) > RULE_BYTES_MAX:
        raise ProtocolError("an update rule is too long", bytes=len(raw), bytes_max=RULE_BYTES_MAX)
    message = rules_pb2.RuleSpec()
    try:
        message.ParseFromString(bytes(raw))
    except DecodeError as cause:
        raise ProtocolError("an update rule could not be read", reason=str(cause)[:200]) from cause
    name = message.WhichOneof("rule")
    _refuse_unknown_fields(message, "an update rule", rules=", ".join(RULES))
    if name is None:
        raise ProtocolError("an update rule names no rule", rules=", ".join(RULES))
    rule: Message = getattr(message, name)
    _refuse_unknown_fields(rule, name, known=", ".join(field.name for field in rule.DESCRIPTOR.fields))
    try:
        return _from_rule_message(RULES[name], rule, _scheduled_untrusted(message, rule))
    except UsageError as cause:
        raise ProtocolError("an update rule holds values that no rule may have", reason=cause) from cause


def _scheduled_untrusted(message: rules_pb2.RuleSpec, rule: Message) -> dict[str, object]:
    """The schedules that stand in place of numbers."""
    found: dict[str, object] = {}
    for name in SCHEDULED:
        if message.HasField(f"{name}_schedule"):  # type: ignore[arg-type]  # one of two literals
            if name not in rule.DESCRIPTOR.fields_by_name or rule.HasField(name):
                raise ProtocolError("an update rule has a schedule besides a number, or for nothing", name=name)
            found[name] = from_message_untrusted(getattr(message, f"{name}_schedule"))
    return found


def _from_rule_message(cls: type[RuleSpec], rule: Message, values: dict[str, object]) -> RuleSpec:
    for field in dataclasses.fields(cls):
        if field.name == "betas":
            values["betas"] = tuple(
                getattr(rule, beta) if rule.HasField(beta) else default
                for beta, default in zip(("beta1", "beta2"), _BETAS, strict=True)
            )
        elif rule.HasField(field.name):
            values[field.name] = getattr(rule, field.name)
    if cls is SGD and "lr" not in values:
        raise UsageError("sgd came without its learning rate")
    return cls(**values)  # type: ignore[arg-type]  # types are the message's, ranges the spec's own


def _refuse_unknown_fields(message: Message, what: str, **known: str) -> None:
    unknown = UnknownFieldSet(message)
    numbers = sorted({unknown[index].field_number for index in range(len(unknown))})
    if numbers:
        raise ProtocolError(
            f"{what} holds fields this release does not know",
            field_numbers=numbers,
            **known,
            next_move="Run the same release on both sides.",
        )


def _require_finite(spec: RuleSpec, *names: str) -> None:
    """Each named field is a finite number; an int (or a NumPy scalar) is kept as the float it equals."""
    for name in names:
        object.__setattr__(spec, name, _finite(spec, name, getattr(spec, name)))


def _require_not_negative(spec: RuleSpec, *names: str) -> None:
    _require_finite(spec, *names)
    for name in names:
        if type(getattr(spec, name)) is float and getattr(spec, name) < 0:
            raise UsageError(
                f"{type(spec).__name__} takes {name} >= 0",
                **{name: getattr(spec, name)},
                next_move=f"Change {name}.",
            )


def _require_betas(spec: Adam | AdamW) -> None:
    rule = type(spec).__name__
    try:
        beta1, beta2 = spec.betas
    except (TypeError, ValueError) as cause:
        raise UsageError(f"{rule} takes betas=(beta1, beta2)", betas=spec.betas) from cause
    betas = (_finite(spec, "betas", beta1), _finite(spec, "betas", beta2))
    if not all(0 <= beta < 1 for beta in betas):
        raise UsageError(f"{rule} takes betas in [0, 1)", betas=spec.betas, next_move="Change betas.")
    object.__setattr__(spec, "betas", betas)


def _finite(spec: RuleSpec, name: str, value: object) -> Rate:
    if isinstance(value, Schedule) and name in SCHEDULED:
        return value
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError("not a number")
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as cause:
        or_schedule = " or a schedule" if name in SCHEDULED else ""
        raise UsageError(
            f"{type(spec).__name__} takes a number{or_schedule} as {name}", **{name: repr(value)}
        ) from cause
    if not math.isfinite(number):
        raise UsageError(f"{type(spec).__name__} takes a finite {name}", **{name: number}, next_move=f"Change {name}.")
    return number


def _did_you_mean(name: str, known: Mapping[str, object] | list[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    listed = f"Known: {', '.join(known)}."
    return f"Did you mean {near[0]}? {listed}" if near else listed
