"""Own rules as values: an update rule of an installed package, named with its version and its hyper-parameters.

The code of a rule is never sent. A package declares it as an entry point of the group `windlass.rules`, whoever runs a
server puts its name on that server's allow-list, and each server says at join which names it has, in which version and
with which fields. A declaration is compared with all servers before anything of it is recorded.

Invariant: as in `rule_specs`, a spec that exists is well-formed: a name, numbers, flags and words by name. What they
must be beyond their kinds is the rule's own affair, on the servers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from windlass_proto import arguments
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import control_pb2, rules_pb2
from windlass_proto.hyper_parameters import require_not_negative, require_positive
from windlass_proto.schedules import Rate, number_at

ENTRY_POINTS: Final = "windlass.rules"
"""The group of entry points in which packages declare rules."""

VALUES_MAX: Final = 32
INSTALLED_MAX: Final = 64
NAME_BYTES_MAX: Final = 64
SHARED: Final = ("lr", "weight_decay", "clip_value")
"""Hyper-parameters that servers understand themselves: schedules, live changes, multipliers, clipping."""

KINDS: Final[Mapping[str, type]] = {"number": float, "integer": int, "flag": bool, "text": str}

Value: TypeAlias = float | int | bool | str

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*\Z")
_VERSION: Final = re.compile(r"[A-Za-z0-9.+!_-]{0,64}\Z")


@dataclass(frozen=True, slots=True)
class OwnRule:
    """What a server is asked to run: the rule `name` of an installed package; made by `windlass.optim.own`.

    Args:
        version: of the package; "" is any, as long as all servers have the same.
        lr, weight_decay, clip_value: None: the rule's own default.
        values: the other hyper-parameters that were given, sorted by name.

    Raises:
        UsageError: if a name or a value is none.
    """

    name: str
    version: str = ""
    lr: Rate | None = None
    weight_decay: Rate | None = None
    clip_value: float | None = None
    values: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        if not _VERSION.match(self.version):
            raise UsageError("a version of an own rule is none", rule=self.name, version=self.version[:80])
        require_not_negative(self, *(name for name in ("lr", "weight_decay") if getattr(self, name) is not None))
        if self.clip_value is not None:
            require_positive(self, "clip_value")
        if len(self.values) > VALUES_MAX:
            raise UsageError("an own rule has too many hyper-parameters", rule=self.name, values_max=VALUES_MAX)
        for name, value in self.values:
            check_name(name)
            kind_of(self.name, name, value)

    def __str__(self) -> str:
        given = {name: getattr(self, name) for name in SHARED if getattr(self, name) is not None} | dict(self.values)
        said = ", ".join(f"{name}={value}" for name, value in given.items())
        return f"{self.name}{'==' if self.version else ''}{self.version}({said})"


@dataclass(frozen=True, slots=True)
class InstalledRule:
    """A rule that a server may run, its hyper-parameters with their kinds, and whether it is for rows alone."""

    name: str
    version: str
    fields: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    by_row: bool = False


def own(name: str, version: str, hyper_parameters: Mapping[str, Any]) -> OwnRule:
    """The spec of the rule `name` with these hyper-parameters."""
    shared = {key: value for key, value in hyper_parameters.items() if key in SHARED and value is not None}
    rest = tuple(sorted((key, value) for key, value in hyper_parameters.items() if key not in SHARED))
    return OwnRule(name, version, values=rest, **shared)


def tried(spec_class: Callable[..., Any], rule: OwnRule) -> Any:
    """The rule's own spec of these values; a schedule counts with its number at step 0.

    Raises:
        UsageError: it refuses them.
    """
    values: dict[str, Any] = dict(rule.values)
    for name in SHARED:
        value = getattr(rule, name)
        if value is not None:
            values[name] = number_at(value, 0)
    try:
        return spec_class(**values)
    except (TypeError, ValueError, ArithmeticError) as cause:
        reason = str(cause)[:200]
        raise UsageError("an own rule refuses its hyper-parameters", rule=rule.name, reason=reason) from cause


def kind_of(rule: str, name: str, value: object) -> str:
    """Which of KINDS a value is.

    Raises:
        UsageError: it is none, or a number that is not finite.
    """
    for kind, cls in KINDS.items():
        if type(value) is cls and not (cls is float and not math.isfinite(value)):  # type: ignore[arg-type]
            if cls is str and len(value) > 200:  # type: ignore[arg-type]
                break
            return kind
    raise UsageError(
        "a hyper-parameter of an own rule is no finite number, flag or short text",
        rule=rule,
        **{name: repr(value)[:80]},
    )


def check_name(name: object) -> None:
    """Raises UsageError unless `name` may be that of a rule or of a hyper-parameter."""
    if not isinstance(name, str) or not _NAME.match(name) or len(name) > NAME_BYTES_MAX:
        raise UsageError(
            "a name of an own rule or of its hyper-parameters is not lower case letters, digits and _",
            name=repr(name)[:80],
            characters_max=NAME_BYTES_MAX,
        )


def parse_allowed(text: str, flag: str = "--allow-rule") -> tuple[str, str]:
    """NAME or NAME==VERSION of an allow-list; "" is any version.

    Raises:
        UsageError: it is neither.
    """
    name, equals, version = text.partition("==")
    if not _NAME.match(name) or (equals and not version) or not _VERSION.match(version):
        raise UsageError(f"{flag} is not NAME or NAME==VERSION", got=text[:80])
    return name, version


def check_servers(rule: OwnRule, servers: Mapping[str, tuple[InstalledRule, ...]], *, table: bool) -> None:
    """Can all `servers` run `rule`, in one version, with hyper-parameters of these names and kinds?

    Raises:
        UsageError: one cannot; it names the server, the rule and both versions.
    """
    wanted = rule.version
    first = ""
    for server, rules in servers.items():
        found = next((each for each in rules if each.name == rule.name), None)
        if found is None:
            raise _absent(rule, server, rules, wanted)
        if wanted and found.version != wanted:
            raise UsageError(
                "a server has another version of an update rule",
                rule=rule.name,
                server=server,
                version_there=found.version,
                **({"version_of": first, "version": wanted} if first else {"version_asked": wanted}),
                next_move="Install the same version of its package on every server, and where windlass.optim.own runs.",
            )
        if not wanted:
            wanted, first = found.version, server
        _check_fields(rule, found)
        if found.by_row and not table:
            raise UsageError(
                "this update rule steps whole rows, which a dense tensor has not",
                rule=rule.name,
                next_move="Declare a sparse table with it.",
            )


def _absent(rule: OwnRule, server: str, rules: tuple[InstalledRule, ...], wanted: str) -> UsageError:
    known = [each.name for each in rules]
    near = arguments.nearest(rule.name, known)
    return UsageError(
        "a server does not have an update rule",
        rule=rule.name,
        server=server,
        version_asked=wanted or "any",
        version_there="none",
        allowed_there=", ".join(f"{each.name}=={each.version}" for each in rules) or "none",
        next_move=(f"Did you mean {near}? " if near else "")
        + f"Install its package there and start the server with --allow-rule {rule.name}.",
    )


def _check_fields(rule: OwnRule, installed: InstalledRule) -> None:
    """Names and kinds of what was given are those that the rule declares; an integer may stand for a number."""
    fields = dict(installed.fields)
    given: dict[str, Any] = dict(rule.values)
    given |= {name: 0.0 for name in SHARED if getattr(rule, name) is not None}
    for name, value in given.items():
        if name not in fields:
            raise UsageError(
                f"{rule.name} has no such hyper-parameter", given=name, next_move=arguments.did_you_mean(name, fields)
            )
        kind = kind_of(rule.name, name, value)
        if kind != fields[name] and (kind, fields[name]) != ("integer", "number"):
            raise UsageError(
                f"a hyper-parameter of {rule.name} is of another kind",
                **{name: value},
                given=kind,
                declared=fields[name],
            )


def to_message(rule: OwnRule, message: rules_pb2.OwnRule) -> None:
    """Write everything but schedules."""
    message.name, message.version = rule.name, rule.version
    for name in SHARED:
        value = getattr(rule, name)
        if isinstance(value, float):
            setattr(message, name, value)
    for name, value in rule.values:
        message.values.add(name=name, **{kind_of(rule.name, name, value): value})


def from_message(message: rules_pb2.OwnRule, scheduled: Mapping[str, Any]) -> OwnRule:
    """Read what `to_message` wrote; the caller has looked for unknown fields of `message`.

    Raises:
        UsageError, ProtocolError: it is no rule.
    """
    values = []
    for value in message.values:
        kind = value.WhichOneof("value")
        if kind is None:
            raise ProtocolError("a hyper-parameter of an own rule has no value", name=value.name[:64])
        values.append((value.name, getattr(value, kind)))
    if [name for name, _ in values] != sorted({name for name, _ in values}) or {n for n, _ in values} & set(SHARED):
        raise ProtocolError("hyper-parameters of an own rule are not in order", rule=message.name[:64])
    shared: dict[str, Any] = {name: getattr(message, name) for name in SHARED if message.HasField(name)}
    return OwnRule(message.name, message.version, values=tuple(values), **shared, **scheduled)


def installed_message(rule: InstalledRule) -> control_pb2.InstalledRule:
    """What a server says at join."""
    fields = [control_pb2.InstalledRule.Field(name=name, kind=kind) for name, kind in rule.fields]
    return control_pb2.InstalledRule(name=rule.name, version=rule.version, fields=fields, by_row=rule.by_row)


def installed_untrusted(messages: Any) -> tuple[InstalledRule, ...]:
    """What a server said at join.

    Raises:
        ProtocolError: it is too much, or no rules.
    """
    if len(messages) > INSTALLED_MAX:
        raise ProtocolError("a server has too many own rules", rules=len(messages), rules_max=INSTALLED_MAX)
    found = []
    for message in messages:
        fields = tuple((each.name, each.kind) for each in message.fields)
        try:
            for name in (message.name, *(name for name, _ in fields)):
                check_name(name)
        except UsageError as cause:
            raise ProtocolError("a server's rule has a name that is none", reason=str(cause)) from cause
        if len(fields) > VALUES_MAX + len(SHARED) or any(kind not in KINDS for _, kind in fields):
            raise ProtocolError("a server's rule has fields that none may have", rule=message.name)
        if not _VERSION.match(message.version):
            raise ProtocolError("a server's rule has a version that is none", rule=message.name)
        found.append(InstalledRule(message.name, message.version, fields, message.by_row))
    return tuple(found)
