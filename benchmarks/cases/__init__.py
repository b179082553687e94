"""The cases: each yields rows. `ALL` is the order in which they run."""
