"""Cases over every rule and its terms, shared by the tests of kernels."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from tests.host_device import COMPILER, HostDevice
from windlass_proto.codec_specs import CODECS
from windlass_proto.errors import UnavailableError, UsageError
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
    RMSprop,
    RowWiseAdagrad,
    RuleSpec,
    Signum,
    Sum,
)
from windlass_rules.cuda_codecs import HALF_CODECS, decode_source, encode_source
from windlass_rules.cuda_norms import lane_sums_source, squares_source
from windlass_rules.cuda_rows import gather_source, scatter_source, step_source
from windlass_rules.cuda_source import CudaSource, fill_source, finite_source
from windlass_rules.cupy_device import open_device
from windlass_rules.device import Device, empty, launch_of
from windlass_rules.registry import DTYPES, RULE_MODULES, build_cuda, build_cuda_measure
from windlass_rules.rule import Per, Variant

SPECS: list[RuleSpec] = [
    SGD(lr=0.1),
    SGD(lr=0.1, weight_decay=0.05),
    SGD(lr=0.1, momentum=0.9),
    SGD(lr=0.1, momentum=0.9, dampening=0.4, weight_decay=0.05),
    SGD(lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=True),
    Adagrad(),
    Adagrad(lr=0.1, lr_decay=0.2, weight_decay=0.05, initial_accumulator_value=0.3, eps=1e-6),
    Adam(),
    Adam(lr=0.02, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.05),
    AdamW(),
    AdamW(lr=0.02, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.5),
    SGD(lr=0.1, weight_decay=0.05, clip_value=0.1),
    SGD(lr=0.1, momentum=0.9, clip_value=0.1),
    Adagrad(lr=0.1, weight_decay=0.05, clip_value=0.1),
    Adam(lr=0.02, betas=(0.8, 0.9), eps=1e-4, amsgrad=True),
    AdamW(lr=0.02, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.5, amsgrad=True, clip_value=0.1),
    Adadelta(),
    Adadelta(lr=0.5, rho=0.8, eps=1e-3, weight_decay=0.05, clip_value=0.1),
    RMSprop(),
    RMSprop(lr=0.02, alpha=0.8, eps=1e-4, weight_decay=0.05, clip_value=0.1),
    RMSprop(lr=0.02, alpha=0.8, eps=1e-2, centered=True, clip_value=0.1),
    RMSprop(lr=0.02, alpha=0.8, eps=1e-4, momentum=0.9, clip_value=0.1),
    RMSprop(lr=0.02, alpha=0.8, eps=1e-2, weight_decay=0.05, momentum=0.9, centered=True, clip_value=0.1),
    NAdam(),
    NAdam(lr=0.02, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.05, momentum_decay=0.5, clip_value=0.1),
    NAdam(lr=0.02, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.5, decoupled_weight_decay=True),
    Adamax(),
    Adamax(lr=0.02, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.05, clip_value=0.1),
    Signum(),
    Signum(momentum=0.0),
    Signum(lr=0.02, momentum=0.8, weight_decay=0.5, clip_value=0.1),
    Signum(lr=0.02, momentum=0.0, weight_decay=0.5, clip_value=0.1),
    Lion(),
    Lion(lr=0.02, betas=(0.8, 0.7), weight_decay=0.5, clip_value=0.1),
    AdaBelief(eps=1e-8),
    AdaBelief(lr=0.02, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.05, clip_value=0.1),
    FTRL(),
    FTRL(lr=0.5, beta=0.3, l1=0.02, l2=0.4, clip_value=0.1),
    FTML(),
    FTML(lr=0.02, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.05, clip_value=0.1),
    Sum(),
    Sum(scale=-0.5, clip_value=0.1),
    DCASGD(),
    DCASGD(lr=0.1, compensation=0.5, weight_decay=0.05, clip_value=0.1),
    DCASGD(lr=0.1, compensation=2.0, adaptive=True, weight_decay=0.05, clip_value=0.5),
]

ROW_SPECS: list[RuleSpec] = [
    RowWiseAdagrad(),
    RowWiseAdagrad(lr=0.1, lr_decay=0.2, weight_decay=0.05, initial_accumulator_value=0.3, eps=1e-6, clip_value=0.1),
    GroupAdagrad(),
    GroupAdagrad(lr=0.5, l21=0.8, weight_decay=0.05, initial_accumulator_value=0.3, eps=1e-6, clip_value=0.5),
    GroupFTRL(),
    GroupFTRL(lr=0.5, beta=0.3, l1=0.02, l2=0.4, l21=0.2, clip_value=0.5),
]
"""Rules that step whole rows."""

TRUST_SPECS: list[RuleSpec] = [
    LAMB(),
    LAMB(lr=0.02, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.05, clip_value=0.1),
    LARS(),
    LARS(lr=2.0, momentum=0.0, weight_decay=0.05, trust_coefficient=0.01, eps=1e-3, clip_value=0.1),
]
"""Rules that take norms of whole tensors before they step."""


@pytest.fixture(params=SPECS, ids=str)
def spec(request: pytest.FixtureRequest) -> RuleSpec:
    case: RuleSpec = request.param
    return case


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(
    params=[pytest.param("host", marks=pytest.mark.needs_debian("g++", COMPILER)), "cuda"],
    scope="session",
)
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Device:
    """What runs the CUDA sources: the compiler of this host, and the first GPU where there is one."""
    if request.param == "host":
        host = HostDevice(tmp_path_factory.mktemp("kernels"))
        host.prepare_all(programs())
        return host
    try:
        with warnings.catch_warnings(action="ignore"):  # of CuPy's import, about libraries that it does not find
            return warm(open_device("gpu:0"))
    except (UsageError, UnavailableError) as missing:
        pytest.skip(f"needs a GPU: {missing.fact}")


def warm(device: Device) -> Device:
    """Have the driver open what it keeps open, lest the first test be charged with it."""
    vector, values = empty(device, 64, DTYPES[0]), np.zeros(64, DTYPES[0])
    lane = device.lane()
    lane.upload(vector.address, values)
    lane.launch(launch_of(fill_source(DTYPES[0]), [(64, vector.address, 0.5)], []))
    lane.download(vector.address, values)
    lane.finish()
    assert values.tolist() == [0.5] * 64
    return device


MOVES = (fill_source, finite_source, gather_source, scatter_source, squares_source)


def row_variants() -> list[Variant]:
    """The kernels that step rows of tables."""
    variants = (RULE_MODULES[type(spec)].variant(spec) for spec in (*SPECS, *ROW_SPECS))
    return [variant for variant in variants if all(slot.per is not Per.WORKER for slot in variant.slots)]


def programs() -> list[CudaSource]:
    """Every program that a device may be asked for."""
    found = [build_cuda(spec, dtype) for spec in (*SPECS, *TRUST_SPECS) for dtype in DTYPES]
    measuring = [build_cuda_measure(spec, dtype) for spec in TRUST_SPECS for dtype in DTYPES]
    return [
        *dict.fromkeys(found),
        *dict.fromkeys(program for program in measuring if program is not None),
        lane_sums_source(),
        *dict.fromkeys(step_source(variant, dtype) for variant in row_variants() for dtype in DTYPES),
        *map(decode_source, CODECS.values()),
        *map(encode_source, HALF_CODECS),
        *map(encode_source, HALF_CODECS.values()),
        *(make(dtype) for make in MOVES for dtype in DTYPES),
    ]
