"""From a rule's spec to its compiled kernels.

Invariant: one kernel per (variant, dtype) and process, compiled (or loaded) when it is first asked for
and never at import. The table of kernels belongs to this module's lock; a lookup that finds its kernel
takes no lock.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import types

from windlass_proto import gradient_norms, kernel_cache
from windlass_proto.errors import InvariantError, UsageError
from windlass_proto.rule_specs import (
    DCASGD,
    FTML,
    FTRL,
    LAMB,
    LARS,
    SGD,
    AdaBelief,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    GroupAdagrad,
    GroupFTRL,
    Lion,
    NAdam,
    OwnRule,
    RMSprop,
    RowWiseAdagrad,
    RuleSpec,
    Signum,
    Sum,
    rule_name,
)
from windlass_proto.schedules import Rate, number_at
from windlass_rules import (
    accumulation,
    adabelief,
    adadelta,
    adagrad,
    adam,
    adamax,
    dcasgd,
    ftml,
    ftrl,
    group_adagrad,
    group_ftrl,
    installed,
    lamb,
    lars,
    lion,
    nadam,
    norms,
    reduce,
    rmsprop,
    rowwise_adagrad,
    sgd,
    signum,
)
from windlass_rules.cuda_norms import measure_source
from windlass_rules.cuda_source import CudaSource, update_source
from windlass_rules.rule import Kernel, Per, Slot, Variant, Vector

RULE_MODULES: Final[dict[type[RuleSpec], Any]] = {
    SGD: sgd,
    Adagrad: adagrad,
    Adam: adam,
    AdamW: adam,
    Adadelta: adadelta,
    RMSprop: rmsprop,
    NAdam: nadam,
    Adamax: adamax,
    Signum: signum,
    Lion: lion,
    AdaBelief: adabelief,
    FTRL: ftrl,
    FTML: ftml,
    Sum: accumulation,
    RowWiseAdagrad: rowwise_adagrad,
    GroupAdagrad: group_adagrad,
    GroupFTRL: group_ftrl,
    DCASGD: dcasgd,
    LAMB: lamb,
    LARS: lars,
}
"""The module of each rule; each has `variant(spec)` and `oracle(spec, w, slots, g, step)`."""

DTYPES: Final = (np.dtype(np.float32), np.dtype(np.float64))

_BUILDING = threading.Lock()
_KERNELS: dict[tuple[str, np.dtype[Any]], Kernel] = {}


@dataclass(frozen=True, slots=True)
class RuleKernels:
    """What a server needs to apply a rule to one dtype.

    update(w, slots, begin, g, gscale, scalars) and update_out(w, slots, begin, g, gscale, scalars, out)
    are machine code, called straight: see `windlass_rules.rule.Kernel`. `slots` is a tuple of arrays in
    the order of `self.slots`, () without any. `begin` is a multiple of 16 elements for speed, not for
    correctness. They release the interpreter's lock; the caller sees to it that nobody else touches the
    range meanwhile. No two arrays may overlap (`out` may be `g`: right, but far slower).

    A rule that takes norms has what it measures them with: measure(w, slots, begin, g, gscale, scalars, lanes), which
    goes before the update of the same step, or squares(g, gscale, lanes), or both (`windlass_proto.gradient_norms`).

    Large arrays that start at equal offsets of a huge page contend for the same cache sets: with a slot and
    `out` at 64 MiB each, 28 GB/s against 39 when each starts 12 KiB further than the one before.
    """

    rule: str
    variant: str
    dtype: np.dtype[Any]
    slots: tuple[Slot, ...]
    update: Kernel = field(repr=False)
    update_out: Kernel = field(repr=False)
    measure: Kernel | None = field(repr=False)
    squares: Callable[..., None] | None = field(repr=False)

    @property
    def kept(self) -> tuple[Slot, ...]:
        """The slots that are kept once, whoever pushes; the workers' copies of weights, if any, come after them."""
        return tuple(slot for slot in self.slots if slot.per is not Per.WORKER)

    @property
    def copies(self) -> bool:
        """Does the kernel want the weights as the pushing worker saw them?"""
        return len(self.kept) < len(self.slots)

    def scalars(
        self, spec: RuleSpec, step: int, *, lr_mult: float = 1.0, decay_mult: float = 1.0, clock: int = 0
    ) -> Vector:
        """The numbers of 1-based `step` for tensors with these multipliers, in the kernel's order and dtype.

        `step` counts the tensor's updates, `clock` the steps of training: schedules follow the clock. The first
        number is the bound of clipping, and the kernel's docstring names the others. They are computed in float64
        and rounded once. `spec` may differ from the one the kernels were built for in its values, not in its
        variant: hyper-parameters change live.
        """
        return step_scalars(self.variant, self.dtype, spec, step, lr_mult, decay_mult, clock)


def trust_of(spec: RuleSpec, sums: tuple[float, ...], *, decay_mult: float, clock: int) -> float:
    """What lr is multiplied by, of a tensor whose weights and direction have these sums of squares."""
    variant: Variant = RULE_MODULES[type(spec)].variant(spec)
    assert variant.trust is not None
    first, second = sums
    return variant.trust(spec, first, second, number_at(spec.weight_decay, clock) * decay_mult)


def step_scalars(
    known: str, dtype: np.dtype[Any], spec: RuleSpec, step: int, lr_mult: float, decay_mult: float, clock: int
) -> Vector:
    """`RuleKernels.scalars` of the variant called `known`."""
    if step < 1:
        raise InvariantError("steps of a rule are counted from 1", step=step)
    _, variant, resolved = variant_of(spec)
    if variant.name != known:
        raise InvariantError("kernels of one variant met a rule of another", kernels=known, rule=variant.name)
    clip_value, lr, weight_decay = _shared_of(spec, resolved)
    clip = math.inf if clip_value is None else clip_value
    lr, weight_decay = number_at(lr, clock), number_at(weight_decay, clock)
    numbers = variant.step_numbers(resolved, step, lr * lr_mult, weight_decay * decay_mult)
    with np.errstate(over="ignore"):  # what float32 cannot hold is an infinity there
        return np.array((clip, *numbers), dtype=dtype)


def build(spec: RuleSpec, dtype: npt.DTypeLike) -> RuleKernels:
    """The kernels of `spec` for weights of `dtype`. Thread-safe.

    Compiles for 0.3 to 1 s when this machine has not seen (variant, dtype), loads in 20 to 40 ms the
    first time in a process, and is a lookup after that: call it when a table is declared, not under a
    share's lock. The kernels of `windlass_rules.reduce` for `dtype` are built with them.

    Raises:
        UsageError: if dtype is neither float32 nor float64.
    """
    kind = known_dtype(spec, dtype)
    variant = _by_element(spec)
    kernel = _kernel(variant, kind)
    reduce.build(kind)
    clips = {norms.Norm.CLIP_TENSOR, norms.Norm.CLIP_GLOBAL} & set(norms.phases(spec))
    return RuleKernels(
        rule=rule_name(spec),
        variant=variant.name,
        dtype=kind,
        slots=variant.slots,
        update=kernel,
        update_out=kernel,
        measure=_measure(variant, kind) if variant.measure is not None else None,
        squares=norms.build_squares(kind) if clips else None,
    )


def build_cuda(spec: RuleSpec, dtype: npt.DTypeLike) -> CudaSource:
    """The CUDA twin of `build(spec, dtype).update`, as a program for a device.

    Raises:
        UsageError: the rule has no twin.
    """
    return update_source(_by_element(spec), known_dtype(spec, dtype))


def build_cuda_measure(spec: RuleSpec, dtype: npt.DTypeLike) -> CudaSource | None:
    """The CUDA twin of `build(spec, dtype).measure`, up to the sums over chunks; None if the rule measures nothing.

    Raises:
        UsageError: the rule has no twin.
    """
    variant = _by_element(spec)
    return measure_source(variant, known_dtype(spec, dtype)) if variant.measure is not None else None


def variant_of(spec: RuleSpec) -> tuple[Any, Variant, Any]:
    """The module of a rule, its variant, and the spec that it understands: an own rule's is its own.

    Raises:
        UsageError: an own rule is not here, or refuses its hyper-parameters.
    """
    if not isinstance(spec, OwnRule):
        module = RULE_MODULES[type(spec)]
        return module, module.variant(spec), spec
    module, resolved = installed.module_of(spec), installed.made(spec)
    variant: Variant = module.variant(resolved)
    return module, dataclasses.replace(variant, name=f"own.{spec.name}.{variant.name}"), resolved


def _shared_of(spec: RuleSpec, resolved: Any) -> tuple[float | None, Rate, Rate]:
    """clip_value, lr and weight_decay as given, or as an own rule has them by itself."""
    if not isinstance(spec, OwnRule):
        return spec.clip_value, spec.lr, spec.weight_decay

    def of(name: str, without: Any) -> Any:
        given = getattr(spec, name)
        return getattr(resolved, name, without) if given is None else given

    return of("clip_value", None), of("lr", 0.0), of("weight_decay", 0.0)


def _by_element(spec: RuleSpec) -> Variant:
    _, variant, _ = variant_of(spec)
    if variant.by_row and isinstance(spec, OwnRule):
        raise UsageError("this update rule steps whole rows, which a dense tensor has not", rule=rule_name(spec))
    if variant.by_row:
        raise InvariantError("kernels for dense tensors were asked of a rule of rows", rule=rule_name(spec))
    return variant


def known_dtype(spec: RuleSpec, dtype: npt.DTypeLike) -> np.dtype[Any]:
    """`dtype`, for which there are kernels.

    Raises:
        UsageError: if there are none.
    """
    kind = np.dtype(dtype)
    if kind not in DTYPES:
        raise UsageError(
            f"{rule_name(spec)} has no kernels for this dtype",
            dtype=kind.name,
            known="float32, float64",
            next_move="Convert the weights.",
        )
    return kind


def signatures(variant: Variant, dtype: np.dtype[Any]) -> list[Any]:
    """Numba's signatures of a kernel: without `out` and with it."""
    numba_types: Any = types
    vector = kernel_cache.vector_type(dtype)
    readable = kernel_cache.vector_type(dtype, readonly=True)
    slots = numba_types.UniTuple(vector, len(variant.slots)) if variant.slots else numba_types.Tuple(())
    shared = (vector, slots, types.intp, readable, kernel_cache.scalar_type(dtype), readable)
    return [types.void(*shared, numba_types.Omitted(None)), types.void(*shared, vector)]


def check_arrays(w: Vector, slots: tuple[Vector, ...], begin: int, g: Vector, out: Vector | None = None) -> None:
    """Assert what kernels rely on for their speed; for tests, as it costs more than a small update.

    Raises:
        InvariantError: if an array is not 1-D, contiguous, on 64 bytes and of w's dtype, or sizes do not fit.
    """
    named = {"w": w, "g": g, **{f"slots[{i}]": slot for i, slot in enumerate(slots)}}
    if out is not None:
        named["out"] = out
    for name, array in named.items():
        if array.ndim != 1 or not array.flags.c_contiguous or array.dtype != w.dtype:
            raise InvariantError("an update takes contiguous 1-D arrays of one dtype", array=name, dtype=array.dtype)
        if array.ctypes.data % 64:
            raise InvariantError("an array of an update does not start on 64 bytes", array=name)
    if begin % 16 or not 0 <= begin <= w.size - g.size:
        raise InvariantError("an update's range does not fit", begin=begin, gradient=g.size, block=w.size)
    if any(slot.size != w.size for slot in slots) or (out is not None and out.size != g.size):
        raise InvariantError("an update's arrays differ in size", sizes={n: a.size for n, a in named.items()})


def _kernel(variant: Variant, dtype: np.dtype[Any]) -> Kernel:
    key = (variant.name, dtype)
    kernel = _KERNELS.get(key)
    if kernel is None:
        with _BUILDING:
            kernel = _KERNELS.get(key)
            if kernel is None:
                kernel = kernel_cache.compiled(variant.kernel, signatures(variant, dtype), dtype)
                _KERNELS[key] = kernel
    return kernel


def measure_signature(variant: Variant, dtype: np.dtype[Any]) -> Any:
    """Numba's signature of a variant's `measure`."""
    (without_out, _) = signatures(variant, dtype)
    return types.void(*without_out.args[:-1], kernel_cache.vector_type(np.dtype(np.float64)))


def _measure(variant: Variant, dtype: np.dtype[Any]) -> Kernel:
    key = (f"{variant.name} measure", dtype)
    with _BUILDING:
        if key not in _KERNELS:
            assert variant.measure is not None
            # Numba's cache compares the rule's file alone: changed sums must not find the code of the old ones.
            digest = zlib.crc32(inspect.getsource(gradient_norms).encode())
            asked = [measure_signature(variant, dtype)]
            _KERNELS[key] = kernel_cache.compiled(variant.measure, asked, dtype, f"norms-{digest:08x}")
        return _KERNELS[key]
