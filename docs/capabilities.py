"""Write `docs/capabilities.md`: what each update rule can do, read from the registry of rules.

    python docs/capabilities.py          # from the root, with the packages importable

A test compares the file with `table()`, so a new rule or a new variant of one is in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from windlass_proto import codec_specs, row_codecs, transfer_specs
from windlass_proto.consistency import Consistency
from windlass_proto.errors import UsageError
from windlass_proto.rule_specs import RULES, SGD, RuleSpec
from windlass_proto.transfer_specs import Transfer
from windlass_rules.cuda_codecs import HALF_CODECS, decode_source, encode_source
from windlass_rules.cuda_norms import measure_source
from windlass_rules.cuda_source import CudaSource, update_source
from windlass_rules.registry import DTYPES, RULE_MODULES
from windlass_rules.rule import Per, Variant

PAGE = Path(__file__).with_suffix(".md")
RECORD = PAGE.with_name("device_tests.json")
Run = dict[str, Any]

HEAD = """\
# What each update rule can do

Made by `python docs/capabilities.py` from the registry in `server/windlass_rules`; edit that.

`wl.optim` has every rule. *State* is what a server keeps beside the weights, in their dtype: one vector as long as they
are for a name, or one number for each row of a table. Every rule takes `clip_value`, and every tensor its multipliers
of rate and decay.

"""

FOOT = """
*A vector a worker*: DCASGD's server keeps the tensors as each worker last saw them, from its first pull or push until
its session ends, so N workers cost N times the weights; an observer that pulls is one. A copy is made of what a pull or
a push_pull answers, segment by segment; a first push before any pull is not compensated. Copies are in no checkpoint.

*Rows of tables*: float32 and float64; only the rows that a push names are stepped, and keep their slots otherwise.
*Lazy rows*: the same for rows of dense tensors declared with `lazy=True` ([rows.md](rows.md)), which lie in memory also
on servers with a device. *Cut over servers*: a tensor may be cut anywhere, and the pieces lie on any servers, with the
bits of one piece. *Same bits on any CPU*: kernels are IEEE `+ - * / sqrt`, comparisons and selections alone, nothing
fused or reordered, and no number of a step comes from libm. Both are tested for every row (`tests/rules`).

*Norms*: {trusting}, and every rule of dense tensors with `clip_norm` (each tensor's gradient) or `clip_global_norm`
(all tensors of one `init` and dtype together, as `torch.nn.utils.clip_grad_norm_`), take norms of the aggregated
gradient and the weights before a step is applied. Sums of squares are float64, made and added in an order that depends
on values and layout alone: the same bits on 1, 2 or 5 servers. A tensor that nobody pushed in a step counts as 0. Under
`asp` and `ssp` each push is clipped by its worker's own gradient, and LAMB and LARS need `layout="whole"` for tensors
that would be cut: [norms.md](norms.md). Norms are refused for rows of tables.

*GPU*: on servers with a device ([gpu.md](gpu.md)), for float32 and float64.
{rows} step rows of tables alone, which lie in the host's memory. *tested* names the
device on which the tests of this very kernel passed, by `device_tests.json`, and the day; *compiled only*: the kernel's
CUDA source has been compiled by NVRTC, and compared with the compiled rule bit for bit on a CPU, but not run on a
device.
"""


A_ROW = {Per.ELEMENT: "", Per.ROW: " (one a row)", Per.WORKER: " (a vector a worker)"}

CODECS_HEAD = """
## What each codec can do

"""

CODECS_FOOT = """
*Down* in modes with steps (*bsp*, `avg` too): what a step changed travels, and what it lost is in the next change.

*GPU*: where gradients are decoded, and weights made halves, on a server's device; marked as rules are.

*Half tensors* are float16 and bfloat16 under float32 masters ([mixed-precision.md](mixed-precision.md)); codecs take
float32 ([compression.md](compression.md)). Rows come down in what tensors do.
"""


def candidates(cls: Any) -> Iterator[tuple[str, RuleSpec]]:
    """The rule with each of its switches off and on, fewest first, and what was switched in words."""
    names = [field.name for field in dataclasses.fields(cls) if field.default is False or field.name == "momentum"]
    for count in range(len(names) + 1):
        for chosen in itertools.combinations(names, count):
            values = {name: 0.9 if name == "momentum" else True for name in chosen}
            values |= {"momentum": 0.0} if "momentum" in names and "momentum" not in chosen else {}
            words = ", ".join("momentum > 0" if name == "momentum" else f"{name}=True" for name in chosen)
            try:
                yield words, cls(**({"lr": 0.1} if cls is SGD else {}), **values)
            except UsageError:  # switches that contradict each other
                continue


def variants(cls: Any) -> dict[str, tuple[str, Variant]]:
    """Each kernel of a rule, with the fewest switches that choose it."""
    found: dict[str, tuple[str, Variant]] = {}
    for words, spec in candidates(cls):
        variant = RULE_MODULES[cls].variant(spec)
        found.setdefault(variant.name, (words, variant))
    return found


def device_runs() -> list[Run]:
    """What `python -m tests.rules.record_device` recorded, oldest first."""
    runs: list[Run] = json.loads(RECORD.read_text(encoding="utf-8"))["runs"]
    return runs


def on_device(variant: Variant, runs: list[Run]) -> str:
    """The cell of a kernel: where its CUDA twin, as it is today, has been tested."""
    if variant.by_row:
        return "no"
    programs = [update_source(variant, dtype) for dtype in DTYPES]
    if variant.measure is not None:
        programs += [measure_source(variant, dtype) for dtype in DTYPES]
    return mark_of(programs, runs)


def mark_of(programs: list[CudaSource], runs: list[Run]) -> str:
    """Where all of `programs`, as they are today, have been tested."""
    for run in reversed(runs):
        if all(run["programs"].get(program.entry) == program.digest for program in programs):
            return f"tested ({run['date']}, {run['model']})"
    return "compiled only"


def steps_whole_tensors(variant: Variant) -> bool:
    """Does it take their norms, or copies of them?"""
    return variant.measure is not None or any(slot.per is Per.WORKER for slot in variant.slots)


def lazily(variant: Variant) -> str:
    """The cell of a kernel: may dense tensors under it be lazy?"""
    return "no" if variant.by_row or steps_whole_tensors(variant) else "yes"


def named(chosen: Callable[[Variant], bool]) -> str:
    """The rules whose variants are all `chosen`, in a sentence."""
    names = [cls.__name__ for cls in RULES.values() if all(chosen(variant) for _, variant in variants(cls).values())]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def table() -> str:
    """The page."""
    dtypes = [dtype.name for dtype in DTYPES]
    columns = [
        "rule",
        "with",
        *(f"dense {name}" for name in dtypes),
        "half tensors",
        "codecs",
        "rows of tables",
        "lazy rows",
        "state",
        "cut over servers",
        "same bits on any CPU",
        "GPU",
    ]
    rows = [columns, ["---"] * len(columns)]
    runs = device_runs()
    for cls in RULES.values():
        for words, variant in variants(cls).values():
            state = ", ".join(f"{slot.name}{A_ROW[slot.per]}" for slot in variant.slots) or "none"
            dense = "no" if variant.by_row else "yes"
            of_rows = "no" if steps_whole_tensors(variant) else "yes"
            cut = "bsp" if variant.measure is not None else "yes"
            rows.append(
                [
                    f"`{cls.__name__}`",
                    words,
                    *(dense for _ in dtypes),
                    dense,
                    dense,
                    of_rows,
                    lazily(variant),
                    state,
                    cut,
                    "yes",
                    on_device(variant, runs),
                ]
            )
    foot = FOOT.format(
        trusting=named(lambda variant: variant.measure is not None), rows=named(lambda variant: variant.by_row)
    )
    return HEAD + _written(rows) + foot + CODECS_HEAD + _written(codec_rows(runs)) + CODECS_FOOT


def _written(rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows)


def may(transfer: Transfer) -> str:
    """In which modes can float32 tensors be declared so?"""
    modes = []
    for mode in ("bsp", "asp"):
        with contextlib.suppress(UsageError):
            transfer_specs.check(transfer, dtype="float32", rule=SGD(lr=0.1))
            transfer_specs.check_mode(transfer, Consistency.parse(mode))
            modes.append(mode)
    return {0: "no", 1: ", ".join(modes), 2: "yes"}[len(modes)]


def of_rows(spec: codec_specs.CodecSpec) -> str:
    """Of which sizes rows may be pushed so."""
    taken = []
    for dim in range(1, 65):
        try:
            row_codecs.check(spec, dim)
        except UsageError:
            continue
        taken.append(dim)
    if not taken:
        return "no"
    step = taken[1] - taken[0]
    assert taken == list(range(taken[0], 65, step))
    least = "" if taken[0] == step else f" from {taken[0]} on"
    return f"dim {'any' if step == 1 else f'a multiple of {step}'}{least}"


def codec_rows(runs: list[Run]) -> list[list[str]]:
    """What each codec may be used for, as it is checked where tensors are declared."""
    columns = ["codec", "up", "down", "feedback", "rows of tables", "their feedback", "GPU"]
    rows = [columns, ["---"] * len(columns)]
    for cls in codec_specs.CODECS.values():
        spec = cls(0.1) if cls is codec_specs.TwoBit else cls()
        up, down = Transfer(up=spec), Transfer(down=spec)
        on_devices = [decode_source(cls), *([encode_source(cls)] if cls in HALF_CODECS.values() else [])]
        rows.append(
            [
                f"`{cls.__name__}`",
                may(up),
                may(down),
                "yes" if spec.feedback else "no",
                of_rows(spec),
                "yes" if of_rows(spec) != "no" and row_codecs.keeps(spec) else "no",
                mark_of(on_devices, runs),
            ]
        )
    return rows


if __name__ == "__main__":
    PAGE.write_text(table(), encoding="utf-8")
