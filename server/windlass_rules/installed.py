"""Own rules that this process may run: loaded from entry points by the names on its allow-list, and by no others.

An entry point of the group `windlass.rules` names a module with

    Spec             a frozen dataclass of float, int, bool or str fields, which checks its own values
    variant(spec)    a `windlass_rules.rule.Variant`: slots, kernel, and the numbers of a step

Invariant: what is here was allowed by whoever started the process. Nothing that comes over a link loads code: an
`OwnRule` is looked up by name, compared by version, and made with `Spec(**values)`.

Owner of `_INSTALLED`: `_LOADING`; a lookup takes no lock.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, get_args, get_type_hints

from windlass_proto import own_rules
from windlass_proto.errors import UsageError
from windlass_proto.own_rules import ENTRY_POINTS, KINDS, InstalledRule, OwnRule
from windlass_proto.rule_specs import RULES
from windlass_rules import packages
from windlass_rules.rule import Per, Variant

_LOADING: Final = threading.Lock()
_INSTALLED: dict[str, Loaded] = {}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A rule's module, and what is said of it to others."""

    rule: InstalledRule
    module: Any


def install(allowed: Iterable[str]) -> tuple[InstalledRule, ...]:
    """Load the rules that `allowed` names, each as NAME or NAME==VERSION.

    Raises:
        UsageError: a name is not installed, in another version, twice, that of a rule of windlass, or not a rule.
    """
    with _LOADING:
        for text in allowed:
            name, version = own_rules.parse_allowed(text)
            _INSTALLED[name] = _load(name, version)
        return tuple(loaded.rule for loaded in _INSTALLED.values())


def module_of(spec: OwnRule) -> Any:
    """The module of a rule that is installed here in the version that is asked for.

    Raises:
        UsageError: it is not.
    """
    loaded = _INSTALLED.get(spec.name)
    if loaded is None or (spec.version and loaded.rule.version != spec.version):
        raise UsageError(
            "this server does not have an update rule",
            rule=spec.name,
            version_asked=spec.version or "any",
            version_there=loaded.rule.version if loaded is not None else "none",
            next_move=f"Install its package here and start the server with --allow-rule {spec.name}.",
        )
    return loaded.module


@functools.lru_cache(maxsize=256)
def made(spec: OwnRule) -> Any:
    """The rule's own spec; a schedule counts with its number at step 0.

    Raises:
        UsageError: the rule is not here, or refuses the values.
    """
    return own_rules.tried(module_of(spec).Spec, spec)


def _load(name: str, version: str) -> Loaded:
    if name in RULES:
        raise UsageError("an own rule has the name of a rule of windlass", rule=name, next_move="Call it otherwise.")
    entry_point, there = packages.allowed(ENTRY_POINTS, "update rule", name, version)
    module = entry_point.load()
    fields, by_row = _described(name, module)
    return Loaded(InstalledRule(name, there, fields, by_row), module)


def _described(name: str, module: Any) -> tuple[tuple[tuple[str, str], ...], bool]:
    """The fields of the rule's Spec with their kinds, and whether it steps whole rows."""
    spec: Any = getattr(module, "Spec", None)
    if not (isinstance(spec, type) and dataclasses.is_dataclass(spec)) or not callable(
        getattr(module, "variant", None)
    ):
        raise UsageError(
            "an entry point is not an update rule",
            rule=name,
            module=getattr(module, "__name__", repr(module)[:80]),
            next_move="It names a module with a dataclass Spec and a function variant(spec); see docs/own-rules.md.",
        )
    hints = get_type_hints(spec)
    kinds = {cls: kind for kind, cls in KINDS.items()}
    fields = []
    for each in dataclasses.fields(spec):
        asked = [one for one in get_args(hints[each.name]) or (hints[each.name],) if one is not types.NoneType]
        if len(asked) != 1 or asked[0] not in kinds:
            raise UsageError(
                "a hyper-parameter of an own rule is none of float, int, bool, str",
                rule=name,
                field=each.name,
                type=str(hints[each.name]),
            )
        fields.append((each.name, kinds[asked[0]]))
    defaults = all(
        each.default is not dataclasses.MISSING or each.default_factory is not dataclasses.MISSING
        for each in dataclasses.fields(spec)
    )
    if not defaults:
        raise UsageError("a hyper-parameter of an own rule has no default", rule=name, fields=[f for f, _ in fields])
    variant: Variant = module.variant(module.Spec())
    if variant.measure is not None or any(slot.per is Per.WORKER for slot in variant.slots):
        raise UsageError(
            "an own rule takes norms of tensors, or a copy of the weights for each worker",
            rule=name,
            next_move="Only rules of windlass can.",
        )
    return tuple(fields), variant.by_row
