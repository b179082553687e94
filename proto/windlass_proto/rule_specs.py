"""Update rules as values: a rule's name and typed hyper-parameters, and their bytes.

Invariant: a spec that exists is valid. It checks itself when made, so whoever holds one (from a user's
call, from the wire, from a checkpoint) needs no check of its own. Specs are immutable; a change made live
is another spec.

Rules that `torch.optim` has bear its names, defaults and meaning; what servers do with them is in
`windlass_rules`. The classes lie in `momentum_specs`, `adaptive_specs`, `adam_specs`, `trust_specs` and `row_specs`,
and are imported from here. A rule is data, never code and never a pickle. Prior art: MXNet sends its optimizer pickled,
which hands the server to whoever can write to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from windlass_proto import own_rules
from windlass_proto.adam_specs import FTML, AdaBelief, Adam, Adamax, AdamW, NAdam
from windlass_proto.adaptive_specs import FTRL, Adadelta, Adagrad, RMSprop
from windlass_proto.arguments import did_you_mean
from windlass_proto.consistency import Consistency, Mode
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import rules_pb2
from windlass_proto.hyper_parameters import SCHEDULED
from windlass_proto.layout import HALVES
from windlass_proto.momentum_specs import DCASGD, SGD, Lion, Signum, Sum
from windlass_proto.own_rules import OwnRule
from windlass_proto.row_specs import GroupAdagrad, GroupFTRL, RowWiseAdagrad
from windlass_proto.trust_specs import LAMB, LARS

__all__ = [
    "DCASGD",
    "FTML",
    "FTRL",
    "LAMB",
    "LARS",
    "ROW_RULES",
    "RULES",
    "RULE_BYTES_MAX",
    "SGD",
    "TRUST_RULES",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "GroupAdagrad",
    "GroupFTRL",
    "Lion",
    "NAdam",
    "OwnRule",
    "RMSprop",
    "RowWiseAdagrad",
    "RuleSpec",
    "Signum",
    "Sum",
    "from_bytes_untrusted",
    "from_name",
    "rule_name",
    "to_bytes",
]

from windlass_proto.schedules import Schedule, StalenessAware, from_message_untrusted, to_message

RULE_BYTES_MAX: Final = 1024
"""A rule travels in band with a step's marks, so it stays small; without a schedule it takes under 80 bytes."""

SWITCHES: Final = ("momentum", "clip_norm", "clip_global_norm")
"""Where a rule has them, other kernels run, or other norms are taken, with them at 0 or None than otherwise."""

ONLY_AT_FIRST: Final = ("initial_accumulator_value",)
"""What fills slots before the first step, and counts for nothing later."""

ROW_RULES: Final = (RowWiseAdagrad, GroupAdagrad, GroupFTRL)
"""Rules that step whole rows of sparse tables."""

TRUST_RULES: Final = (LAMB, LARS)
"""Rules that scale each tensor's step by its norms."""

RuleSpec: TypeAlias = (
    SGD
    | Adagrad
    | Adam
    | AdamW
    | Adadelta
    | RMSprop
    | NAdam
    | Adamax
    | Signum
    | Lion
    | AdaBelief
    | FTRL
    | FTML
    | Sum
    | RowWiseAdagrad
    | GroupAdagrad
    | GroupFTRL
    | DCASGD
    | LAMB
    | LARS
    | OwnRule
)

RULES: Final[Mapping[str, type[RuleSpec]]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "adam": Adam,
    "adamw": AdamW,
    "adadelta": Adadelta,
    "rmsprop": RMSprop,
    "nadam": NAdam,
    "adamax": Adamax,
    "signum": Signum,
    "lion": Lion,
    "adabelief": AdaBelief,
    "ftrl": FTRL,
    "ftml": FTML,
    "sum": Sum,
    "rowwise_adagrad": RowWiseAdagrad,
    "group_adagrad": GroupAdagrad,
    "group_ftrl": GroupFTRL,
    "dcasgd": DCASGD,
    "lamb": LAMB,
    "lars": LARS,
}
"""Every rule by its name: the field of the message RuleSpec, what logs and status show."""

_NAMES: Final = {cls: name for name, cls in RULES.items()}


def rule_name(spec: RuleSpec) -> str:
    """The name of the rule of `spec`, for example "adamw"."""
    return spec.name if isinstance(spec, OwnRule) else _NAMES[type(spec)]


def from_name(name: str, hyper_parameters: Mapping[str, object]) -> RuleSpec:
    """The spec of the rule called `name`, as a command line or a configuration file writes it.

    Raises:
        UsageError: if no rule has that name or no such hyper-parameter, or a value is not valid.
    """
    if name not in RULES:
        raise UsageError("no update rule has this name", name=name, next_move=did_you_mean(name, RULES))
    cls = RULES[name]
    known = [field.name for field in dataclasses.fields(cls)]
    for given in hyper_parameters:
        if given not in known:
            raise UsageError(f"{name} has no such hyper-parameter", given=given, next_move=did_you_mean(given, known))
    if cls is SGD and "lr" not in hyper_parameters:
        raise UsageError("sgd has no default learning rate", given=sorted(hyper_parameters), next_move="Give lr.")
    return cls(**hyper_parameters)  # type: ignore[arg-type]  # a spec checks its own values


def check_dense(spec: RuleSpec, consistency: Consistency) -> None:
    """Can `spec` update the dense tensors of a store of this mode?

    Raises:
        UsageError: it steps whole rows, or compensates delays where there are none.
    """
    if type(spec) in ROW_RULES:
        raise UsageError(
            "this update rule steps whole rows, which a dense tensor has not",
            rule=rule_name(spec),
            next_move="Declare a sparse table with it, or take adagrad or ftrl for the tensors.",
        )
    if type(spec) is DCASGD and consistency.mode is Mode.BSP:
        raise UsageError(
            "this update rule is for gradients that come late, and under bsp none does",
            rule=rule_name(spec),
            consistency=consistency,
            next_move='Open the store with consistency="asp" or "ssp:N", or take sgd.',
        )


def check_rows(spec: RuleSpec) -> None:
    """Can `spec` update rows of sparse tables?

    Raises:
        UsageError: it needs a copy of the table for each worker, or norms of whole tensors.
    """
    if takes_norms(spec):
        raise UsageError(
            "this update rule takes norms of whole tensors, which no push to a sparse table has",
            rule=spec,
            next_move="Take another rule for the table; clip_value bounds each value.",
        )
    if type(spec) is DCASGD:
        raise UsageError(
            "this update rule keeps a copy of the weights for each worker, which is too much for a table",
            rule=rule_name(spec),
            next_move="Take sgd or rowwise_adagrad for the table.",
        )


def check_lazy(spec: RuleSpec, dtype: str) -> None:
    """Can `spec` update some rows of dense tensors of `dtype`, and leave the others as they are?

    Raises:
        UsageError: it needs norms of whole tensors or copies of them, or rows of such tensors cannot be chosen.
    """
    why = ""
    if takes_norms(spec):
        why = "a step of some rows has no norm of a whole tensor"
    elif type(spec) is DCASGD:
        why = "its copies of the weights are of whole tensors"
    elif dtype in HALVES:
        why = "half tensors travel whole"
    if why:
        raise UsageError(
            "tensors cannot be lazy with this update rule or dtype",
            rule=spec,
            dtype=dtype,
            reason=why,
            next_move="Declare them without lazy=True, or as float32 with another rule.",
        )


def check_staleness(rate: object, consistency: Consistency) -> None:
    """Is there any staleness for `rate`, an lr, to be scaled by?

    Raises:
        UsageError: it would be, in a mode in which every step begins with the weights of the one before.
    """
    if isinstance(rate, StalenessAware) and consistency.mode is Mode.BSP:
        raise UsageError(
            "an lr is scaled by staleness, and no step of this mode is stale",
            consistency=consistency,
            lr=rate,
            next_move='Open the store with consistency="asp" or "ssp:N", or give lr without StalenessAware.',
        )


def heeds_staleness(spec: RuleSpec) -> bool:
    """Does the rate of a push under `spec` depend on how stale it is?"""
    return isinstance(getattr(spec, "lr", None), StalenessAware)


def takes_norms(spec: RuleSpec) -> bool:
    """Does a step of `spec` need the norm of a whole tensor, or of all of them?"""
    return isinstance(spec, TRUST_RULES) or clips_norms(spec)


def clips_norms(spec: RuleSpec) -> bool:
    """Does `spec` bound the norm of gradients?

    Under bsp servers take it of a step's mean. Where a push is applied when it comes, its worker takes it, and servers
    multiply the push with what that makes of it.
    """
    return any(getattr(spec, name, None) is not None for name in ("clip_norm", "clip_global_norm"))


def check_change(spec: RuleSpec, before: Consistency, after: Consistency) -> None:
    """Can a store go over to another mode while `spec` updates its tensors?

    Raises:
        UsageError: not in the new mode at all, or its norms are taken of steps and one of the modes has none.
    """
    check_dense(spec, after)
    if takes_norms(spec) and (before.mode is Mode.BSP) != (after.mode is Mode.BSP):
        raise UsageError(
            "a store whose rules take norms stays under bsp, or apart from it",
            mode=before,
            asked=after,
            rule=spec,
            next_move="Declare its tensors in a store of the other mode.",
        )


def is_scheduled(spec: RuleSpec) -> bool:
    """Does a hyper-parameter of `spec` follow a schedule?"""
    return any(isinstance(getattr(spec, name, None), Schedule) for name in SCHEDULED)


def changed(spec: RuleSpec, values: Mapping[str, object]) -> RuleSpec:
    """`spec` with other numbers, as a live change makes it: the same kernel goes on with the same slots.

    Raises:
        UsageError: its rule has no such hyper-parameter, a value is not valid, or another kernel would be needed.
    """
    name, known = rule_name(spec), [field.name for field in dataclasses.fields(spec)]
    if isinstance(spec, OwnRule):  # the others may choose a kernel, which only the rule itself could say
        known = [each for each in SCHEDULED if getattr(spec, each) is not None]
    for given in values:
        if given not in known:
            raise UsageError(f"{name} has no such hyper-parameter", given=given, next_move=did_you_mean(given, known))
        before, after = getattr(spec, given), values[given]
        switched = isinstance(before, bool) or (given in SWITCHES and bool(before) != bool(after))
        if switched or given in ONLY_AT_FIRST:
            raise UsageError(
                f"{given} of {name} cannot be changed while training",
                declared=before,
                asked=after,
                next_move="Declare the tensors with it: servers are prepared for what was declared.",
            )
    return dataclasses.replace(spec, **values)  # type: ignore[arg-type]  # a spec checks its own values


def to_bytes(spec: RuleSpec) -> bytes:
    """The message RuleSpec of `spec`; equal specs give equal bytes.

    Raises:
        UsageError: its schedules take more than RULE_BYTES_MAX.
    """
    message = rules_pb2.RuleSpec()
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, Schedule):
            getattr(message, f"{field.name}_schedule").CopyFrom(to_message(value))
    if isinstance(spec, OwnRule):
        own_rules.to_message(spec, message.own)
    else:
        _write_rule(spec, getattr(message, rule_name(spec)))
    raw = message.SerializeToString(deterministic=True)
    if len(raw) > RULE_BYTES_MAX:
        raise UsageError(
            "an update rule is too long", bytes=len(raw), bytes_max=RULE_BYTES_MAX, next_move="Shorten its schedules."
        )
    return raw


def _write_rule(spec: RuleSpec, rule: Any) -> None:
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.name == "betas":
            rule.beta1, rule.beta2 = value
        elif value is not None and not isinstance(value, Schedule):
            setattr(rule, field.name, value)
    rule.SetInParent()


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
        if name == "own":
            for value in message.own.values:
                _refuse_unknown_fields(value, "a hyper-parameter")
            return own_rules.from_message(message.own, _scheduled_untrusted(message, rule))
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
            defaults: tuple[float, float] = field.default  # type: ignore[assignment]  # no rule lacks it
            values["betas"] = tuple(
                getattr(rule, beta) if rule.HasField(beta) else default
                for beta, default in zip(("beta1", "beta2"), defaults, strict=True)
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
