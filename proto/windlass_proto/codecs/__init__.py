"""Codecs' kernels: what a spec of `codec_specs` does to a run of float32.

One module a codec, with its wire format in its first lines; `registry` builds them.
"""
