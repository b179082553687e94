"""A fit on the disk: values, the rule's state and where the fit stood, after an epoch.

    <folder>/epoch-000003/parameters.safetensors   every parameter, by structural name
    <folder>/epoch-000003/states.safetensors       what the rule keeps (`Trainer.save_states`)
    <folder>/epoch-000003/fit.json                 epoch, step, history, the data's position, callbacks; digests

With a store the servers keep values and state (`store.checkpoint`), the place in the fit is in its manifest, and only
what no gradient reaches, such as moving averages, is written here: `<folder>/untrained/epoch-000003.safetensors`.

Invariant: `fit.json` is written last and removed first, so a folder that has it is whole; its digests are compared when
it is read. What is resumed goes on bit for bit, if nothing on the way draws random numbers that no seed gives.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from windlass_graph.array import Array
from windlass_proto import storage, tensor_file
from windlass_proto.errors import CorruptionError, UsageError
from windlass_worker.callback.progress import as_json

if TYPE_CHECKING:
    from windlass_worker.callback.event import Event
    from windlass_worker.estimator import Estimator

_FORMAT: Final = 1
_FIT: Final = "fit.json"
_PARAMETERS: Final = "parameters.safetensors"
_STATES: Final = "states.safetensors"
_UNTRAINED: Final = "untrained"
_NAMED: Final = re.compile(r"epoch-(\d{6,})(\.safetensors)?")
_SUFFIX: Final = ".safetensors"


def save(event: Event, folder: Path, keep: int | None) -> None:
    """Keep where `event` stands, after its epoch, below `folder`; with a store every worker calls it."""
    if event.estimator.store is None:
        if event.estimator.is_main:
            _save_here(event, folder, keep)
        return
    if event.estimator.is_main:
        _save_untrained(event, folder, keep)
    event.estimator.store.checkpoint(str(folder), state={"fit": _place(event)}, keep_last=keep)


def _save_here(event: Event, folder: Path, keep: int | None) -> None:
    place = folder / f"epoch-{event.epoch + 1:06d}"
    storage.make_folder(place)
    (place / _FIT).unlink(missing_ok=True)
    tensor_file.write(place / _PARAMETERS, _values(event.estimator))
    event.estimator.trainer.save_states(place / _STATES)
    sizes = {name: (place / name).stat().st_size for name in (_PARAMETERS, _STATES)}
    files = {name: [size, tensor_file.digest_of(place / name, size)] for name, size in sizes.items()}
    record = {"format": _FORMAT, "files": files, "step": event.step, **_place(event)}
    raw = json.dumps(record, indent=1).encode()
    storage.write_whole(place / _FIT, lambda write: write(raw))
    for old in _older(_named(folder), place, keep):
        shutil.rmtree(old, ignore_errors=True)


def _save_untrained(event: Event, folder: Path, keep: int | None) -> None:
    values = _values(event.estimator, untrained=True)
    if not values:
        return
    storage.make_folder(folder / _UNTRAINED)
    place = folder / _UNTRAINED / f"epoch-{event.epoch + 1:06d}{_SUFFIX}"
    tensor_file.write(place, values)
    for old in _older(_named(folder / _UNTRAINED), place, keep):
        old.unlink(missing_ok=True)


def _place(event: Event) -> dict[str, Any]:
    """Where the fit stands, as JSON equal on every worker."""
    return {
        "epoch": event.epoch + 1,
        "history": [{name: as_json(value) for name, value in figures.items()} for figures in event.history],
        "passes": event.passes.state(),
        "callbacks": {_key(index, each): each.state() for index, each in enumerate(event.callbacks)},
    }


def _key(index: int, callback: Any) -> str:
    return f"{index}.{type(callback).__name__}"


def _older(found: Iterable[Path], newest: Path, keep: int | None) -> list[Path]:
    """What is beyond the `keep` newest; what is later than `newest` is of another course, and counts as older."""
    listed = sorted(found, key=lambda path: (path.name <= newest.name, path.name), reverse=True)
    return [] if keep is None else listed[keep:]


def _named(folder: Path) -> list[Path]:
    return [path for path in storage.listed(folder) if _NAMED.fullmatch(path.name)]


def resume(event: Event, folder: Path) -> bool:
    """Bring back the newest that `save` has left in `folder`; False if there is none, and nothing has changed.

    Raises:
        UsageError: it is of another model or rule.
        CorruptionError: a file is not what was written.
    """
    estimator = event.estimator
    if estimator.store is not None:
        found = estimator.store.resume(str(folder))
        if found is None or "fit" not in found.state:
            return False
        place = {**found.state["fit"], "step": found.step}
        _load_untrained(estimator, folder / _UNTRAINED / f"epoch-{place['epoch']:06d}{_SUFFIX}")
        estimator.trainer.pull()
    else:
        whole = sorted((path for path in _named(folder) if (path / _FIT).is_file()), key=lambda path: path.name)
        if not whole:
            return False
        place = _load_here(estimator, whole[-1])
    event.epoch, event.step = place["epoch"], place["step"]
    event.history = [
        {name: float("nan") if value is None else value for name, value in figures.items()}
        for figures in place["history"]
    ]
    event.passes.resume(place["passes"])
    for index, callback in enumerate(event.callbacks):
        if (state := place["callbacks"].get(_key(index, callback))) is not None:
            callback.take_state(state, event)
    return True


def _load_here(estimator: Estimator, folder: Path) -> dict[str, Any]:
    try:
        place: dict[str, Any] = json.loads((folder / _FIT).read_bytes())
        files = {name: (int(place["files"][name][0]), place["files"][name][1]) for name in (_PARAMETERS, _STATES)}
    except (ValueError, KeyError, TypeError, IndexError) as cause:
        raise CorruptionError("the record of a fit cannot be read", file=folder / _FIT, reason=cause) from cause
    if place.get("format") != _FORMAT:
        raise UsageError("a fit was saved by another release", file=folder / _FIT, format=place.get("format"))
    for name, (size, digest) in files.items():
        found = tensor_file.digest_of(folder / name, size)
        if found != digest:
            raise CorruptionError("a file of a fit was altered", file=folder / name, digest=found, expected=digest)
    values = tensor_file.load(folder / _PARAMETERS)
    _check_like(estimator, values, folder)
    estimator.trainer.load_states(folder / _STATES)
    _put(estimator, values)
    return place


def _load_untrained(estimator: Estimator, path: Path) -> None:
    if path.is_file():
        _put(estimator, tensor_file.load(path))


def _check_like(estimator: Estimator, values: Mapping[str, Any], folder: Path) -> None:
    mine = _values(estimator)
    for name in sorted({*mine, *values}):
        here, there = mine.get(name), values.get(name)
        if here is None or there is None or here.shape != there.shape:
            raise UsageError(
                f"a saved fit is of another model: {name!r}",
                next_move="Resume with the model that was saved, or name another folder.",
                folder=folder,
                here=None if here is None else here.shape,
                there=None if there is None else there.shape,
            )


def _values(estimator: Estimator, *, untrained: bool = False) -> dict[str, Any]:
    """Values by name, of moving averages of several devices the mean; `untrained`: what no gradient reaches."""
    found: dict[str, Any] = {}
    for name, parameter in estimator.parameters().items():
        if not untrained or copies(parameter)[0].grad is None:
            found[name] = parameter.numpy() if isinstance(parameter, Array) else parameter.host_values()
    return found


def _put(estimator: Estimator, values: Mapping[str, Any]) -> None:
    parameters = estimator.parameters()
    for name in values.keys() & parameters.keys():
        for copy in copies(parameters[name]):
            copy.memory[...] = copy.device.xp.asarray(values[name])


def copies(parameter: Any) -> list[Array]:
    """The arrays of a parameter, which may be one itself."""
    return [parameter] if isinstance(parameter, Array) else list(parameter.list_data())
