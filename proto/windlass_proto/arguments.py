"""Arguments of specs, and names of modules: a wrong one is said in words, with the nearest right one.

    @refused_in_words
    @dataclass(frozen=True, slots=True)
    class Adam: ...                          Adam(learning_rate=1) -> UsageError, "Did you mean lr?"

Invariant: whoever calls a spec wrongly (an argument that it lacks, one too many, one too few) gets a UsageError, as for
a value out of its range; what goes wrong inside stays what it is. A call that is right pays for one `try`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import numbers
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeGuard, TypeVar

from windlass_proto.errors import UsageError

_Spec = TypeVar("_Spec")

_SYNONYMS: Final = {"learning_rate": "lr", "wd": "weight_decay"}
"""Names of other libraries that are spelled too differently to be found by their letters."""


class UnknownNameError(UsageError, AttributeError):
    """A module has no such name. Also an AttributeError, so that `hasattr` and `import` see what they look for."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The one of `known` that `name` is most like, "" if it is like none."""
    names = list(known)
    if _SYNONYMS.get(name) in names:
        return _SYNONYMS[name]
    by_letters = {each.lower(): each for each in names}
    found = difflib.get_close_matches(name.lower(), by_letters, n=1, cutoff=0.4)
    return by_letters[found[0]] if found else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The next move of who gave `name`."""
    names = list(known)
    near, listed = nearest(name, names), f"Known: {', '.join(names) or 'none'}."
    return f"Did you mean {near}? {listed}" if near else listed


def is_number(value: object) -> TypeGuard[float]:
    """Is it a real number, Python's or NumPy's, and no flag?"""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def refused_in_words(cls: type[_Spec]) -> type[_Spec]:
    """Let calls of `cls` that do not fit its signature raise UsageError."""
    plain: Callable[..., None] = cls.__init__

    @functools.wraps(plain)
    def init(self: object, /, *args: Any, **kwargs: Any) -> None:
        try:
            plain(self, *args, **kwargs)
        except TypeError as cause:
            error = _misfit(cls, plain, args, kwargs)
            if error is None:
                raise
            raise error from cause

    type.__setattr__(cls, "__init__", init)
    return cls


def _misfit(cls: type[Any], plain: Callable[..., None], args: Any, kwargs: dict[str, Any]) -> UsageError | None:
    """Why the arguments do not fit; None: they do."""
    _, *parameters = inspect.signature(plain).parameters.values()
    known = [parameter.name for parameter in parameters]
    name = cls.__name__
    for given in kwargs:
        if given not in known:
            return UsageError(f"{name} has no such argument", given=given, next_move=did_you_mean(given, known))
    if len(args) > len(known):
        return UsageError(f"{name} was given too many arguments", given=len(args), arguments=", ".join(known))
    twice = [each for each in known[: len(args)] if each in kwargs]
    if twice:
        return UsageError(f"{name} was given an argument twice", argument=twice[0], next_move="Give it once.")
    needed = [p.name for p in parameters[len(args) :] if p.default is p.empty and p.name not in kwargs]
    if needed:
        return UsageError(f"{name} lacks an argument", argument=needed[0], next_move=f"Give {', '.join(needed)}.")
    return None


def unknown_name(module: str, name: str, known: Iterable[str]) -> AttributeError:
    """What a module's `__getattr__` raises. Names that the interpreter looks for by itself are not worth a word."""
    if name.startswith("__"):
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    return UnknownNameError(f"{module} has no such name", name=name, next_move=did_you_mean(name, sorted(known)))
