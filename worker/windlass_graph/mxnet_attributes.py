"""Attributes of one node of MXNet, which are text, and what is left of them.

Invariant: an attribute is understood or refused. Whoever translates an op takes what it knows; `finish` refuses the
rest, so that no net is read as another one. Those that only steer MXNet's own choice of kernels mean nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from windlass_proto.errors import CorruptionError, UsageError

_MEANINGLESS: Final = frozenset({"workspace", "cudnn_tune", "cudnn_off", "num_args", "sparse_grad", "forward_stype"})
_HIDDEN: Final = ("ctx_group", "lr_mult", "wd_mult", "force_mirroring", "mirror_stage", "profiler_scope")
_INTEGERS: Final = re.compile(r"[(\[]?\s*(-?\d+L?(\s*,\s*-?\d+L?)*)?\s*,?\s*[)\]]?")


class Attributes:
    """Text by name, taken one at a time."""

    def __init__(self, node: str, op: str, given: Mapping[str, str]) -> None:
        self.node = node
        self.op = op
        self._left = {key: value for key, value in given.items() if not self._is_hidden(key)}
        self.labels = {key.strip("_"): value for key, value in given.items() if self._is_hidden(key)}

    @staticmethod
    def _is_hidden(key: str) -> bool:
        return (key.startswith("__") and key.endswith("__")) or key.endswith(_HIDDEN)

    def refused(self, what: str, **values: Any) -> UsageError:
        """The error of what windlass does not do, or not alike."""
        return UsageError(f"{self.op} {self.node!r} of MXNet cannot be read: {what}", **values)

    def text(self, key: str, default: str) -> str:
        return self._left.pop(key, default)

    def flag(self, key: str, default: bool = False) -> bool:
        text = self._left.pop(key, str(default))
        if text not in ("True", "False", "0", "1", "true", "false"):
            raise self._wrong(key, text)
        return text in ("True", "1", "true")

    def number(self, key: str, default: float | None = None) -> float:
        text = self._left.pop(key, None)
        if text is None and default is not None:
            return default
        try:
            return float(text or "")
        except ValueError:
            raise self._wrong(key, text) from None

    def integer(self, key: str, default: int | None = None) -> int:
        found = self.integers(key, None if default is None else (default,))
        if found is None or len(found) != 1:
            raise self._wrong(key, found)
        return found[0]

    def integers(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...] | None:
        """A sequence, or one number; None of "None" and of what is missing without a default."""
        text = self._left.pop(key, None)
        if text is None:
            return default
        if text == "None":
            return None
        if not _INTEGERS.fullmatch(text.strip()) or len(text) > 1_000:
            raise self._wrong(key, text)
        return tuple(int(each) for each in re.findall(r"-?\d+", text))

    def window(self, key: str) -> tuple[int, ...] | None:
        """A sequence with an entry for each axis of space; None where MXNet chooses."""
        return self.integers(key) or None

    def axes(self, key: str = "axis") -> int | tuple[int, ...] | None:
        """One axis, several, or all (None)."""
        found = self.integers(key)
        if not found:
            return None
        return found[0] if len(found) == 1 else found

    def only(self, key: str, *allowed: str) -> None:
        """Refuse an attribute that has another value than one of these, the first of which is the default."""
        text = self._left.pop(key, allowed[0])
        if text not in allowed:
            raise self.refused(f"{key} is not {' or '.join(allowed)}", **{key: text})

    def off(self, *keys: str) -> None:
        """Refuse flags that are set."""
        for key in keys:
            if self.flag(key):
                raise self.refused(f"{key} is set")

    def finish(self) -> None:
        """Refuse what nobody took."""
        unknown = sorted(self._left.keys() - _MEANINGLESS)
        if unknown:
            raise self.refused("attributes are unknown", attributes=", ".join(unknown))

    def _wrong(self, key: str, text: Any) -> CorruptionError:
        return CorruptionError("an attribute of MXNet's cannot be read", node=self.node, attribute=key, text=text)
