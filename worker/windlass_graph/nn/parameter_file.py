"""Parameters in safetensors files, by structural name.

Invariant: a file is taken whole or not at all: names, shapes and dtypes are compared for all parameters before the
first value is set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from windlass_graph.device import Device
from windlass_graph.nn.parameter import Parameter
from windlass_proto import storage, tensor_file
from windlass_proto.arguments import nearest
from windlass_proto.errors import UsageError

_SHOWN_MAX = 8


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What of a file need not fit."""

    allow_missing: bool
    ignore_extra: bool
    cast_dtype: bool


def save(path: str | Path, parameters: Mapping[str, Parameter]) -> None:
    """Write the parameters' values.

    Raises:
        UsageError: a parameter has no values.
        UnavailableError: the file could not be written.
    """
    tensor_file.write(storage.place_of(path), {name: each.host_values() for name, each in parameters.items()})


def load(
    path: str | Path,
    parameters: Mapping[str, Parameter],
    tolerance: Tolerance,
    device: str | Device | Sequence[str | Device] | None,
) -> None:
    """See `Block.load_parameters`."""
    found = tensor_file.load(storage.place_of(path))
    missing = [name for name in parameters if name not in found]
    extra = [name for name in found if name not in parameters]
    if missing and not tolerance.allow_missing:
        raise _unlike("a file lacks parameters", path, missing, extra, "allow_missing=True leaves them as they are.")
    if extra and not tolerance.ignore_extra:
        raise _unlike("a file has names that no parameter has", path, extra, missing, "ignore_extra=True passes over.")
    taken = {name: values for name, values in found.items() if name in parameters}
    for name, values in taken.items():
        _check(path, parameters[name], values, cast_dtype=tolerance.cast_dtype)
    for name, values in taken.items():
        parameters[name].load(values, device)


def _unlike(fact: str, path: str | Path, names: list[str], others: list[str], move: str) -> UsageError:
    near = nearest(names[0], others)
    hint = f"Is {names[0]} called {near} on the other side? " if near else ""
    shown = ", ".join(names[:_SHOWN_MAX]) + (f" and {len(names) - _SHOWN_MAX} more" if len(names) > _SHOWN_MAX else "")
    return UsageError(fact, next_move=hint + move, file=path, names=shown)


def _check(path: str | Path, parameter: Parameter, values: npt.NDArray[Any], *, cast_dtype: bool) -> None:
    parameter.check_shape(values.shape)
    if values.dtype.name != parameter.dtype and not cast_dtype:
        raise UsageError(
            "values have another dtype than their parameter",
            next_move="cast_dtype=True casts them; net.cast(dtype) changes the net.",
            file=path,
            parameter=parameter.name,
            expected=parameter.dtype,
            got=values.dtype.name,
        )
