"""Which rows of a sparse table go again: `store.table(..., evict=wl.evict.TTL(10_000))`."""

from windlass_proto.life_specs import LFU, LRU, TTL, Score

__all__ = ["LFU", "LRU", "TTL", "Score"]
