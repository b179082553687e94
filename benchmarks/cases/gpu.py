"""Update rules on a GPU against a kernel that moves the same streams there, and Adam against PyTorch's fused one.

Each pass is one launch and the wait for its end, so small loads measure the launch. Nothing travels between host and
device but the list of runs. The floor does one addition a stream, which no GPU notices beside the memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from benchmarks.case import Case, Extent
from benchmarks.cases.kernels import FLOAT32_BYTES, GOALS, RULES, STEP, Kernel
from benchmarks.child import NotMeasuredError
from benchmarks.contender import Field
from benchmarks.contest import SAME_STREAMS, contest
from benchmarks.load import one_tensor
from benchmarks.report import Row
from windlass_proto.errors import UnavailableError, UsageError
from windlass_proto.rule_specs import RuleSpec
from windlass_rules import device as devices
from windlass_rules import registry
from windlass_rules.cuda_source import CudaSource, fill_source, update_source
from windlass_rules.cupy_device import open_device
from windlass_rules.device import Device
from windlass_rules.rule import Slot, Variant

FLOAT32: Final = np.dtype(np.float32)
BEYOND_CACHES_BYTES: Final = 1 << 30  # one stream; the largest devices have caches of 60 MB
CASE: Final = "gpu-kernels"
Pass = Callable[[int], Callable[[], None]]


# Read as a rule's kernel is, never called.
def _weights(w: Any, g: Any) -> None:
    n = g.size
    for i in range(n):
        w[i] = w[i] + g[i]


def _weights_and_slot(w: Any, slots: Any, begin: int, g: Any) -> None:
    n = g.size
    m = slots[0][begin : begin + n]
    for i in range(n):
        mi = m[i] + g[i]
        m[i] = mi
        w[i] = w[i] + mi


def _weights_and_two(w: Any, slots: Any, begin: int, g: Any) -> None:
    n = g.size
    m = slots[0][begin : begin + n]
    v = slots[1][begin : begin + n]
    for i in range(n):
        mi = m[i] + g[i]
        m[i] = mi
        v[i] = v[i] + g[i]
        w[i] = w[i] + mi


def _weights_and_three(w: Any, slots: Any, begin: int, g: Any) -> None:
    n = g.size
    m = slots[0][begin : begin + n]
    v = slots[1][begin : begin + n]
    top = slots[2][begin : begin + n]
    for i in range(n):
        mi = m[i] + g[i]
        m[i] = mi
        v[i] = v[i] + g[i]
        top[i] = top[i] + g[i]
        w[i] = w[i] + mi


FLOORS: Final = (_weights, _weights_and_slot, _weights_and_two, _weights_and_three)  # by slots


def floor_program(slots: int) -> CudaSource:
    """What reads weights, a gradient and so many slots, and writes all but the gradient."""
    kept = tuple(Slot(f"slot{k}", 0.0) for k in range(slots))
    return update_source(Variant(f"streams{slots}", kept, FLOORS[slots], lambda *_: ()), FLOAT32)


def device_pass(device: Device, program: CudaSource, slots: int, scalars: Sequence[float]) -> Pass:
    """One launch of `program` over all parameters, and the wait for its end."""

    def of(parameters: int) -> Callable[[], None]:
        lane = device.lane()
        vectors = [devices.empty(device, parameters, FLOAT32) for _ in range(2 + slots)]
        for vector in vectors:
            lane.launch(devices.launch_of(fill_source(FLOAT32), [(parameters, vector.address, 0.5)], []))
        w, g, *kept = (vector.address for vector in vectors)
        launch = devices.launch_of(program, [(parameters, w, *kept, 0, 1, 1.0, *scalars)], [(g, 1.0)])

        def run() -> None:
            assert len(vectors) == 2 + slots  # they live as long as what works on them
            lane.launch(launch)
            lane.finish()

        return run

    return of


def torch_pass(device: Device) -> Pass:
    """PyTorch's fused Adam on the same device.

    Raises:
        NotMeasuredError: PyTorch is not in this environment, or does not see the device.
    """
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as cause:
        raise NotMeasuredError("PyTorch is not installed beside windlass") from cause
    if not torch.cuda.is_available():
        raise NotMeasuredError("PyTorch sees no CUDA device")
    where = "cuda:" + device.name.rpartition(":")[2]

    def of(parameters: int) -> Callable[[], None]:
        parameter = torch.full((parameters,), 0.5, device=where).requires_grad_()
        parameter.grad = torch.full((parameters,), 0.5, device=where)
        optimizer = torch.optim.Adam([parameter], lr=1e-3, fused=True)

        def run() -> None:
            optimizer.step()
            torch.cuda.synchronize(where)

        return run

    return of


def gpu_kernels(
    extent: Extent,
    opened: Callable[[str], Device] = open_device,
    rules: Sequence[tuple[str, RuleSpec]] = RULES,
) -> Iterator[Row]:
    try:
        device = opened("gpu:0")
    except (UsageError, UnavailableError) as missing:
        yield Row(CASE, "every rule", "windlass", not_measured=f"no device: {missing.fact}")
        return
    for rule, spec in rules:
        built = registry.build(spec, FLOAT32)
        slots = len(built.slots)
        ours = device_pass(device, registry.build_cuda(spec, FLOAT32), slots, list(built.scalars(spec, STEP)))
        floor = device_pass(device, floor_program(slots), slots, ())
        with Field() as field:
            field.enter(SAME_STREAMS, lambda floor=floor: Kernel(SAME_STREAMS, floor))  # type: ignore[misc]
            field.enter(f"windlass {rule}", lambda n=rule, p=ours: Kernel(f"windlass {n}", p))  # type: ignore[misc]
            if rule == "adam":
                field.enter("torch fused adam", lambda: Kernel("torch fused adam", torch_pass(device)))
            for size in extent.sizes(1 << 20, 64 << 20, BEYOND_CACHES_BYTES):
                parameters = size // FLOAT32_BYTES
                setting = f"{rule}, {parameters / 2**20:g} Mi parameters, {device.model}"
                goals = GOALS if size >= BEYOND_CACHES_BYTES else ()
                moved = parameters * FLOAT32_BYTES * (3 + 2 * slots)
                yield from contest(CASE, setting, field, one_tensor(size), extent.pace, goals, moved)


CASES = (Case(CASE, "each update rule on a GPU against its same-streams floor and PyTorch's fused Adam", gpu_kernels),)
