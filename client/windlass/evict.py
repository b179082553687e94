"""Which rows of a sparse table go again: `store.table(..., evict=wl.evict.TTL(10_000))`."""

from typing import TYPE_CHECKING, Any

from windlass_proto.arguments import unknown_name
from windlass_proto.life_specs import LFU, LRU, TTL, Score

__all__ = ["LFU", "LRU", "TTL", "Score"]

if not TYPE_CHECKING:  # type checkers say it by themselves

    def __getattr__(name: str) -> Any:
        raise unknown_name("windlass.evict", name, __all__)
