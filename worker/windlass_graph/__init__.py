"""The graph engine: nodes, ops, passes and plans on NumPy, Numba and CuPy; two fronts, symbolic and imperative.

It knows nothing of a cluster. Of our packages it imports only leaves of `windlass_proto` that know none either: the
family of errors, nearest names, the cache of compiled kernels and plain tensor files.
"""
