"""Loops over contiguous arrays that NumPy has no word for, and the functions that put them together with NumPy's.

Invariant: pure functions of their arguments. They write only into the arrays that they are given to write, in full,
and keep nothing; memory that they need meanwhile is handed in by the caller, who asks a `scratch_bytes` how much.
"""
