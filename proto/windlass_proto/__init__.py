"""What two roles of a windlass cluster must agree on byte for byte.

Frames, keys, layout, routing, typed specs, errors, limits, links and the time source live here. This package imports
nothing else of ours, so that every role may import it.
"""
