"""Which ids of a sparse table get rows: `store.table(..., admit=wl.admit.Count(3))`."""

from windlass_proto.life_specs import Count, Probability

__all__ = ["Count", "Probability"]
