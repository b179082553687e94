"""Schedules: a hyper-parameter as a function of the step, as values.

    value(clock) -> float        clock: the step that an update belongs to, from 0

Invariant: a schedule that exists is valid, and its value is finite and not negative at every clock. A value is made of
IEEE `+ - * / sqrt` and exact scaling alone, never of libm, so every server computes the same bits. Schedules are
immutable; composed ones hold others, `DEPTH_MAX` deep at most.

The clock is the worker's (bsp: the step; ssp and asp: that of the worker who pushed), not a count of updates: N workers
without a common step do not decay N times too fast. Prior art: `torch.optim.lr_scheduler`, whose values these are where
names agree; MXNet's schedulers count updates.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from windlass_proto import limits
from windlass_proto.arguments import refused_in_words
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import rules_pb2

DEPTH_MAX: Final = 4
"""A warm-up into a chain of cosines is three deep; each level is a call when a value is made."""

STEPS_MAX: Final = 1 << 40
"""A step takes no microsecond: twelve days of them."""

_PI: Final = 3.141592653589793
_LN_2: Final = 0.6931471805599453


@refused_in_words
@dataclass(frozen=True, slots=True)
class Constant:
    """lr at every step."""

    lr: float

    def __post_init__(self) -> None:
        _require_numbers(self, "lr")

    def value(self, clock: int) -> float:
        return self.lr


@refused_in_words
@dataclass(frozen=True, slots=True)
class Step:
    """lr * gamma ** (clock // step_size)."""

    lr: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _require_numbers(self, "lr")
        _require_steps(self, "step_size")
        _require_decay(self)

    def value(self, clock: int) -> float:
        return self.lr * _whole_power(self.gamma, clock // self.step_size)


@refused_in_words
@dataclass(frozen=True, slots=True)
class MultiStep:
    """lr * gamma ** (the number of milestones that are <= clock)."""

    lr: float
    milestones: Sequence[int]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _require_numbers(self, "lr")
        _require_decay(self)
        given = _sequence(self, "milestones")
        milestones = tuple(_steps(self, "milestones", step) for step in given)
        if not milestones or sorted(set(milestones)) != list(milestones):
            raise UsageError(
                "MultiStep takes milestones that rise", milestones=milestones, next_move="Sort them, each once."
            )
        object.__setattr__(self, "milestones", milestones)

    def value(self, clock: int) -> float:
        return self.lr * _whole_power(self.gamma, bisect_right(self.milestones, clock))


@refused_in_words
@dataclass(frozen=True, slots=True)
class Polynomial:
    """end + (lr - end) * (1 - clock / steps) ** power, and `end` from `steps` on."""

    lr: float
    steps: int
    power: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _require_numbers(self, "lr", "power", "end")
        _require_steps(self, "steps")

    def value(self, clock: int) -> float:
        if clock >= self.steps:
            return self.end
        return _between(self.end, self.lr, _power((self.steps - clock) / self.steps, self.power))


@refused_in_words
@dataclass(frozen=True, slots=True)
class Cosine:
    """Half a cosine from lr to `end`, over `steps` steps of which the first `warmup` rise linearly from 0 to lr."""

    lr: float
    steps: int
    end: float = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        _require_numbers(self, "lr", "end")
        _require_steps(self, "steps")
        _require_steps(self, "warmup", least=0)
        if self.warmup >= self.steps:
            raise UsageError("Cosine takes warmup < steps", warmup=self.warmup, steps=self.steps)

    def value(self, clock: int) -> float:
        if clock < self.warmup:
            return self.lr * (clock / self.warmup)
        if clock >= self.steps:
            return self.end
        share = (clock - self.warmup) / (self.steps - self.warmup)
        return _between(self.end, self.lr, (1.0 + cos_pi(share)) / 2.0)


@refused_in_words
@dataclass(frozen=True, slots=True)
class InverseSqrt:
    """lr * sqrt(warmup / clock), after `warmup` steps that rise linearly from 0 to lr.

    Reference: A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 5.3, with lr for the peak.
    """

    lr: float
    warmup: int

    def __post_init__(self) -> None:
        _require_numbers(self, "lr")
        _require_steps(self, "warmup")

    def value(self, clock: int) -> float:
        if clock < self.warmup:
            return self.lr * (clock / self.warmup)
        return self.lr * math.sqrt(self.warmup / clock)


@refused_in_words
@dataclass(frozen=True, slots=True)
class WarmUp:
    """From `start` linearly to what `into` begins with, over `steps` steps; then `into`, from its own clock 0."""

    into: Schedule
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        _require_numbers(self, "start")
        _require_steps(self, "steps")
        _require_schedule(self, "into", self.into)
        _require_depth(self)

    def value(self, clock: int) -> float:
        if clock >= self.steps:
            return self.into.value(clock - self.steps)
        return _between(self.start, self.into.value(0), clock / self.steps)


@refused_in_words
@dataclass(frozen=True, slots=True)
class Chain:
    """One schedule after the other: (schedule, steps), each from its own clock 0; the last one goes on."""

    parts: Sequence[tuple[Schedule, int]]

    def __post_init__(self) -> None:
        parts = []
        for part in _sequence(self, "parts"):
            try:
                schedule, steps = part
            except (TypeError, ValueError) as cause:
                raise UsageError("Chain takes pairs of (schedule, steps)", got=repr(part)[:80]) from cause
            _require_schedule(self, "parts", schedule)
            parts.append((schedule, _steps(self, "parts", steps)))
        if not parts:
            raise UsageError("Chain takes at least one (schedule, steps)")
        object.__setattr__(self, "parts", tuple(parts))
        _require_depth(self)

    def value(self, clock: int) -> float:
        for schedule, steps in self.parts[:-1]:
            if clock < steps:
                return schedule.value(clock)
            clock -= steps
        return self.parts[-1][0].value(clock)


@refused_in_words
@dataclass(frozen=True, slots=True)
class Plateau:
    """lr, until a logged metric has not got better for `patience` values: then worker 0 sets lr * factor, and so on.

    Values are those of `cluster.log`, merged over workers. Better is less by more than `threshold` of the best one, or
    more where `rises`; lr stays at or above `end`. It stands for itself: no other schedule may hold it.
    """

    lr: float
    metric: str
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    end: float = 0.0
    rises: bool = False

    def __post_init__(self) -> None:
        _require_numbers(self, "lr", "factor", "threshold", "end")
        _require_steps(self, "patience", least=0)
        metric: object = self.metric
        if not (isinstance(metric, str) and 1 <= len(metric.encode()) <= limits.NAME_BYTES_MAX):
            raise UsageError("Plateau takes the name of a logged metric", metric=repr(metric)[:80])
        if self.factor >= 1 or not isinstance(self.rises, bool):
            raise UsageError("Plateau takes factor < 1, rises=True or False", factor=self.factor, rises=self.rises)

    def value(self, clock: int) -> float:
        return self.lr

    def lowered(self) -> Plateau:
        """The next one, equal to this one at `end`."""
        return dataclasses.replace(self, lr=min(self.lr, max(self.lr * self.factor, self.end)))


@refused_in_words
@dataclass(frozen=True, slots=True)
class StalenessAware:
    """`into`, for each push scaled down by its staleness: into / (1 + slope * max(0, staleness - free)) ** power.

    A push that was made from weights of version v and is applied at version w is w - v stale: so many updates of its
    tensor came between. For lr alone, under "asp" and "ssp"; under "bsp" no step is stale. No schedule may hold it.

    | form | lr is divided by | |
    | --- | --- | --- |
    | inverse | max(1, staleness) | as given by default |
    | polynomial | (1 + staleness) ** power | free=0, power= |
    | hinge | 1 + slope * (staleness - free), beyond `free` | free=, slope= |

    Args:
        into: a schedule of the step, or a number.
        power, slope: >= 0.
        free: updates that may come between at no cost.

    References: W. Zhang, S. Gupta, X. Lian, J. Liu, "Staleness-aware Async-SGD for Distributed Deep Learning", IJCAI
    2016, section 3, for the inverse; C. Xie, S. Koyejo, I. Gupta, "Asynchronous Federated Optimization",
    arXiv:1903.03934, section 5, for the others (their mixing rate is lr here).
    """

    into: Any
    power: float = 1.0
    slope: float = 1.0
    free: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.into, Schedule):
            object.__setattr__(self, "into", Constant(self.into))
        _require_schedule(self, "into", self.into)
        _require_numbers(self, "power", "slope")
        _require_steps(self, "free", least=0)
        _require_depth(self)

    def value(self, clock: int) -> float:
        """Of a push that is not stale."""
        rate: float = self.into.value(clock)
        return rate

    def share(self, staleness: int) -> float:
        """What a push of that staleness keeps of lr."""
        return _power(1.0 / (1.0 + self.slope * max(0, staleness - self.free)), self.power)


Schedule: TypeAlias = (
    Constant | Step | MultiStep | Polynomial | Cosine | InverseSqrt | WarmUp | Chain | Plateau | StalenessAware
)

SCHEDULES: Final[dict[str, type[Schedule]]] = {
    "constant": Constant,
    "step": Step,
    "multi_step": MultiStep,
    "polynomial": Polynomial,
    "cosine": Cosine,
    "inverse_sqrt": InverseSqrt,
    "warm_up": WarmUp,
    "chain": Chain,
    "plateau": Plateau,
    "staleness_aware": StalenessAware,
}
"""Every schedule by the field of its message."""

_NAMES: Final = {cls: name for name, cls in SCHEDULES.items()}

Rate: TypeAlias = float | Any
"""A number or a Schedule. (`Any` stands for Schedule: equations of rules see numbers alone, see `number_at`.)"""


def number_at(rate: Rate, clock: int) -> float:
    """What `rate` is at `clock`."""
    return rate if isinstance(rate, float) else float(rate.value(clock))


def share_at(rate: Rate | None, staleness: int) -> float:
    """What a push of that staleness keeps of the learning rate `rate`."""
    return rate.share(staleness) if staleness and isinstance(rate, StalenessAware) else 1.0


# Wire


def to_message(schedule: Schedule) -> rules_pb2.Schedule:
    """The message of `schedule`; equal schedules give equal messages."""
    message = rules_pb2.Schedule()
    inner = getattr(message, _NAMES[type(schedule)])
    inner.SetInParent()
    for field in dataclasses.fields(schedule):
        value = getattr(schedule, field.name)
        if field.name == "parts":
            for part, steps in value:
                inner.parts.add(schedule=to_message(part), steps=steps)
        elif field.name == "into":
            inner.into.CopyFrom(to_message(value))
        elif field.name == "milestones":
            inner.milestones.extend(value)
        else:
            setattr(inner, field.name, value)
    return message


def from_message_untrusted(message: rules_pb2.Schedule, depth: int = 1) -> Schedule:
    """Read what `to_message` made, here or in a neighbouring release.

    Raises:
        ProtocolError: if it is nested too deep, has a field that is not known here, or holds invalid values.
    """
    name = message.WhichOneof("schedule")
    if depth > DEPTH_MAX:
        raise ProtocolError("a schedule is nested too deep", depth_max=DEPTH_MAX)
    if name is None or len(UnknownFieldSet(message)):
        raise ProtocolError("a schedule is not known", known=", ".join(SCHEDULES))
    inner: Any = getattr(message, name)
    _refuse_unknown_fields(inner, name)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(SCHEDULES[name]):
        if field.name == "parts":
            for part in inner.parts:
                _refuse_unknown_fields(part, name)
            values["parts"] = [(from_message_untrusted(p.schedule, depth + 1), p.steps) for p in inner.parts]
        elif field.name == "into":
            values["into"] = from_message_untrusted(inner.into, depth + 1)
        elif field.name == "milestones":
            values["milestones"] = tuple(inner.milestones)
        elif inner.HasField(field.name):
            values[field.name] = getattr(inner, field.name)
    try:
        return SCHEDULES[name](**values)
    except (UsageError, TypeError) as cause:
        raise ProtocolError("a schedule holds values that none may have", schedule=name, reason=str(cause)) from cause


def _refuse_unknown_fields(message: Message, name: str) -> None:
    if len(UnknownFieldSet(message)):
        raise ProtocolError("a schedule holds fields this release does not know", schedule=name)


# Arithmetic


def cos_pi(share: float) -> float:
    """cos(pi * share) for 0 <= share <= 1, within 1e-15: Taylor's series on an eighth of the circle."""
    if share > 0.5:
        return -cos_pi(1.0 - share)
    if share <= 0.25:
        angle = _PI * share
        return _alternating(angle * angle, 1)
    angle = _PI * (0.5 - share)
    return angle * _alternating(angle * angle, 2)


def _alternating(square: float, first: int) -> float:
    """1 - square / (first * (first + 1)) * (1 - square / ((first + 2) * (first + 3)) * ( ..., to 1e-18 below 0.62."""
    total = 1.0
    for k in range(first + 18, first - 1, -2):
        total = 1.0 - square / (k * (k + 1)) * total
    return total


def _whole_power(base: float, exponent: int) -> float:
    """base ** exponent by squaring."""
    product = 1.0
    while exponent and product:
        if exponent & 1:
            product *= base
        base *= base
        exponent >>= 1
    return product


def _power(base: float, exponent: float) -> float:
    """base ** exponent for 0 < base <= 1 and exponent >= 0, within 1e-13 of it for exponents up to 100."""
    if exponent == int(exponent):
        return _whole_power(base, int(exponent))
    mantissa, halvings = math.frexp(base)
    ratio = (mantissa - 1.0) / (mantissa + 1.0)  # ln(mantissa) = 2 * atanh(ratio), -1/3 <= ratio < 0
    total = 0.0
    for k in range(41, 0, -2):
        total = total * (ratio * ratio) + 1.0 / k
    logarithm = exponent * (2.0 * ratio * total + halvings * _LN_2)
    whole = int(logarithm / _LN_2)
    rest = logarithm - whole * _LN_2
    total = 1.0
    for k in range(20, 0, -1):
        total = 1.0 + rest / k * total
    return math.ldexp(total, max(whole, -2000))


def _between(start: float, end: float, share: float) -> float:
    """`start` at share 0, `end` at share 1; never outside of the two, whatever is rounded."""
    return min(max(start + (end - start) * share, min(start, end)), max(start, end))


# Checks


def _require_numbers(schedule: Any, *names: str) -> None:
    """Each named field is a finite number >= 0, kept as the float it equals."""
    for name in names:
        value = getattr(schedule, name)
        try:
            if isinstance(value, (bool, str, bytes)):
                raise TypeError("not a number")
            number = float(value)
        except (TypeError, ValueError, OverflowError) as cause:
            raise UsageError(f"{_class(schedule)} takes a number as {name}", **{name: repr(value)[:80]}) from cause
        if not (math.isfinite(number) and number >= 0):
            raise UsageError(f"{_class(schedule)} takes a finite {name} >= 0", **{name: str(number)})
        object.__setattr__(schedule, name, number + 0.0)  # -0.0 is 0.0


def _require_decay(schedule: Any) -> None:
    _require_numbers(schedule, "gamma")
    if schedule.gamma > 1:
        raise UsageError(f"{_class(schedule)} takes gamma <= 1: it decays", gamma=schedule.gamma)


def _require_steps(schedule: Any, name: str, *, least: int = 1) -> None:
    object.__setattr__(schedule, name, _steps(schedule, name, getattr(schedule, name), least=least))


def _steps(schedule: Any, name: str, value: Any, *, least: int = 1) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise UsageError(f"{_class(schedule)} takes whole steps as {name}", **{name: repr(value)[:80]})
    steps = int(value.__index__())
    if not least <= steps <= STEPS_MAX:
        raise UsageError(f"{_class(schedule)} takes {name} of {least} to {STEPS_MAX} steps", **{name: str(steps)})
    return steps


def _sequence(schedule: Any, name: str) -> list[Any]:
    value = getattr(schedule, name)
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise UsageError(f"{_class(schedule)} takes a sequence as {name}", **{name: repr(value)[:80]})
    return list(value)


def _require_schedule(schedule: Any, name: str, value: object) -> None:
    if not isinstance(value, Schedule) or isinstance(value, Plateau | StalenessAware):
        raise UsageError(
            f"{_class(schedule)} takes schedules of the step as {name}",
            got=repr(value)[:80],
            next_move="wl.schedule.Constant(lr).",
        )


def _require_depth(schedule: Schedule) -> None:
    depth = _depth(schedule)
    if depth > DEPTH_MAX:
        raise UsageError("schedules are nested too deep", depth=depth, depth_max=DEPTH_MAX)


def _depth(schedule: Schedule) -> int:
    inner: tuple[Schedule, ...] = ()
    if isinstance(schedule, WarmUp):
        inner = (schedule.into,)
    elif isinstance(schedule, Chain):
        inner = tuple(part for part, _ in schedule.parts)
    return 1 + max(map(_depth, inner), default=0)


def _class(schedule: object) -> str:
    return type(schedule).__name__
