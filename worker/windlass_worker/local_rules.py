"""Update rules in this process: what servers do to a model, done here for one that no server holds.

Invariant: the same kernels, in the same order of a tensor's values, as on a server, so a model that trains here has the
bits of one that trains with one worker on one server. Parameters with equal multipliers lie in one run of memory, each
on 64 bytes, and are stepped by one call; a rule that takes norms is called for each tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import numpy as np

from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError
from windlass_proto.memory import aligned_zeros
from windlass_proto.rule_specs import RuleSpec
from windlass_rules import RuleKernels, build
from windlass_rules.norms import LANES, Norm, clipping_divisor, folded, phases
from windlass_rules.registry import trust_of
from windlass_worker.trainable import Trainable

_LINE: Final = 16  # elements; a multiple of 64 bytes in float32 and float64


class Run:
    """Parameters that lie one after the other and share dtype and multipliers."""

    def __init__(self, members: Sequence[Trainable], kernels: RuleKernels) -> None:
        self.members = list(members)
        self.kernels = kernels
        self.spans: list[tuple[int, int]] = []
        size = 0
        for member in members:
            self.spans.append((size, member.first.size))
            size += -(-max(member.first.size, 1) // _LINE) * _LINE
        self.weights = aligned_zeros(size, kernels.dtype)
        self.gradients = aligned_zeros(size, kernels.dtype)
        self.slots = tuple(aligned_zeros(size, kernels.dtype) for _ in kernels.slots)
        for slot, array in zip(kernels.slots, self.slots, strict=True):
            array.fill(slot.fill)
        for member, (begin, count) in zip(members, self.spans, strict=True):
            shape = member.first.shape
            member.first.adopt(
                self.weights[begin : begin + count].reshape(shape), self.gradients[begin : begin + count].reshape(shape)
            )

    @property
    def multipliers(self) -> tuple[float, float]:
        return self.members[0].lr_mult, self.members[0].decay_mult


class LocalRules:
    """One optimizer over parameters whose first copies are on a CPU device.

    Raises:
        UsageError: the rule has no kernel for a dtype, or a parameter lies on a GPU.
    """

    def __init__(self, members: Iterable[Trainable], spec: RuleSpec) -> None:
        self.spec = spec
        self.steps = 0
        self.runs: list[Run] = []
        grouped: dict[tuple[str, float, float], list[Trainable]] = {}
        for member in members:
            if member.first.device.kind != "cpu":
                raise UsageError(
                    "rules of this process run on a CPU device",
                    next_move="Put the first device of the model on cpu:0, or train with a store, whose servers step.",
                    parameter=member.name,
                    device=str(member.first.device),
                )
            key = (member.first.dtype.name, member.lr_mult, member.decay_mult)
            grouped.setdefault(key, []).append(member)
        for (dtype, _, _), listed in grouped.items():
            kernels = build(spec, dtype)
            if kernels.copies:
                raise UsageError(
                    "this rule compensates delays between workers, and here is one",
                    next_move="Train with a store, or choose SGD.",
                    rule=kernels.rule,
                )
            self.runs.append(Run(listed, kernels))

    def set(self, **numbers: Any) -> None:
        """Other hyper-parameters from the next step on.

        Raises:
            UsageError: the rule has no such number.
        """
        known = [field.name for field in dataclasses.fields(self.spec)]
        for name in numbers:
            if name not in known:
                raise UsageError(f"the rule has no {name!r}", next_move=did_you_mean(name, known))
        self.spec = dataclasses.replace(self.spec, **numbers)

    def with_members(self, members: Iterable[Trainable]) -> LocalRules:
        """The same rule on other parameters; those of equal name and shape keep their state."""
        before = self.states()
        found = LocalRules(members, self.spec)
        found.steps = self.steps
        for name, array in found.states().items():
            if name != "steps" and name in before and before[name].shape == array.shape:
                array[...] = before[name]
        return found

    def step(self, scale: float, without: Collection[str] = ()) -> None:
        """One update from the gradients that lie in the parameters, each times `scale`; some may be left out."""
        self.steps += 1
        taken: list[tuple[Run, list[tuple[int, int]]]] = []
        for run in self.runs:
            spans = []
            for member, span in zip(run.members, run.spans, strict=True):
                if member.name not in without:
                    member.use_gradient()
                    spans.append(span)
            taken.append((run, spans))
        norms = phases(self.spec)
        divisor = 1.0 / scale
        if Norm.CLIP_GLOBAL in norms:
            total = sum(self._squares(run, span, divisor) for run, spans in taken for span in spans)
            divisor = clipping_divisor(self.spec, Norm.CLIP_GLOBAL, total, divisor)
        for run, spans in taken:
            if len(spans) == len(run.spans) and set(norms) <= {Norm.CLIP_GLOBAL}:
                self._apply(run, (0, run.weights.size), divisor, 1.0)
            else:
                for span in spans:
                    self._step_one(run, span, divisor, norms)
        for run in self.runs:
            for member in run.members:
                member.share()

    def _apply(self, run: Run, span: tuple[int, int], divisor: float, trust: float) -> None:
        begin, count = span
        gradient = run.gradients[begin : begin + count]
        run.kernels.update(run.weights, run.slots, begin, gradient, 1.0 / divisor, self._numbers(run, trust))

    def _numbers(self, run: Run, trust: float) -> Any:
        lr_mult, decay_mult = run.multipliers
        return run.kernels.scalars(
            self.spec, self.steps, lr_mult=lr_mult * trust, decay_mult=decay_mult, clock=self.steps - 1
        )

    def _squares(self, run: Run, span: tuple[int, int], divisor: float) -> float:
        begin, count = span
        lanes = np.zeros(LANES)
        squares = run.kernels.squares
        assert squares is not None, "rules that clip have kernels of squares"
        squares(run.gradients[begin : begin + count], 1.0 / divisor, lanes)
        return folded(lanes)[0]

    def _step_one(self, run: Run, span: tuple[int, int], divisor: float, norms: Sequence[Norm]) -> None:
        """One tensor of a rule that takes its norms."""
        begin, count = span
        trust = 1.0
        for norm in norms:
            if norm is Norm.CLIP_TENSOR:
                divisor = clipping_divisor(self.spec, norm, self._squares(run, span, divisor), divisor)
            elif norm is Norm.TRUST:
                lanes = np.zeros(2 * LANES)
                measure = run.kernels.measure
                assert measure is not None, "rules that trust have kernels that measure"
                gradient = run.gradients[begin : begin + count]
                measure(run.weights, run.slots, begin, gradient, 1.0 / divisor, self._numbers(run, 1.0), lanes)
                _, decay_mult = run.multipliers
                trust = trust_of(self.spec, folded(lanes), decay_mult=decay_mult, clock=self.steps - 1)
        self._apply(run, span, divisor, trust)

    def states(self) -> dict[str, np.ndarray[Any, Any]]:
        """Slots by parameter and name, and the count of steps: what `load_states` takes back."""
        found: dict[str, Any] = {"steps": np.array(self.steps, np.int64)}
        for run in self.runs:
            for member, (begin, count) in zip(run.members, run.spans, strict=True):
                for slot, array in zip(run.kernels.slots, run.slots, strict=True):
                    found[f"{member.name}.{slot.name}"] = array[begin : begin + count].reshape(member.first.shape)
        return found

    def take_states(self, states: dict[str, np.ndarray[Any, Any]]) -> None:
        """Go on from `states`.

        Raises:
            UsageError: they are of other parameters or another rule; nothing is changed.
        """
        mine = self.states()
        for name in sorted({*mine, *states}):
            here, there = mine.get(name), states.get(name)
            if here is None or there is None or here.shape != there.shape:
                raise UsageError(
                    f"the states do not fit this trainer at {name!r}",
                    next_move="Load states of the same model and rule.",
                    here=None if here is None else here.shape,
                    there=None if there is None else there.shape,
                )
        self.steps = int(states["steps"])
        for name, array in mine.items():
            if name != "steps":
                array[...] = states[name]
