"""Which ids of a sparse table get rows: `store.table(..., admit=wl.admit.Count(3))`."""

from typing import TYPE_CHECKING, Any

from windlass_proto.arguments import unknown_name
from windlass_proto.life_specs import Count, Probability

__all__ = ["Count", "Probability"]

if not TYPE_CHECKING:  # type checkers say it by themselves

    def __getattr__(name: str) -> Any:
        raise unknown_name("windlass.admit", name, __all__)
