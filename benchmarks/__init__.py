"""windlass against its floors and its peers, in one run: `python -m benchmarks --help`.

Importing the package imports nothing: parts of it run inside the peers' environments, where neither windlass
nor Numba exists.
"""
